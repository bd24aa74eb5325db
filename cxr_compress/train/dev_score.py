"""How good the epochs of a training are, by the films of the dev patients, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.metrics import auroc_per_finding, class_log_odds, mean_auroc
from cxr_compress.train.losses import distillation_loss


@dataclass(frozen=True)
class DevScore:
    """What the logits of the dev films are held against.

    Attributes:
        labels: (films, findings) of 0 to 1, NaN for unknown.
        findings: Their names.
        loss: From (labels, logits) to a number, as in training.
        their_logits: The teacher's, for the same films; None where none teaches.
        distill_weight: Share of the loss that follows them.
        activation: "sigmoid", or "softmax" for classes that exclude one another: then the AUROC is that of each class
            against the others by its probability, and ``dev_accuracy`` says how often the likeliest class was right.
    """

    labels: np.ndarray
    findings: tuple[str, ...]
    loss: Any
    their_logits: np.ndarray | None = None
    distill_weight: float = 0.0
    activation: str = "sigmoid"

    def of(self, logits: np.ndarray) -> dict[str, Any]:
        """The figures of one epoch, JSON-ready: loss, AUROC of the hard labels, and with a teacher the objective.

        ``dev_objective`` is what training minimises, on dev and without the term of the maps:
        ``(1 - w) * loss(labels) + w * cross-entropy(teacher's probabilities)``. Where the loss is no number, there is
        nothing else to say.
        """
        loss = float(self.loss(self.labels, logits))
        if not math.isfinite(loss):
            return {"dev_loss": loss}
        hard = np.where((self.labels == 0) | (self.labels == 1), self.labels, np.nan)
        exclusive = self.activation == "softmax"
        ranked = class_log_odds(logits) if exclusive else logits
        per_finding = auroc_per_finding(hard, ranked)
        found = {
            "dev_loss": loss,
            "dev_auroc": _or_none(mean_auroc(hard, ranked)),
            "auroc": {name: _or_none(value) for name, value in zip(self.findings, per_finding, strict=True)},
        }
        if exclusive:
            known = np.isfinite(hard).all(axis=1)
            right = hard[known].argmax(axis=1) == logits[known].argmax(axis=1)
            found["dev_accuracy"] = float(right.mean()) if known.any() else None
        if self.their_logits is None:
            return found
        theirs, ours = self.their_logits.astype(np.float64), logits.astype(np.float64)
        pull = float(distillation_loss(theirs, ours, self.activation))
        return {**found, "dev_objective": (1.0 - self.distill_weight) * loss + self.distill_weight * pull}


def best_epoch(history: Sequence[Mapping[str, Any]], first: int) -> int:
    """The best of the epochs from ``first`` on, counted from 1; 0 if none counts yet.

    With a teacher it is the one with the lowest objective: a few hundred dev films, of which a good network orders all
    but a handful of pairs rightly, hardly tell epochs apart by AUROC, while their distance to the teacher does.
    Without one it is the one with the highest AUROC, the lower loss among equals.
    """
    counted = history[first - 1 :]
    if not counted:
        return 0
    if all("dev_objective" in entry for entry in counted):
        return int(min(counted, key=lambda entry: entry["dev_objective"])["epoch"])
    best = max(counted, key=lambda entry: (_or_minus_infinity(entry["dev_auroc"]), -entry["dev_loss"]))
    return int(best["epoch"])


def _or_none(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else float(value)


def _or_minus_infinity(value: float | None) -> float:
    return -math.inf if value is None else value

"""What a step did to a model, judged on the dev films: never on one number alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from cxr_compress.metrics import mean_auroc

FloatArray = npt.NDArray[np.float32]

# AUROC on a few hundred films moves by steps and may stay where it was while the outputs fall apart; these two see
# that. Rounding to int8 a DenseNet121 thinned to 0.8 M parameters moved its loss by 4 % and its logits by 0.05 of their
# spread, and its AUROC by 0.0002.
LARGEST_LOSS_RISE = 0.1
LARGEST_LOGIT_DISTANCE = 0.2


@dataclass(frozen=True)
class Harm:
    """A candidate against its reference on the same films.

    Attributes:
        auroc: of the candidate, mean over findings.
        auroc_drop: the reference's minus that; below 0 where the candidate is the better one.
        loss: of the candidate, as in training.
        loss_rise: how much larger than the reference's, as a share of it.
        logit_distance: root mean square of the difference of the logits, in standard deviations of the reference's.
    """

    auroc: float
    auroc_drop: float
    loss: float
    loss_rise: float
    logit_distance: float

    def broken(self, max_auroc_drop: float) -> list[str]:
        """What does not hold, in words; empty where everything does."""
        bounds = {
            "AUROC drop": (self.auroc_drop, max_auroc_drop),
            "rise of the loss": (self.loss_rise, LARGEST_LOSS_RISE),
            "distance of the logits": (self.logit_distance, LARGEST_LOGIT_DISTANCE),
        }
        # Not "found > bound": a NaN must not pass.
        return [f"{name} {found:.4f} above {bound:g}" for name, (found, bound) in bounds.items() if not found <= bound]

    def to_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return asdict(self)


def measure_harm(labels: FloatArray, logits: FloatArray, reference: FloatArray, pos_weight: FloatArray) -> Harm:
    """Compare two models' logits.

    Args:
        labels: (films, findings), 0 to 1, NaN for unknown.
        logits: of the candidate, likewise.
        reference: of the model it came from.
        pos_weight: (findings,) of the training loss.
    """
    hard = np.where((labels == 0) | (labels == 1), labels, np.nan)
    auroc, before = mean_auroc(hard, logits), mean_auroc(hard, reference)
    now, then = (weighted_cross_entropy(labels, found, pos_weight) for found in (logits, reference))
    return Harm(auroc, before - auroc, now, (now - then) / then, logit_distance(logits, reference))


def weighted_cross_entropy(labels: npt.ArrayLike, logits: npt.ArrayLike, pos_weight: npt.ArrayLike = 1.0) -> float:
    """Mean over the known labels of the loss that training minimises, (films, findings) each.

    Source: as `train.losses.WeightedBce`, in numpy.
    """
    truth, found = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    terms = np.asarray(pos_weight) * truth * np.logaddexp(0, -found) + (1 - truth) * np.logaddexp(0, found)
    return float(np.nanmean(terms))


def logit_distance(logits: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Root mean square distance of (films, findings) logits, in standard deviations of the reference's, per finding."""
    uncut = np.asarray(reference, np.float64)
    spread = uncut.std(axis=0)
    spread[spread == 0] = 1.0  # a finding that the reference says the same of everywhere: its distance as it is
    return float(np.sqrt(np.mean(((np.asarray(logits, np.float64) - uncut) / spread) ** 2)))

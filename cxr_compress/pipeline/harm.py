"""What a step did to a model, judged on the dev films: never on one number alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from cxr_compress.metrics import categorical_cross_entropy, class_log_odds, mean_auroc

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
        auroc: of the candidate, mean over findings, or over classes that exclude one another, each against the others.
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


def measure_harm(
    labels: FloatArray,
    logits: FloatArray,
    reference: FloatArray,
    pos_weight: FloatArray,
    activation: str = "sigmoid",
) -> Harm:
    """Compare two models' logits.

    Args:
        labels: (films, findings), 0 to 1, NaN for unknown.
        logits: of the candidate, likewise.
        reference: of the model it came from.
        pos_weight: (findings,) of the training loss.
        activation: "sigmoid", or "softmax" for classes that exclude one another.
    """
    hard = np.where((labels == 0) | (labels == 1), labels, np.nan)
    auroc, before = (mean_auroc(hard, ranking(found, activation, pos_weight)) for found in (logits, reference))
    now, then = (training_loss(labels, found, pos_weight, activation) for found in (logits, reference))
    return Harm(auroc, before - auroc, now, (now - then) / then, logit_distance(logits, reference, activation))


def ranking(logits: npt.ArrayLike, activation: str, class_weight: npt.ArrayLike = 1.0) -> npt.NDArray[np.float64]:
    """What films are ordered by: (films, findings) logits as they are, or how likely a class is against the others.

    The weights of the loss move the latter, since it depends on all classes; they are undone, as in the delivered file.
    """
    found = np.asarray(logits, np.float64)
    return class_log_odds(found - np.log(np.asarray(class_weight))) if activation == "softmax" else found


def training_loss(
    labels: npt.ArrayLike, logits: npt.ArrayLike, pos_weight: npt.ArrayLike = 1.0, activation: str = "sigmoid"
) -> float:
    """The loss that training minimises, in numpy: categorical where classes exclude one another."""
    if activation == "softmax":
        return categorical_cross_entropy(labels, logits, pos_weight)
    return weighted_cross_entropy(labels, logits, pos_weight)


def weighted_cross_entropy(labels: npt.ArrayLike, logits: npt.ArrayLike, pos_weight: npt.ArrayLike = 1.0) -> float:
    """Mean over the known labels of the loss that training minimises, (films, findings) each.

    Source: as `train.losses.WeightedBce`, in numpy.
    """
    truth, found = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    terms = np.asarray(pos_weight) * truth * np.logaddexp(0, -found) + (1 - truth) * np.logaddexp(0, found)
    return float(np.nanmean(terms))


def logit_distance(logits: npt.ArrayLike, reference: npt.ArrayLike, activation: str = "sigmoid") -> float:
    """Root mean square distance of (films, findings) logits, in standard deviations of the reference's, per finding.

    A softmax does not see what all logits of a film have in common: then it is taken off first.
    """
    found, uncut = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    if activation == "softmax":
        found, uncut = (values - values.mean(axis=1, keepdims=True) for values in (found, uncut))
    spread = uncut.std(axis=0)
    spread[spread == 0] = 1.0  # a finding that the reference says the same of everywhere: its distance as it is
    return float(np.sqrt(np.mean(((found - uncut) / spread) ** 2)))

"""Whether a compressed model may stand in for the one it came from: bounds on what it may lose, decided beforehand."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import DataError
from cxr_compress.evaluate.finding import class_differences, interval_dict
from cxr_compress.evaluate.score import Evaluation
from cxr_compress.metrics import (
    Interval,
    auroc_per_finding,
    auroc_samples,
    bootstrap_mean,
    categorical_cross_entropy,
    class_log_odds,
    interval,
    mean_auroc,
)


@dataclass(frozen=True)
class Difference:
    """AUROC of a candidate minus that of its reference; below 0 is degradation.

    Attributes:
        mean_auroc: Of the means over findings, with the paired interval.
        per_finding: Finding -> difference with its paired interval.
        decisions_changed: Share of the decisions (image and finding) that differ; None where a model decides nothing.
            Of classes that exclude one another the share of images whose predicted class differs.
        accuracy: Likewise of the share of images whose predicted class is right, where classes exclude one another.
        balanced_accuracy: Likewise of its mean over classes.
    """

    mean_auroc: Interval
    per_finding: dict[str, Interval]
    decisions_changed: float | None
    accuracy: Interval | None = None
    balanced_accuracy: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        of_classes = {"accuracy": self.accuracy, "balanced_accuracy": self.balanced_accuracy}
        return {
            "mean_auroc": interval_dict(self.mean_auroc),
            "findings": {finding: interval_dict(change) for finding, change in self.per_finding.items()},
            "decisions_changed": self.decisions_changed,
            **{name: interval_dict(change) for name, change in of_classes.items() if change is not None},
        }


def auroc_difference(candidate: Evaluation, reference: Evaluation) -> Difference:
    """Candidate minus reference, measured on the same resampled patients.

    An interval that includes 0 does not show that nothing was lost: look at its lower end.

    Args:
        candidate: The compressed file, say.
        reference: The original one, scored on the same images.

    Raises:
        DataError: The two were not scored on the same images and findings, or give classes that exclude one another
            and findings of their own.
    """
    same = candidate.findings == reference.findings and candidate.patients == reference.patients
    if not same or not np.array_equal(candidate.labels, reference.labels, equal_nan=True):
        raise DataError(
            f"a difference needs two files scored on the same images, got {len(candidate.labels)} and "
            f"{len(reference.labels)} images that differ in findings, patients or labels; score both on one set"
        )
    if candidate.activation != reference.activation:
        raise DataError(
            f"a difference needs two files of one kind, got probabilities by {candidate.activation} and by "
            f"{reference.activation}: classes that exclude one another cannot be compared with findings of their own"
        )
    values = auroc_per_finding(candidate.labels, candidate.ranking) - auroc_per_finding(
        reference.labels, reference.ranking
    )
    drawn = _drawn(candidate, candidate) - _drawn(reference, candidate)
    per_finding = {finding: interval(float(values[k]), drawn[:, k]) for k, finding in enumerate(candidate.findings)}
    changed: float | None = None
    of_classes: tuple[Interval | None, Interval | None] = (None, None)
    if candidate.decisions is not None and reference.decisions is not None:
        differs = candidate.decisions != reference.decisions
        changed = float(np.mean(differs.any(axis=1) if candidate.shares is not None else differs))
        if candidate.classes is not None and reference.classes is not None:
            both, options = (candidate.decisions, reference.decisions), {"samples": candidate.samples}
            of_classes = class_differences(candidate.labels, both, candidate.patients, seed=candidate.seed, **options)
    return Difference(bootstrap_mean(values, drawn), per_finding, changed, *of_classes)


def _drawn(scored: Evaluation, options: Evaluation) -> np.ndarray:
    """(samples, k) AUROCs on the resampled sets of ``options``."""
    return auroc_samples(scored.labels, scored.ranking, scored.patients, samples=options.samples, seed=options.seed)


_CHANCE = 0.5
_ONE_SIDED = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Gate:
    """The verdict on one candidate.

    Attributes:
        loss: AUROC, or balanced accuracy, of the reference minus that of the candidate.
        upper_bound: the one-sided 97.5 % bound of that loss, from resampled patients in pairs.
        max_loss: what `loss` may be at most.
        margin: what `upper_bound` must stay below.
        power: how often a candidate that is truly as good as its reference passes on a test set like this one; a low
            value says that the images are too few to tell.
    """

    loss: float
    upper_bound: float
    max_loss: float
    margin: float
    power: float

    @property
    def small_loss(self) -> bool:
        """Whether the loss, as measured, is small enough."""
        return self.loss <= self.max_loss

    @property
    def non_inferior(self) -> bool:
        """Whether a loss of the margin or more is ruled out."""
        return self.upper_bound < self.margin

    @property
    def holds(self) -> bool:
        """Both."""
        return self.small_loss and self.non_inferior

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, verdicts included."""
        return {
            **asdict(self),
            "small_loss": self.small_loss,
            "non_inferior": self.non_inferior,
            "holds": self.holds,
        }


def judge_difference(
    difference: Difference, *, max_loss: float, margin: float, reference: Interval | None = None
) -> dict[str, Any]:
    """The verdict on a candidate, JSON-ready: `Gate.to_dict` of the mean AUROC.

    Of classes that exclude one another the balanced accuracy is judged by the same bounds beside the mean one-vs-rest
    AUROC ("balanced_accuracy"), and the gate "holds" where both do: an AUROC does not see which class is predicted.

    Args:
        difference: candidate minus reference, on the same images.
        max_loss: as `judge_loss`, like `margin`.
        margin: see there.
        reference: the mean AUROC of the reference. Where its interval reaches down to 0.5 nothing can be lost, so
            nothing is shown: the gate does not hold, and says why ("reason").
    """
    found = judge_loss(difference.mean_auroc, max_loss=max_loss, margin=margin)
    verdict: dict[str, Any] = {**found.to_dict(), "reason": _no_reference(reference)}
    if difference.balanced_accuracy is not None:
        other = judge_loss(difference.balanced_accuracy, max_loss=max_loss, margin=margin)
        verdict |= {"balanced_accuracy": other.to_dict(), "holds": found.holds and other.holds}
    return {**verdict, "holds": verdict["holds"] and not verdict["reason"]}


def _no_reference(reference: Interval | None) -> str:
    """Why a reference is none to compare with; "" where nothing speaks against it."""
    if reference is None or math.isnan(reference.low) or reference.low > _CHANCE:
        return ""
    return (
        f"the original is no better than chance here (AUROC {reference.value:.3f} [{reference.low:.3f}, "
        f"{reference.high:.3f}]), so no loss can be measured against it"
    )


def judge_loss(difference: Interval, *, max_loss: float, margin: float) -> Gate:
    """Judge the difference of two AUROCs, or of two balanced accuracies, measured on the same images.

    Args:
        difference: candidate minus reference with its paired 95 % interval, whose lower end is the one-sided 97.5 %
            bound of the loss.
        max_loss: what may be lost, as measured.
        margin: what may be lost at most, given the doubt.

    Source: ICH E9, section 3.3.2 (non-inferiority); the power is that of a normal difference with the spread that the
    interval shows.
    """
    spread = (difference.high - difference.low) / (2 * _ONE_SIDED)
    if math.isnan(spread):
        power = math.nan
    elif spread <= 0:
        power = 1.0
    else:
        power = NormalDist().cdf(margin / spread - _ONE_SIDED)
    return Gate(-difference.value, -difference.low, max_loss, margin, power)


FloatArray = npt.NDArray[np.float32]

# AUROC on a few hundred images moves by steps and may stay where it was while the outputs fall apart; these two see
# that. Rounding to int8 a DenseNet121 pruned to 0.8 M parameters moved its loss by 4 % and its logits by 0.05 of their
# spread, and its AUROC by 0.0002.
LARGEST_LOSS_RISE = 0.1
LARGEST_LOGIT_DISTANCE = 0.2


@dataclass(frozen=True)
class Degradation:
    """A candidate against its reference on the same images.

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


def measure_degradation(
    labels: FloatArray,
    logits: FloatArray,
    reference: FloatArray,
    pos_weight: FloatArray,
    activation: str = "sigmoid",
) -> Degradation:
    """Compare two models' logits.

    Args:
        labels: (images, findings), 0 to 1, NaN for unknown.
        logits: of the candidate, likewise.
        reference: of the model it came from.
        pos_weight: (findings,) of the training loss.
        activation: "sigmoid", or "softmax" for classes that exclude one another.
    """
    hard = np.where((labels == 0) | (labels == 1), labels, np.nan)
    auroc, before = (mean_auroc(hard, ranking(found, activation, pos_weight)) for found in (logits, reference))
    now, then = (training_loss(labels, found, pos_weight, activation) for found in (logits, reference))
    return Degradation(auroc, before - auroc, now, (now - then) / then, logit_distance(logits, reference, activation))


def ranking(logits: npt.ArrayLike, activation: str, class_weight: npt.ArrayLike = 1.0) -> npt.NDArray[np.float64]:
    """What images are ordered by: (images, findings) logits as they are, or how likely a class is against the others.

    The weights of the loss move the latter, since it depends on all classes; they are undone, as in the delivered file.
    """
    found = np.asarray(logits, np.float64)
    return class_log_odds(found - np.log(np.asarray(class_weight))) if activation == "softmax" else found


def training_loss(
    labels: npt.ArrayLike, logits: npt.ArrayLike, pos_weight: npt.ArrayLike = 1.0, activation: str = "sigmoid"
) -> float:
    """The loss that training minimizes, in numpy: categorical where classes exclude one another."""
    if activation == "softmax":
        return categorical_cross_entropy(labels, logits, pos_weight)
    return weighted_cross_entropy(labels, logits, pos_weight)


def weighted_cross_entropy(labels: npt.ArrayLike, logits: npt.ArrayLike, pos_weight: npt.ArrayLike = 1.0) -> float:
    """Mean over the known labels of the loss that training minimizes, (images, findings) each.

    Source: as `train.losses.WeightedBce`, in numpy.
    """
    truth, found = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    terms = np.asarray(pos_weight) * truth * np.logaddexp(0, -found) + (1 - truth) * np.logaddexp(0, found)
    return float(np.nanmean(terms))


def logit_distance(logits: npt.ArrayLike, reference: npt.ArrayLike, activation: str = "sigmoid") -> float:
    """Root mean square distance of (images, findings) logits, in standard deviations of the reference's, per finding.

    A softmax does not see what all logits of an image have in common: then it is taken off first.
    """
    found, original = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    if activation == "softmax":
        found, original = (values - values.mean(axis=1, keepdims=True) for values in (found, original))
    spread = original.std(axis=0)
    spread[spread == 0] = 1.0  # a finding that the reference says the same of everywhere: its distance as it is
    return float(np.sqrt(np.mean(((found - original) / spread) ** 2)))

"""What a model lost against the one that it was made from, on the same images, and whether that is little enough.

The one comparison of the project: of two files on test, by which the gate decides, and of logits on dev, by which a
search and the choice between int8 after and in training decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import DataError
from cxr_compress.evaluate.finding import class_differences, interval_dict, or_none
from cxr_compress.evaluate.score import Evaluation
from cxr_compress.metrics import (
    LEVEL,
    Interval,
    auroc_per_finding,
    auroc_samples,
    bootstrap_mean,
    categorical_cross_entropy,
    class_log_odds,
    interval,
    power_of,
)

Array = npt.NDArray[np.float64]

# AUROC on a few hundred images moves by steps and may stay where it was while the outputs fall apart; these two see
# that. Rounding to int8 a DenseNet121 pruned to 0.8 M parameters moved its loss by 4 % and its logits by 0.05 of their
# spread, and its AUROC by 0.0002.
LARGEST_LOSS_RISE = 0.1
LARGEST_LOGIT_DISTANCE = 0.2
_CHANCE = 0.5


@dataclass(frozen=True)
class Degradation:
    """A candidate against its reference on the same images; a drop below 0 means that the candidate is the better one.

    Attributes:
        auroc: of the candidate, mean over findings, or over classes that exclude one another, each against the others;
            with its interval over resampled patients, like all that follow.
        auroc_drop: the reference's AUROC minus that, on the same resampled patients.
        findings: finding -> drop of its AUROC.
        loss: of the candidate, as in training.
        loss_rise: how much larger than the reference's, as a share of it.
        logit_distance: root mean square of the difference of the logits, in standard deviations of the reference's.
        decisions_changed: share of the decisions (image and finding) that differ; of classes that exclude one another
            the share of images whose predicted class differs. None where a model decides nothing.
        accuracy_drop: of the share of images whose predicted class is right, where classes exclude one another.
        balanced_accuracy_drop: of its mean over classes.
    """

    auroc: Interval
    auroc_drop: Interval
    findings: dict[str, Interval]
    loss: float
    loss_rise: float
    logit_distance: float
    decisions_changed: float | None = None
    accuracy_drop: Interval | None = None
    balanced_accuracy_drop: Interval | None = None

    def broken(self, max_auroc_drop: float) -> list[str]:
        """Which bounds on AUROC, loss and logits do not hold, in words; empty where all do."""
        bounds = {
            "AUROC drop": (self.auroc_drop.value, max_auroc_drop),
            "rise of the loss": (self.loss_rise, LARGEST_LOSS_RISE),
            "distance of the logits": (self.logit_distance, LARGEST_LOGIT_DISTANCE),
        }
        # Not "value > bound": a NaN must not pass.
        return [f"{name} {value:.4f} above {bound:g}" for name, (value, bound) in bounds.items() if not value <= bound]

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        of_classes = {"accuracy_drop": self.accuracy_drop, "balanced_accuracy_drop": self.balanced_accuracy_drop}
        return {
            "auroc": interval_dict(self.auroc),
            "auroc_drop": interval_dict(self.auroc_drop),
            "findings": {finding: interval_dict(drop) for finding, drop in self.findings.items()},
            **{name: or_none(getattr(self, name)) for name in ("loss", "loss_rise", "logit_distance")},
            "decisions_changed": self.decisions_changed,
            **{name: interval_dict(drop) for name, drop in of_classes.items() if drop is not None},
        }


def measure_degradation(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    reference: npt.ArrayLike,
    patients: Sequence[str],
    *,
    findings: Sequence[str] = (),
    pos_weight: npt.ArrayLike = 1.0,
    activation: str = "sigmoid",
    samples: int = 1000,
    seed: int = 0,
) -> Degradation:
    """Compare the logits of two models.

    Args:
        labels: (images, findings), 0 to 1, NaN where unknown; soft ones count in the loss alone.
        logits: (images, findings) of the candidate.
        reference: (images, findings), logits of the model that it came from.
        patients: (images,) whose they are; intervals resample these.
        findings: names of the columns; without them drops are not given finding by finding.
        pos_weight: (findings,) or one number: what the training loss counts positives with.
        activation: "sigmoid", or "softmax" for classes that exclude one another.
        samples: resampled sets behind an interval.
        seed: of the resampling.

    Raises:
        DataError: labels and logits have several shapes.
    """
    rankings = [_ranking(values, activation, pos_weight) for values in (logits, reference)]
    options: dict[str, Any] = {"findings": findings, "samples": samples, "seed": seed}
    return _measure(
        labels, (logits, reference), rankings, patients, pos_weight=pos_weight, activation=activation, **options
    )


def compare(candidate: Evaluation, reference: Evaluation) -> Degradation:
    """Compare two scored files: as `measure_degradation`, and what became of their decisions.

    Raises:
        DataError: as `check_comparable`.
    """
    check_comparable(candidate, reference)
    options: dict[str, Any] = {"samples": candidate.samples, "seed": candidate.seed}
    degradation = _measure(
        candidate.labels,
        (candidate.logits, reference.logits),
        (candidate.ranking, reference.ranking),
        candidate.patients,
        findings=candidate.findings,
        pos_weight=1.0,
        activation=candidate.activation,
        drawn=_paired_draws(candidate, reference),
        **options,
    )
    if candidate.decisions is None or reference.decisions is None:
        return degradation
    differs = candidate.decisions != reference.decisions
    changed = float(np.mean(differs.any(axis=1) if candidate.shares is not None else differs))
    degradation = replace(degradation, decisions_changed=changed)
    if candidate.classes is None or reference.classes is None:
        return degradation
    both = (reference.decisions, candidate.decisions)
    accuracy, balanced = class_differences(candidate.labels, both, candidate.patients, **options)
    return replace(degradation, accuracy_drop=accuracy, balanced_accuracy_drop=balanced)


def check_comparable(candidate: Evaluation, reference: Evaluation) -> None:
    """Refuse two files that were not scored on the same images.

    Raises:
        DataError: the two were not scored on the same images and findings, or one gives classes that exclude one
            another and the other findings of their own.
    """
    same = candidate.findings == reference.findings and candidate.patients == reference.patients
    if not same or not np.array_equal(candidate.labels, reference.labels, equal_nan=True):
        raise DataError(
            f"a comparison needs two files scored on the same images, got {len(candidate.labels)} and "
            f"{len(reference.labels)} images that differ in findings, patients or labels; score both on one set"
        )
    if candidate.activation != reference.activation:
        raise DataError(
            f"a comparison needs two files of one kind, got probabilities by {candidate.activation} and by "
            f"{reference.activation}: classes that exclude one another cannot be compared with findings of their own"
        )


def _paired_draws(candidate: Evaluation, reference: Evaluation) -> list[Array]:
    """The AUROCs of both on the same resampled patients, where they were kept."""
    same = (candidate.samples, candidate.seed) == (reference.samples, reference.seed)
    return [one.drawn.auroc for one in (candidate, reference) if one.drawn is not None] if same else []


def _measure(
    labels: npt.ArrayLike,
    logits: Sequence[npt.ArrayLike],
    rankings: Sequence[npt.ArrayLike],
    patients: Sequence[str],
    *,
    findings: Sequence[str],
    pos_weight: npt.ArrayLike,
    activation: str,
    samples: int,
    seed: int,
    drawn: Sequence[Array] = (),
) -> Degradation:
    """The comparison of two models by their logits and by what they rank images with, the candidate's first.

    `drawn` are their AUROCs on the same resampled patients, where both are known.
    """
    truth, ours, theirs = (np.asarray(values, np.float64) for values in (labels, *logits))
    if not truth.shape == ours.shape == theirs.shape:
        raise DataError(
            f"expected labels and logits of one shape, got {truth.shape}, {ours.shape} and {theirs.shape}: score both "
            "models on the same images"
        )
    # A soft label has no side to be ranked on; the loss takes it as it is.
    hard = np.where((truth == 0) | (truth == 1), truth, np.nan)
    values, reference_values = (auroc_per_finding(hard, ranking) for ranking in rankings)
    if len(drawn) < len(rankings):
        drawn = [auroc_samples(hard, one, patients, samples=samples, seed=seed) for one in rankings]
    drops, drawn_drops = reference_values - values, drawn[1] - drawn[0]
    loss, reference_loss = (training_loss(truth, one, pos_weight, activation) for one in (ours, theirs))
    return Degradation(
        bootstrap_mean(values, drawn[0]),
        bootstrap_mean(drops, drawn_drops),
        {name: interval(float(drops[k]), drawn_drops[:, k]) for k, name in enumerate(findings)},
        loss,
        (loss - reference_loss) / reference_loss if reference_loss else math.nan,
        logit_distance(ours, theirs, activation),
    )


def _ranking(logits: npt.ArrayLike, activation: str, class_weight: npt.ArrayLike) -> Array:
    """What images are ordered by: (images, findings) logits as they are, or how likely a class is against the others.

    The weights of the loss move the latter, since it depends on all classes; they are undone, as in the delivered file.
    """
    values = np.asarray(logits, np.float64)
    return class_log_odds(values - np.log(np.asarray(class_weight))) if activation == "softmax" else values


def training_loss(
    labels: npt.ArrayLike, logits: npt.ArrayLike, pos_weight: npt.ArrayLike = 1.0, activation: str = "sigmoid"
) -> float:
    """The loss that training minimizes, as a mean over the known labels: categorical where classes exclude one another.

    Source: as `train.losses.WeightedBce`, in numpy.
    """
    if activation == "softmax":
        return categorical_cross_entropy(labels, logits, pos_weight)
    truth, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    terms = np.asarray(pos_weight) * truth * np.logaddexp(0, -z) + (1 - truth) * np.logaddexp(0, z)
    return float(np.nanmean(terms))


def logit_distance(logits: npt.ArrayLike, reference: npt.ArrayLike, activation: str = "sigmoid") -> float:
    """Root mean square distance of (images, findings) logits, in standard deviations of the reference's, per finding.

    A softmax does not see what all logits of an image have in common: then it is taken off first.
    """
    return float(np.sqrt(np.mean(squared_distances(logits, reference, activation))))


def squared_distances(logits: npt.ArrayLike, reference: npt.ArrayLike, activation: str = "sigmoid") -> Array:
    """(images, findings): what `logit_distance` is the root of the mean of."""
    ours, theirs = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    if activation == "softmax":
        ours, theirs = (values - values.mean(axis=1, keepdims=True) for values in (ours, theirs))
    spread = theirs.std(axis=0)
    spread[spread == 0] = 1.0  # a finding that the reference says the same of everywhere: its distance as it is
    return np.asarray(((ours - theirs) / spread) ** 2)


@dataclass(frozen=True)
class Gate:
    """Whether a loss of AUROC, or of balanced accuracy, is small enough.

    Attributes:
        loss: of the reference minus that of the candidate.
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

    @classmethod
    def of(cls, drop: Interval, *, max_loss: float, margin: float) -> Gate:
        """The gate of one drop.

        Args:
            drop: reference minus candidate with its paired 95 % interval, whose upper end is the one-sided 97.5 % bound
                of the loss.
            max_loss: what may be lost, as measured.
            margin: what may be lost at most, given the doubt.

        Source: ICH E9, section 3.3.2 (non-inferiority); the power is that of a normal difference with the spread that
        the interval shows.
        """
        spread = (drop.high - drop.low) / (2 * NormalDist().inv_cdf(1 - LEVEL))
        return cls(drop.value, drop.high, max_loss, margin, power_of(spread, margin))

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
        """Whether both hold."""
        return self.small_loss and self.non_inferior

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values, what holds included."""
        return {
            **asdict(self),
            "small_loss": self.small_loss,
            "non_inferior": self.non_inferior,
            "holds": self.holds,
        }


def check_gate(
    degradation: Degradation, *, max_loss: float, margin: float, reference: Interval | None = None
) -> dict[str, Any]:
    """Whether a candidate passes, JSON-ready: `Gate.to_dict` of the mean AUROC.

    Of classes that exclude one another the balanced accuracy has to keep the same bounds beside the mean one-vs-rest
    AUROC ("balanced_accuracy"), and the gate "holds" where both do: an AUROC does not see which class is predicted.

    Args:
        degradation: of the candidate.
        max_loss: as in `Gate`.
        margin: as in `Gate`.
        reference: the mean AUROC of the reference. Where its interval reaches down to 0.5 nothing can be lost, so
            nothing is shown: the gate does not hold, and says why ("reason").
    """
    gate = Gate.of(degradation.auroc_drop, max_loss=max_loss, margin=margin)
    verdict: dict[str, Any] = {**gate.to_dict(), "reason": no_better_than_chance(reference)}
    if degradation.balanced_accuracy_drop is not None:
        other = Gate.of(degradation.balanced_accuracy_drop, max_loss=max_loss, margin=margin)
        verdict |= {"balanced_accuracy": other.to_dict(), "holds": gate.holds and other.holds}
    return {**verdict, "holds": verdict["holds"] and not verdict["reason"]}


def no_better_than_chance(reference: Interval | None) -> str:
    """Why nothing can be compared with a reference; "" where something can."""
    if reference is None or math.isnan(reference.low) or reference.low > _CHANCE:
        return ""
    return (
        f"the original is no better than chance here (AUROC {reference.value:.3f} [{reference.low:.3f}, "
        f"{reference.high:.3f}]), so no loss can be measured against it"
    )

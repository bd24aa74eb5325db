"""What was measured for one finding, and how that is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_compress.metrics import (
    ENOUGH_IMAGES,
    Interval,
    ReliabilityBin,
    auroc_per_finding,
    auroc_samples,
    average_precision,
    average_precision_samples,
    bootstrap_mean,
    brier_score,
    check_exclusive,
    class_hits,
    confusion_matrix,
    count_images,
    expected_calibration_error,
    interval,
    mean_samples,
    reliability,
    sensitivity_at,
    sensitivity_at_samples,
    sensitivity_specificity,
)
from cxr_compress.metrics.ranking import mean_defined

FIXED = 0.95  # the specificity, or the sensitivity, at which the other of the two is reported
NOT_ENOUGH_DATA = "not enough data"
UNDEFINED = Interval(float("nan"), float("nan"), float("nan"))
Flags = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FindingScore:
    """How well one finding is told apart; images whose label is unknown count nowhere but in `unknown`.

    Attributes:
        finding: its name.
        positives: images that have it.
        negatives: images that do not.
        auroc: with its interval; nan where undefined.
        threshold: on the probability, from the model file; nan where it has none.
        sensitivity: share of the positives at or above the threshold; nan without positives or threshold.
        specificity: share of the negatives below it; nan without negatives or threshold.
        distinct_codes: number of different outputs on this set: few mean ties, and thresholds that cannot be met.
        unknown: images of which nobody knows.
        average_precision: with its interval; nan without positives.
        sensitivity_interval: `sensitivity` with its interval.
        specificity_interval: `specificity` with its interval.
        brier: Brier score with its interval; nan where the model gives no calibrated probabilities.
        ece: expected calibration error, bins of equal mass; nan as `brier`.
        sensitivity_at: with its interval, at the threshold that leaves a specificity of `FIXED` on these very images:
            for comparisons, not what a threshold that was chosen before would give.
        specificity_at: the specificity with its interval, at a sensitivity of `FIXED`, likewise.
        reliability: what probabilities promise beside what happens, in ten bins; empty as `brier`.
    """

    finding: str
    positives: int
    negatives: int
    auroc: Interval
    threshold: float
    sensitivity: float
    specificity: float
    distinct_codes: int
    unknown: int = 0
    average_precision: Interval = UNDEFINED
    sensitivity_interval: Interval = UNDEFINED
    specificity_interval: Interval = UNDEFINED
    brier: Interval = UNDEFINED
    ece: float = float("nan")
    sensitivity_at: Interval = UNDEFINED
    specificity_at: Interval = UNDEFINED
    reliability: tuple[ReliabilityBin, ...] = ()

    @property
    def images(self) -> int:
        """Images with a known label."""
        return self.positives + self.negatives

    @property
    def enough_data(self) -> bool:
        """Whether both classes have the 20 images below which one image more or less changes the picture."""
        return min(self.positives, self.negatives) >= ENOUGH_IMAGES

    @property
    def reason(self) -> str | None:
        """Why the AUROC or its interval is undefined; None if both are defined."""
        if not self.positives or not self.negatives:
            return f"no image {'without' if self.positives else 'with'} the finding"
        if np.isnan(self.auroc.low):
            return "too few patients with the rarer class for an interval"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values; what is undefined is null, with a reason, and what rests on few images is marked."""
        fields: dict[str, Any] = {
            "images": self.images,
            "positives": self.positives,
            "negatives": self.negatives,
            "unknown": self.unknown,
            "enough_data": self.enough_data,
            "auroc": interval_dict(self.auroc),
            "average_precision": interval_dict(self.average_precision),
            "threshold": or_none(self.threshold),
            "sensitivity": or_none(self.sensitivity),
            "sensitivity_interval": interval_dict(self.sensitivity_interval),
            "specificity": or_none(self.specificity),
            "specificity_interval": interval_dict(self.specificity_interval),
            "sensitivity_at_95_specificity": interval_dict(self.sensitivity_at),
            "specificity_at_95_sensitivity": interval_dict(self.specificity_at),
            "brier": interval_dict(self.brier),
            "ece": or_none(self.ece),
            "reliability": [one._asdict() for one in self.reliability],
            "distinct_codes": self.distinct_codes,
        }
        if not self.enough_data:
            fields["mark"] = f"{NOT_ENOUGH_DATA}: fewer than {ENOUGH_IMAGES} images with or without the finding"
        return {**fields, "reason": self.reason} if self.reason else fields


@dataclass(frozen=True)
class Drawn:
    """Measurements on resampled patients, (samples, k) each; they share the resampled sets."""

    auroc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]
    brier: NDArray[np.float64]
    sensitivity_at: NDArray[np.float64]
    specificity_at: NDArray[np.float64]


def draw(
    labels: Floats,
    logits: Floats,
    patients: Sequence[str],
    *,
    decisions: Flags | None,
    probabilities: Floats | None,
    samples: int,
    seed: int,
) -> Drawn:
    """Measures everything that gets an interval on the same resampled patients."""
    none = np.full((samples, labels.shape[1]), np.nan)

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean_samples(values, patients, samples=samples, seed=seed)

    called = None if decisions is None else decisions.astype(np.float64)
    return Drawn(
        auroc_samples(labels, logits, patients, samples=samples, seed=seed),
        average_precision_samples(labels, logits, patients, samples=samples, seed=seed),
        none if called is None else means(np.where(labels == 1, called, np.nan)),
        none if called is None else means(np.where(labels == 0, 1 - called, np.nan)),
        none if probabilities is None else means((probabilities.astype(np.float64) - labels) ** 2),
        sensitivity_at_samples(labels, logits, patients, specificity=FIXED, samples=samples, seed=seed),
        sensitivity_at_samples(1 - labels, -logits, patients, specificity=FIXED, samples=samples, seed=seed),
    )


def score_findings(
    labels: Floats,
    logits: Floats,
    findings: Sequence[str],
    drawn: Drawn,
    *,
    decisions: Flags | None,
    thresholds: Sequence[float] | None,
    probabilities: Floats | None,
    codes: Floats | None = None,
) -> tuple[FindingScore, ...]:
    """One score per column; `codes` are the outputs to count where images are not ranked by them but by a softmax.

    Raises:
        DataError: a label is soft, a logit is nan, or a probability is outside [0, 1].
    """
    values = auroc_per_finding(labels, logits)
    positives, negatives = count_images(labels)

    def score(k: int) -> FindingScore:
        truth, nan = labels[:, k], float("nan")
        caught, spared = (nan, nan) if decisions is None else sensitivity_specificity(truth, decisions[:, k])
        chances = None if probabilities is None else probabilities[:, k]
        return FindingScore(
            finding=findings[k],
            positives=int(positives[k]),
            negatives=int(negatives[k]),
            auroc=interval(float(values[k]), drawn.auroc[:, k]),
            threshold=nan if thresholds is None else float(thresholds[k]),
            sensitivity=caught,
            specificity=spared,
            distinct_codes=len(np.unique((logits if codes is None else codes)[:, k])),
            unknown=int(np.isnan(truth).sum()),
            average_precision=interval(average_precision(truth, logits[:, k]), drawn.average_precision[:, k]),
            sensitivity_interval=interval(caught, drawn.sensitivity[:, k]),
            specificity_interval=interval(spared, drawn.specificity[:, k]),
            brier=UNDEFINED if chances is None else interval(brier_score(truth, chances), drawn.brier[:, k]),
            ece=nan if chances is None else expected_calibration_error(truth, chances),
            reliability=() if chances is None else reliability(truth, chances),
            sensitivity_at=interval(sensitivity_at(truth, logits[:, k], specificity=FIXED), drawn.sensitivity_at[:, k]),
            specificity_at=interval(
                sensitivity_at(1 - truth, -logits[:, k], specificity=FIXED), drawn.specificity_at[:, k]
            ),
        )

    return tuple(score(k) for k in range(len(findings)))


def interval_dict(measured: Interval) -> dict[str, float | None]:
    """Gives an interval as JSON-ready values: null, not nan, where it is undefined."""
    return {"value": or_none(measured.value), "low": or_none(measured.low), "high": or_none(measured.high)}


def or_none(value: float) -> float | None:
    """Null, not nan, for JSON."""
    return None if np.isnan(value) else value


WORDS = "classes that exclude one another: each image has exactly one"


@dataclass(frozen=True, eq=False)
class ClassScore:
    """The predicted classes against the true ones; images of unknown class count nowhere.

    Attributes:
        classes: (k,) their names.
        images: how many have a known class.
        accuracy: share of them whose predicted class is right, with its interval over resampled patients.
        balanced_accuracy: mean over classes of the share of a class's images that are called so, likewise; classes
            without an image are left out.
        confusion: int64 (k, k): images of the class of the row that were called the class of the column.
    """

    classes: tuple[str, ...]
    images: int
    accuracy: Interval
    balanced_accuracy: Interval
    confusion: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {
            "meaning": WORDS,
            "images": self.images,
            "accuracy": interval_dict(self.accuracy),
            "balanced_accuracy": interval_dict(self.balanced_accuracy),
            "confusion_matrix": {
                "rows": "true class",
                "columns": "predicted class",
                "classes": list(self.classes),
                "counts": self.confusion.tolist(),
            },
        }


def score_classes(
    labels: NDArray[np.float32],
    decisions: NDArray[np.bool_],
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> ClassScore:
    """Measures predicted classes.

    Args:
        labels: (n, k) with one 1 a row; NaN where the class is unknown.
        decisions: bool (n, k), one True a row.
        patients: (n,) the patient of each image.
        classes: (k,) their names.
        samples: resampled sets per interval.
        seed: of the resampling.

    Raises:
        DataError: an image has no class or several.
    """
    known = check_exclusive(labels, where="scored", names=tuple(classes))
    confusion = confusion_matrix(labels, decisions)
    if not known.any():
        return ClassScore(tuple(classes), 0, UNDEFINED, UNDEFINED, confusion)
    right, recalls, drawn = _measured(labels, decisions, patients, samples, seed)
    accuracy = interval(float(np.nanmean(right)), drawn[:, 0])
    return ClassScore(tuple(classes), int(known.sum()), accuracy, bootstrap_mean(recalls, drawn[:, 1:]), confusion)


def class_differences(
    labels: NDArray[np.float32],
    decisions: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    patients: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> tuple[Interval, Interval]:
    """Accuracy and balanced accuracy of the first decisions minus those of the second, on the same resampled patients.

    Args:
        labels: (n, k) with one 1 a row; NaN where the class is unknown.
        decisions: two of bool (n, k), one True a row.
        patients: (n,) the patient of each image.
        samples: resampled sets per interval.
        seed: of the resampling.
    """
    ours, theirs = (_measured(labels, called, patients, samples, seed) for called in decisions)
    if np.isnan(ours[0]).all():
        return UNDEFINED, UNDEFINED
    drawn = ours[2] - theirs[2]
    accuracy = interval(float(np.nanmean(ours[0]) - np.nanmean(theirs[0])), drawn[:, 0])
    return accuracy, bootstrap_mean(ours[1] - theirs[1], drawn[:, 1:])


def _measured(
    labels: NDArray[np.float32], decisions: NDArray[np.bool_], patients: Sequence[str], samples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(n,) right or not, (k,) recalls, and (samples, 1 + k) of accuracy and recalls; NaN where there is nothing."""
    hits = class_hits(labels, decisions)
    seen = ~np.isnan(hits)
    right = np.where(seen.any(axis=1), np.where(seen, hits, 0.0).sum(axis=1), np.nan)
    recalls = np.array([mean_defined(hits[:, k]) for k in range(hits.shape[1])])
    return right, recalls, mean_samples(np.column_stack([right, hits]), patients, samples=samples, seed=seed)

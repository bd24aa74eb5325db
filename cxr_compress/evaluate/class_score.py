"""What was measured of classes that exclude one another: how often the predicted one is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_compress.evaluate.finding_score import UNDEFINED, interval_dict
from cxr_compress.metrics import (
    Interval,
    bootstrap_mean,
    check_exclusive,
    class_hits,
    confusion_matrix,
    interval,
    mean_samples,
)
from cxr_compress.metrics.checks import mean_defined

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
        labels: as `score_classes`, like all that follow.
        decisions: of a candidate and of its reference.
        patients: see there.
        samples: see there.
        seed: see there.
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

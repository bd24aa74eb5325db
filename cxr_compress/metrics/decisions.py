"""From scores to decisions: thresholds, what they catch and miss, and how many images that rests on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.errors import DataError
from cxr_compress.metrics.ranking import Array, checked, checked_labels, mean_defined, rank, row_means

# Below this many images of the rarer class an AUROC moves by several hundredths when one image is read differently
# (its standard error is near 0.06 at 20 positives and an AUROC of 0.8: Hanley and McNeil 1982).
ENOUGH_IMAGES = 20


def count_images(labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many images have each finding and how many do not; images of unknown label are in neither.

    Args:
        labels: (n, k), 0, 1 or nan.

    Returns:
        Positives and negatives, (k,) each.

    Raises:
        DataError: a label is neither 0, 1 nor nan.
    """
    truth = checked_labels(labels)
    return (truth == 1).sum(axis=0), (truth == 0).sum(axis=0)


def has_enough_data(labels: ArrayLike) -> NDArray[np.bool_]:
    """Whether each finding has at least `ENOUGH_IMAGES` images with and as many without it, (k,).

    Raises:
        DataError: as `count_images`.
    """
    return np.minimum(*count_images(labels)) >= ENOUGH_IMAGES


def sensitivity_specificity(labels: ArrayLike, decisions: ArrayLike) -> tuple[float, float]:
    """The share of the images with a finding that were called positive, and of those without it that were not.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        decisions: (n,) bool, True for an image that was called positive.

    Returns:
        Both in [0, 1]; nan where no image of that class is there.

    Raises:
        DataError: lengths differ, or a label is neither 0, 1 nor nan.
    """
    truth, called = checked(labels, decisions)
    return mean_defined(called[truth == 1]), mean_defined(1 - called[truth == 0])


def choose_threshold(labels: ArrayLike, probabilities: ArrayLike, rule: str = "youden") -> float:
    """The probability from which on an image is called positive.

    `youden` maximizes sensitivity + specificity - 1, as if a missed finding and a false alarm cost the same and
    both classes were equally common; a clinic that screens will want a lower threshold. Of equally good thresholds
    the lowest (most sensitive) is taken. It lies half-way between two probabilities that occur, so that rounding on
    another machine does not flip a decision.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        probabilities: (n,) in [0, 1].
        rule: `youden`.

    Returns:
        A probability; 0 where calling every image positive is best (scores worse than chance).

    Raises:
        DataError: the labels hold one class only, or as in `auroc`.
        ValueError: an unknown rule.

    Source: Youden 1950, "Index for rating diagnostic tests".
    """
    if rule != "youden":
        raise ValueError(f"expected the rule 'youden', got {rule!r}")
    truth, values = checked(labels, probabilities)
    positives, negatives = count_images(truth[:, :1])
    if not positives[0] or not negatives[0]:
        raise DataError(
            f"a threshold needs images with and without the finding, got {positives[0]} with and {negatives[0]} "
            "without; use a larger set"
        )
    ranked = rank(truth[:, 0], values[:, 0])
    blocks = np.stack([ranked.positive, 1 - ranked.positive])
    per_block = np.add.reduceat(blocks, ranked.starts, axis=1)
    totals = per_block.sum(axis=1, keepdims=True)
    below = (np.cumsum(per_block, axis=1) - per_block) / totals  # share of each class below each distinct value
    best = int(np.argmax(np.round(below[1] - below[0], 12)))  # rounded: equal gains must not differ in the last bit
    distinct = values[ranked.order[ranked.starts], 0]
    return 0.0 if best == 0 else float((distinct[best - 1] + distinct[best]) / 2)


_SUM_TOLERANCE = 1e-3  # float32 shares of blended labels add up to 1 but for their rounding
_TWO = 2


def check_exclusive(labels: ArrayLike, *, where: str, names: tuple[str, ...] = ()) -> NDArray[np.bool_]:
    """Refuse labels that do not give each image one class, and say which rows count.

    Args:
        labels: (n, k), a row of 0 and 1 with one 1, or soft shares that add up to 1; NaN for unknown.
        where: which images these are, for the error.
        names: (k,) of the classes, likewise.

    Returns:
        bool (n,): the class is known. A row with an unknown label is left out as a whole.

    Raises:
        DataError: fewer than two classes, or rows with no class or with several; says how many and what to do.
    """
    table = np.asarray(labels, np.float64)
    if table.ndim != _TWO or table.shape[1] < _TWO:
        raise DataError(f"expected two or more classes that exclude one another, got labels of shape {table.shape}")
    known = np.asarray(np.isfinite(table).all(axis=1))
    totals = table[known].sum(axis=1)
    none, several = int((totals < 1 - _SUM_TOLERANCE).sum()), int((totals > 1 + _SUM_TOLERANCE).sum())
    if none or several:
        listed = f" ({', '.join(names)})" if names else ""
        raise DataError(
            f"classes that exclude one another{listed} need exactly one class for each image, but of {len(table)} "
            f"{where} images {none} have none and {several} have several: correct those rows, leave all their labels "
            "empty (unknown), or use a model of independent findings (sigmoid)"
        )
    return known


def softmax(logits: ArrayLike) -> Array:
    """Probabilities (n, k) of logits (n, k), each row adding up to 1; no overflow at extreme logits."""
    return probabilities_of(np.asarray(logits, np.float64), "softmax")


def class_log_odds(logits: ArrayLike) -> Array:
    """How likely each class is against all others together, as a log-odds: (n, k) of logits (n, k).

    The logit of one class alone does not rank images by its probability, which depends on the others too; this does,
    and where a probability rounds to 1 it still tells images apart.
    """
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    columns = [np.delete(z, column, axis=-1) for column in range(z.shape[-1])]
    # The log-sum of the others, from their own maximum: a difference of sums would lose it to rounding.
    tops = [others.max(axis=-1) for others in columns]
    pairs = zip(columns, tops, strict=True)
    rest = [top + np.log(np.exp(others - top[..., None]).sum(axis=-1)) for others, top in pairs]
    return np.asarray(z - np.stack(rest, axis=-1))


def categorical_cross_entropy(labels: ArrayLike, logits: ArrayLike, class_weight: ArrayLike = 1.0) -> float:
    """Mean over the images of known class of `-sum(weight * label * log(softmax(logits)))`; nan if there is none.

    Args:
        labels: (n, k), rows that add up to 1, or NaN.
        logits: (n, k).
        class_weight: (k,) or one number.
    """
    truth, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    shifted = z - z.max(axis=-1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    terms = -(np.asarray(class_weight) * truth * log_shares).sum(axis=1)
    return float(row_means(terms[None])[0])


def predicted_classes(probabilities: ArrayLike) -> NDArray[np.bool_]:
    """Exactly one True a row of (n, k) bool: the likeliest class, of equally likely ones the first."""
    values = np.asarray(probabilities)
    return np.asarray(np.arange(values.shape[1]) == values.argmax(axis=1)[:, None])


def confusion_matrix(labels: ArrayLike, decisions: ArrayLike) -> NDArray[np.int64]:
    """How often each class (row) was called each class (column): int64 (k, k).

    Args:
        labels: (n, k) with one 1 a row; rows with NaN are left out.
        decisions: bool (n, k), one True a row.
    """
    truth, called = np.asarray(labels, np.float64), np.asarray(decisions, np.int64)
    known = np.isfinite(truth).all(axis=1)
    return np.asarray((truth[known] == 1).astype(np.int64).T @ called[known])


def class_hits(labels: ArrayLike, decisions: ArrayLike) -> Array:
    """What accuracy and recall are means of: (n, k), 1 or 0 in the column of an image's class, NaN in all others."""
    truth = np.asarray(labels, np.float64)
    return np.where(truth == 1, np.asarray(decisions, np.float64), np.nan)


def brier_score(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean squared distance between probability and truth; lower is better, 0 is perfect.

    It mixes calibration with separation and falls with the prevalence: p (1 - p) is what a constant guess of the
    prevalence p scores, so compare it with that and only on the same images.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        probabilities: (n,) in [0, 1].

    Returns:
        A value in [0, 1], or nan if no label is known.

    Raises:
        DataError: as in `auroc`, or a probability is outside [0, 1].

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability", in its form for two classes.
    """
    truth, values = _checked_probabilities(labels, probabilities)
    return mean_defined((values[:, 0] - truth[:, 0]) ** 2)


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 15) -> float:
    """How far, on average, the mean probability of like images is from the share of them that has the finding.

    The bins are of equal *mass*: each holds about the same number of images. Bins of equal width would put nearly all
    images of a rare finding into the first one and hide what happens there. Images of equal probability (int8 outputs
    repeat) stay in one bin, that of the middle of their ranks, so the order of the images cannot matter. It is biased
    upwards on small sets: 15 bins of 20 images find about 0.05 in a perfectly calibrated model at 10 % prevalence.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        probabilities: (n,) in [0, 1].
        bins: how many.

    Returns:
        A value in [0, 1], or nan if no label is known.

    Raises:
        DataError: as in `brier_score`.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", with the bins of
    equal mass of Nixon et al. 2019, "Measuring calibration in deep learning".
    """
    places, chances, positive = _in_bins(labels, probabilities, bins)
    if not len(places):
        return float("nan")
    return float(np.abs(np.bincount(places, weights=chances - positive, minlength=bins)).sum() / len(places))


class ReliabilityBin(NamedTuple):
    """Images of like probability: its mean, the share of them that has the finding, and how many they are."""

    probability: float
    share: float
    images: int


def reliability(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """What probabilities promise beside what happens, in the bins of `expected_calibration_error`.

    Bins without an image are left out, and of few or repeated probabilities there are fewer.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        probabilities: (n,) in [0, 1].
        bins: at most how many.

    Raises:
        DataError: as in `brier_score`.
    """
    places, chances, positive = _in_bins(labels, probabilities, bins)
    counts = np.bincount(places, minlength=bins)
    kept = counts > 0
    sums = [np.bincount(places, weights=values, minlength=bins)[kept] for values in (chances, positive)]
    means = [(total / counts[kept]).tolist() for total in sums]
    return tuple(map(ReliabilityBin, *means, counts[kept].tolist()))


def _in_bins(labels: ArrayLike, probabilities: ArrayLike, bins: int) -> tuple[NDArray[np.int64], Array, Array]:
    """The bin of each image, its probability, and whether it has the finding; from the least probability on."""
    truth, values = _checked_probabilities(labels, probabilities)
    ranked = rank(truth[:, 0], values[:, 0])
    images = len(ranked.order)
    sizes = np.diff(ranked.starts, append=images)
    block_bin = ((ranked.starts + sizes / 2) / max(images, 1) * bins).astype(np.int64)
    return np.repeat(block_bin, sizes), values[ranked.order, 0], ranked.positive


def _checked_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    """Labels and probabilities as `checked` gives them, the latter in [0, 1]."""
    truth, values = checked(labels, probabilities)
    if values.min() < 0 or values.max() > 1:
        raise DataError(
            f"expected probabilities from 0 to 1, got {values.min():g} to {values.max():g}; give sigmoid(logit)"
        )
    return truth, values

"""Intervals: every measurement again on resampled patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.errors import DataError
from cxr_compress.metrics.ranking import (
    Array,
    Ranked,
    auroc_per_finding,
    checked,
    checked_labels,
    mean_defined,
    quotient,
    rank,
    row_means,
    weighted_auroc,
    weighted_average_precision,
    weighted_pairs,
    weighted_sensitivity_at,
)

Groups = Sequence[str] | Sequence[int] | NDArray[np.str_] | NDArray[np.int64]
Weigh = Callable[[NDArray[np.int64]], Array]  # image numbers -> how often each set drew them, (images, sets)
Measure = Callable[[Weigh], Array]  # -> one value a set

# Bounds the bootstrap's temporaries at half a million float64 (4 MB) each, whatever the number of images.
_CHUNK_VALUES = 500_000


@dataclass(frozen=True)
class Interval:
    """A value measured on the data at hand, and the range that resampled patients give it.

    Attributes:
        value: the measurement; nan where it is undefined.
        low: lower bound of the percentile interval; nan where it is undefined.
        high: upper bound of the percentile interval; nan where it is undefined.
    """

    value: float
    low: float
    high: float


def bootstrap_auroc(
    labels: ArrayLike, scores: ArrayLike, groups: Groups, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The AUROC, or the mean AUROC of several findings, with a percentile interval over resampled patients.

    A resampled set in which a finding has one class only leaves that finding out. Where nearly every image is ranked
    right the interval collapses towards its value: with few positives read it as a lower bound of the doubt.

    Args:
        labels: (n,) or (n, k), 0, 1 or nan.
        scores: like labels.
        groups: (n,) the patient of each image.
        samples: number of resampled sets.
        seed: the same seed gives the same interval, in whatever order the images come.
        level: the share of resampled sets inside the interval.

    Returns:
        The interval; all three nan if no finding has both classes.

    Raises:
        DataError: as in `auroc`, or `groups` has another length.
    """
    drawn = auroc_samples(labels, scores, groups, samples=samples, seed=seed)
    return bootstrap_mean(auroc_per_finding(labels, scores), drawn, level=level)


def auroc_samples(labels: ArrayLike, scores: ArrayLike, groups: Groups, *, samples: int = 1000, seed: int = 0) -> Array:
    """The AUROC of each finding in each set of resampled patients: what every interval here is made of.

    Args:
        labels: (n,) or (n, k), 0, 1 or nan.
        scores: like `labels`.
        groups: (n,) the patient of each image.
        samples: number of resampled sets; each draws as many patients as there are, with replacement.
        seed: sets of one seed are the same for every score, which is what pairs two models.

    Returns:
        (samples, k) float64, nan where a resampled set holds one class only.

    Raises:
        DataError: as in `auroc`, or `groups` has another length.
    """
    truth, values = checked(labels, scores)
    ranked = [rank(truth[:, k], values[:, k]) for k in range(truth.shape[1])]
    return resample([_weighted(weighted_auroc, one) for one in ranked], groups, len(truth), samples, seed)


def average_precision_samples(
    labels: ArrayLike, scores: ArrayLike, groups: Groups, *, samples: int = 1000, seed: int = 0
) -> Array:
    """The average precision of each finding in each set of resampled patients.

    Args:
        labels: (n,) or (n, k), 0, 1 or nan.
        scores: like `labels`.
        groups: (n,) the patient of each image.
        samples: number of resampled sets.
        seed: as in `auroc_samples`.

    Returns:
        (samples, k) float64, nan where a resampled set holds no image with the finding.

    Raises:
        DataError: as in `auroc_samples`.
    """
    truth, values = checked(labels, scores)
    ranked = [rank(truth[:, k], -values[:, k]) for k in range(truth.shape[1])]
    return resample([_weighted(weighted_average_precision, one) for one in ranked], groups, len(truth), samples, seed)


def sensitivity_at_samples(
    labels: ArrayLike, scores: ArrayLike, groups: Groups, *, specificity: float, samples: int = 1000, seed: int = 0
) -> Array:
    """The sensitivity of each finding at a specificity in each set of resampled patients.

    Args:
        labels: (n,) or (n, k), 0, 1 or nan.
        scores: like `labels`.
        groups: (n,) the patient of each image.
        specificity: as in `sensitivity_at`.
        samples: number of resampled sets.
        seed: as in `auroc_samples`.

    Returns:
        (samples, k) float64, nan where a resampled set holds one class only.

    Raises:
        DataError: as in `auroc_samples`.
    """

    def formula(ranked: Ranked, weights: Array) -> Array:
        return weighted_sensitivity_at(ranked, weights, specificity)

    truth, values = checked(labels, scores)
    ranked = [rank(truth[:, k], -values[:, k]) for k in range(truth.shape[1])]
    return resample([_weighted(formula, one) for one in ranked], groups, len(truth), samples, seed)


def mean_samples(values: ArrayLike, groups: Groups, *, samples: int = 1000, seed: int = 0) -> Array:
    """The mean of each column in each set of resampled patients: of decisions a share, of squared errors a Brier score.

    Args:
        values: (n, k); nan leaves an image out of that column.
        groups: (n,) the patient of each image.
        samples: as in `auroc_samples`.
        seed: as in `auroc_samples`.

    Returns:
        (samples, k) float64, nan where a set drew no image that counts.

    Raises:
        DataError: `groups` has another length.
    """
    columns = np.asarray(values, np.float64)
    patients, member = _patients(groups, len(columns))
    known = ~np.isnan(columns)
    # A mean needs only the sums of each patient: far fewer numbers to weigh than images.
    sums, counts = np.zeros((2, patients, columns.shape[1]))
    np.add.at(sums, member, np.where(known, columns, 0.0))
    np.add.at(counts, member, known)
    drawn = _draws(patients, len(columns), samples, seed)
    rows = [(weights.T @ sums, weights.T @ counts) for weights in drawn]
    return np.concatenate([quotient(top, bottom) for top, bottom in rows])


def interval(value: float, drawn: Array, *, level: float = 0.95, carriers: int | None = None) -> Interval:
    """A percentile interval from resampled values.

    Args:
        value: the measurement itself.
        drawn: (samples,) the same measurement on each resampled set; nan ones are left out.
        level: the share of them inside the interval.
        carriers: how many patients have the rarer class; the interval is widened for how few they are. None: it is not.

    Returns:
        Nan bounds if the value is undefined, fewer than half of the resampled sets define it or there is one carrier:
        then too few patients carry the rarer class for any interval.

    Source: the wider one is the expanded percentile interval of Hesterberg 2015, "What teachers should know about the
    bootstrap", which is as wide for a mean as Student's.
    """
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or 2 * len(defined) < len(drawn) or not len(defined):
        return Interval(value, float("nan"), float("nan"))
    outside = (1 - level) / 2
    if carriers is not None:
        if carriers <= 1:
            return Interval(value, float("nan"), float("nan"))
        wide = student_of(-NormalDist().inv_cdf(outside), carriers - 1) * math.sqrt(carriers / (carriers - 1))
        outside = NormalDist().cdf(-wide)
    low, high = np.quantile(defined, [outside, 1 - outside])
    return Interval(value, float(low), float(high))


def count_carriers(labels: ArrayLike, groups: Groups) -> int:
    """How many patients have an image of the class, 1 or 0, that fewer of them have.

    Args:
        labels: (n,) 0, 1 or nan.
        groups: (n,) the patient of each image.
    """
    truth, patients = np.asarray(labels, np.float64), np.asarray(groups)
    return min(len(np.unique(patients[truth == side])) for side in (0.0, 1.0))


def student_of(z: float, degrees: int) -> float:
    """The number of Student's distribution that is as extreme as `z` is among normal ones; `normal_of` undoes it.

    Source: Wallace 1959, "Bounds on normal approximations to Student's and the chi-square distributions"; off by less
    than 2 % from 5 degrees of freedom up, for |z| up to 3.
    """
    bent = z * (8 * degrees + 3) / (8 * degrees + 1)
    return math.copysign(math.sqrt(degrees * math.expm1(bent * bent / degrees)), z)


def normal_of(t: float, degrees: int) -> float:
    """The normal number that is as extreme as `t` is in Student's distribution."""
    bent = math.sqrt(degrees * math.log1p(t * t / degrees))
    return math.copysign(bent * (8 * degrees + 1) / (8 * degrees + 3), t)


def bootstrap_mean(values: Array, drawn: Array, *, level: float = 0.95) -> Interval:
    """The mean over findings with its interval, from what `auroc_per_finding` and `auroc_samples` gave.

    Args:
        values: (k,) the measurement per finding.
        drawn: (samples, k) the same on each resampled set; nan ones are left out of the mean of their set.
        level: the share of resampled sets inside the interval.
    """
    return interval(mean_defined(values), row_means(drawn), level=level)


def resample(measures: Sequence[Measure], groups: Groups, images: int, samples: int, seed: int) -> Array:
    """Every measurement on every resampled set, (samples, measures); all of them see the same sets.

    Raises:
        DataError: `groups` does not name one patient per image.
    """
    patients, member = _patients(groups, images)
    rows = [
        np.stack([measure(_weigher(counts, member)) for measure in measures], axis=1)
        for counts in _draws(patients, images, samples, seed)
    ]
    return np.concatenate(rows)


def _patients(groups: Groups, images: int) -> tuple[int, NDArray[np.int64]]:
    """How many patients there are, and the number of each image's."""
    if len(groups) != images:
        raise DataError(f"expected one patient per image, got {len(groups)} patients for {images} images")
    patients, member = np.unique(np.asarray(groups), return_inverse=True)
    return len(patients), member


def _weigher(counts: Array, member: NDArray[np.int64]) -> Weigh:
    """Looks up how often the patient of each image was drawn."""
    return lambda images: counts[member[images]]


def _weighted(formula: Callable[[Ranked, Array], Array], ranked: Ranked) -> Measure:
    """A formula on ranked images, ready for the weights of resampled sets."""
    return lambda weigh: formula(ranked, weigh(ranked.order))


def _draws(patients: int, images: int, samples: int, seed: int) -> Iterator[Array]:
    """How often each patient was drawn, (patients, chunk) at a time, `samples` columns in all."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_VALUES // max(images, 1))
    for first in range(0, samples, chunk):
        rows = min(chunk, samples - first)
        drawn = rng.integers(0, patients, (rows, patients)) + patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        yield np.ascontiguousarray(
            counts.T, np.float64
        )  # an image's counts side by side: gathering them is half the work


def stratified_auroc(labels: ArrayLike, scores: ArrayLike, strata: Sequence[str]) -> Array:
    """Pairs ranked right within strata, divided by all pairs within strata; equal scores count one half.

    Large strata with many pairs weigh most. It equals `auroc_per_finding` if there is one stratum.

    Args:
        labels: (n,) or (n, k), 0, 1 or nan.
        scores: like labels, higher means more likely to have the finding.
        strata: (n,) the stratum of each image.

    Returns:
        (k,) values in [0, 1], nan where no stratum holds both classes.

    Raises:
        DataError: as in `auroc`, or `strata` has another length.

    Source: van Elteren 1960, "On the combination of independent two sample tests of Wilcoxon", with each stratum
    weighted by its number of pairs.
    """
    ranked = _rank_strata(*checked(labels, scores), strata)
    return np.concatenate([_pooled(parts, lambda images: np.ones((len(images), 1))) for parts in ranked])


def stratified_auroc_samples(
    labels: ArrayLike, scores: ArrayLike, strata: Sequence[str], groups: Groups, *, samples: int = 1000, seed: int = 0
) -> Array:
    """The stratified AUROC of each finding in each set of resampled patients; the strata's sizes vary with the draw.

    Args:
        labels: (n,) or (n, k), 0, 1 or nan.
        scores: like `labels`.
        strata: (n,) the stratum of each image.
        groups: (n,) the patient of each image.
        samples: as in `auroc_samples`.
        seed: as in `auroc_samples`: the same sets as there.

    Returns:
        (samples, k) float64, nan where a resampled set holds no pair.

    Raises:
        DataError: as in `stratified_auroc` and `auroc_samples`.
    """
    truth, values = checked(labels, scores)

    def measure(parts: list[Ranked]) -> Measure:
        return lambda weigh: _pooled(parts, weigh)

    ranked = _rank_strata(truth, values, strata)
    return resample([measure(parts) for parts in ranked], groups, len(truth), samples, seed)


def count_comparable_images(labels: ArrayLike, strata: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positives and negatives, (k,) each, that have an image of the other class in their stratum: what pairs rest on.

    Raises:
        DataError: a label is neither 0, 1 nor nan, or `strata` has another length.
    """
    truth = checked_labels(labels)
    totals = np.zeros((2, truth.shape[1]), np.int64)
    for images in _members(strata, len(truth)):
        counts = np.stack([(truth[images] == 1).sum(axis=0), (truth[images] == 0).sum(axis=0)])
        totals += np.where(counts.all(axis=0), counts, 0)
    return totals[0], totals[1]


def _rank_strata(truth: Array, values: Array, strata: Sequence[str]) -> list[list[Ranked]]:
    """For each finding one ranking a stratum."""
    members = list(_members(strata, len(truth)))
    return [[rank(truth[:, k], values[:, k], images) for images in members] for k in range(truth.shape[1])]


def _members(strata: Sequence[str], images: int) -> list[NDArray[np.bool_]]:
    """Which images each stratum holds, (images,) each."""
    if len(strata) != images:
        raise DataError(f"expected one stratum per image, got {len(strata)} strata for {images} images")
    names, member = np.unique(np.asarray(strata), return_inverse=True)
    return [member == number for number in range(len(names))]


def _pooled(parts: list[Ranked], weigh: Weigh) -> Array:
    """Pairs won and pairs, summed over strata, then divided."""
    counted = [weighted_pairs(part, weigh(part.order)) for part in parts]
    return quotient(np.sum([wins for wins, _ in counted], axis=0), np.sum([pairs for _, pairs in counted], axis=0))

"""AUROC and average precision from one sort per finding, which any number of weightings of the images then share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.errors import DataError

Array = NDArray[np.float64]
_ROUNDING = 1e-6


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Labels and scores as (n, k) float64 arrays of one shape: labels 0, 1 or nan (unknown), scores without nan."""
    truth, values = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if truth.shape != values.shape or truth.ndim not in (1, 2) or not truth.size:
        raise DataError(
            f"expected labels and scores of one shape (images,) or (images, findings), got {truth.shape} and "
            f"{values.shape}"
        )
    if np.isnan(values).any():
        raise DataError(f"expected scores without nan, got {int(np.isnan(values).sum())} nan; the model has diverged")
    return checked_labels(truth), values.reshape(len(values), -1)


def checked_labels(labels: ArrayLike) -> Array:
    """Labels as (n, k) float64 of 0, 1 and nan (unknown)."""
    truth = np.asarray(labels, np.float64)
    odd = truth[~(np.isin(truth, (0.0, 1.0)) | np.isnan(truth))]
    if odd.size:
        raise DataError(
            f"expected labels of 0 or 1, or nan where unknown, got {odd[0]:g}; soft labels are for training only, "
            "score against hard ones"
        )
    return truth.reshape(len(truth), -1)


def mean_defined(values: Array) -> float:
    """The mean of the values that are defined; nan if none is."""
    return float(row_means(values[None])[0])


def row_means(values: Array) -> Array:
    """The mean of each row without its nans; nan for a row of nothing else (and no numpy warning for it)."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


@dataclass(frozen=True)
class Ranked:
    """The images of one finding with a known label in ascending order of score, to be weighted again and again.

    Attributes:
        order: (images,) image numbers by ascending score.
        starts: (blocks,) where each run of equal scores begins in that order.
        positive: (images,) 1 for an image with the finding, in that order.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    positive: Array


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The chance that an image with the finding scores above one without it; equal scores count one half.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        scores: (n,), any scale; higher means more likely to have the finding.

    Returns:
        A value in [0, 1], or nan if the known labels hold one class only.

    Raises:
        DataError: lengths differ, a label is neither 0, 1 nor nan, or a score is nan.

    Source: Mann and Whitney 1947, the U statistic divided by the number of pairs.
    """
    truth, values = checked(labels, scores)
    ranked = rank(truth[:, 0], values[:, 0])
    return float(weighted_auroc(ranked, np.ones((len(ranked.order), 1)))[0])


def mean_auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The mean of the AUROCs of several findings, without those that are undefined (one class only).

    Args:
        labels: (n, k), 0, 1 or nan.
        scores: (n, k).

    Returns:
        The mean, or nan if no finding has both classes.

    Raises:
        DataError: as in `auroc`.
    """
    return mean_defined(auroc_per_finding(labels, scores))


def auroc_per_finding(labels: ArrayLike, scores: ArrayLike) -> Array:
    """The AUROC of each column.

    Args:
        labels: (n, k), 0, 1 or nan.
        scores: (n, k).

    Returns:
        (k,) float64, nan where the known labels of a column hold one class only.

    Raises:
        DataError: as in `auroc`.
    """
    truth, values = checked(labels, scores)
    return np.array([auroc(truth[:, k], values[:, k]) for k in range(truth.shape[1])])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """The area under precision over recall as a step function; unlike AUROC it falls with the prevalence.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        scores: (n,), higher means more likely to have the finding.

    Returns:
        A value in [0, 1], or nan if no label is 1. Equal scores enter together.

    Raises:
        DataError: as in `auroc`.
    """
    truth, values = checked(labels, scores)
    ranked = rank(truth[:, 0], -values[:, 0])
    if not ranked.positive.any():
        return float("nan")
    hits = np.cumsum(np.add.reduceat(ranked.positive, ranked.starts))
    called = np.append(ranked.starts[1:], len(ranked.order))
    return float(np.sum(np.diff(hits, prepend=0.0) * hits / called) / hits[-1])


def sensitivity_at(labels: ArrayLike, scores: ArrayLike, *, specificity: float = 0.95) -> float:
    """The sensitivity at the lowest threshold that leaves a specificity, read off the images themselves.

    Nothing is interpolated, and no threshold is chosen: a threshold from other images will not give exactly this. The
    specificity at a sensitivity is `sensitivity_at(1 - labels, -scores, specificity=sensitivity)`.

    Args:
        labels: (n,), 0, 1 or nan; an image of unknown label is left out.
        scores: (n,), higher means more likely to have the finding; equal ones are called together.
        specificity: the least share of the images without the finding that must not be called.

    Returns:
        A value in [0, 1]; nan if the known labels hold one class only.

    Raises:
        DataError: as in `auroc`.
    """
    truth, values = checked(labels, scores)
    ranked = rank(truth[:, 0], -values[:, 0])
    return float(weighted_sensitivity_at(ranked, np.ones((len(ranked.order), 1)), specificity)[0])


def rank(positive: Array, scores: Array, images: NDArray[np.bool_] | None = None) -> Ranked:
    """Sort once; equal scores form one block.

    Args:
        positive: (n,) 1, 0, or nan for an image that is left out.
        scores: (n,) to sort by.
        images: (n,) which images to rank; None for all.
    """
    known = ~np.isnan(positive)
    chosen = np.flatnonzero(known if images is None else known & images)
    order = chosen[np.argsort(scores[chosen], kind="stable")]
    ordered = scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(order)])
    return Ranked(order, starts, positive[order])


def mid_ranks(values: ArrayLike) -> Array:
    """The ranks of numbers (n,) from 1 to n, equal ones sharing the mean of theirs: what Spearman correlates."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    middles: Array = np.cumsum(counts).astype(np.float64) - (counts - 1) / 2
    return middles[place.reshape(-1)]


def same_order(first: ArrayLike, second: ArrayLike) -> bool:
    """Whether two scores (n,) put images into one order, ties included: then all that rests on ranks is equal."""
    return np.array_equal(mid_ranks(first), mid_ranks(second))


def weighted_auroc(ranked: Ranked, weights: Array) -> Array:
    """AUROC (sets,) of images counted `weights` (images, sets) times; nan for a set with one class only."""
    wins, pairs = weighted_pairs(ranked, weights)
    return quotient(wins, pairs)


def weighted_pairs(ranked: Ranked, weights: Array) -> tuple[Array, Array]:
    """How many pairs of an image with and one without the finding are ranked right (sets,), and how many there are.

    Images come in the order of `ranked`. Weights are whole numbers, so every sum is exact and the order in which the
    images were given cannot matter.
    """
    if not len(ranked.order):
        return np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    sick = weights * ranked.positive[:, None]
    healthy = weights - sick
    if len(ranked.starts) < len(weights):  # equal scores: one block, in which every pair is half won
        sick, healthy = (np.add.reduceat(images, ranked.starts, axis=0) for images in (sick, healthy))
    below = np.cumsum(healthy, axis=0)
    wins = np.einsum("bs,bs->s", sick, below - healthy / 2)
    return wins, sick.sum(axis=0) * below[-1]


def weighted_average_precision(ranked: Ranked, weights: Array) -> Array:
    """Average precision (sets,) of images counted `weights` (images, sets) times, ranked by *descending* score."""
    if not len(ranked.order):
        return np.full(weights.shape[1], np.nan)
    sick = weights * ranked.positive[:, None]
    if len(ranked.starts) < len(weights):
        sick, weights = (np.add.reduceat(images, ranked.starts, axis=0) for images in (sick, weights))
    hits, called = np.cumsum(sick, axis=0), np.cumsum(weights, axis=0)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)  # none drawn so far: no hit either
    return quotient(np.einsum("bs,bs->s", sick, precision), hits[-1])


def weighted_sensitivity_at(ranked: Ranked, weights: Array, specificity: float) -> Array:
    """The best sensitivity (sets,) at a specificity or above, of images counted `weights` (images, sets) times.

    Ranked by *descending* score; nan for a set with one class only.
    """
    if not len(ranked.order):
        return np.full(weights.shape[1], np.nan)
    sick = weights * ranked.positive[:, None]
    healthy = weights - sick
    if len(ranked.starts) < len(weights):  # equal scores are called together
        sick, healthy = (np.add.reduceat(images, ranked.starts, axis=0) for images in (sick, healthy))
    hits, alarms = np.cumsum(sick, axis=0), np.cumsum(healthy, axis=0)
    # Whole numbers apart from the bound, which may come out a little below one: 20 * (1 - 0.95) < 1.
    allowed = alarms <= alarms[-1] * (1 - specificity) + _ROUNDING
    caught = np.where(allowed, hits, 0.0).max(axis=0)
    return np.where(alarms[-1] > 0, quotient(caught, hits[-1]), np.nan)


def quotient(top: Array, bottom: Array) -> Array:
    """`top / bottom`, nan where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)

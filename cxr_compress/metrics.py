"""How well scores separate sick from healthy films, and how sure that is: numpy only, the same code everywhere.

All intervals resample *patients*, not films: two films of one patient are not two independent observations, and an
interval that counts them as such is too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.errors import DataError

Array = NDArray[np.float64]
Groups = Sequence[str] | Sequence[int] | NDArray[np.str_] | NDArray[np.int64]

# Bounds the bootstrap's temporaries at half a million float64 (4 MB) each, whatever the number of films.
_CHUNK_VALUES = 500_000


@dataclass(frozen=True)
class Interval:
    """A value measured on the data at hand, and the range that resampled patients give it.

    Attributes:
        value: The measurement; nan where it is undefined.
        low: Lower bound of the percentile interval; nan where it is undefined.
        high: Upper bound of the percentile interval; nan where it is undefined.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Ranked:
    """The films of one finding in ascending order of score, ready to be weighted again and again."""

    order: NDArray[np.int64]  # (films,) film numbers by ascending score
    starts: NDArray[np.int64]  # (blocks,) where each run of equal scores begins in that order
    positive: Array  # (films,) 1 for a film with the finding, in that order


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a film with the finding scores above one without it; equal scores count one half.

    Args:
        labels: (n,), 0 or 1.
        scores: (n,), any scale; higher means more likely to have the finding.

    Returns:
        A value in [0, 1], or nan if the labels hold one class only.

    Raises:
        DataError: Lengths differ, a label is neither 0 nor 1, or a score is nan.

    Source: Mann and Whitney 1947, the U statistic divided by the number of pairs.
    """
    truth, values = _checked(labels, scores)
    return float(_weighted_auroc(_rank(truth[:, 0], values[:, 0]), np.ones((len(truth), 1)))[0])


def mean_auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The mean of the AUROCs of several findings, without those that are undefined (one class only).

    Args:
        labels: (n, k), 0 or 1.
        scores: (n, k).

    Returns:
        The mean, or nan if no finding has both classes.

    Raises:
        DataError: As in ``auroc``.
    """
    return _mean(auroc_per_finding(labels, scores))


def auroc_per_finding(labels: ArrayLike, scores: ArrayLike) -> Array:
    """The AUROC of each column.

    Args:
        labels: (n, k), 0 or 1.
        scores: (n, k).

    Returns:
        (k,) float64, nan where a column holds one class only.

    Raises:
        DataError: As in ``auroc``.
    """
    truth, values = _checked(labels, scores)
    return np.array([auroc(truth[:, k], values[:, k]) for k in range(truth.shape[1])])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """The area under precision over recall as a step function; unlike AUROC it falls with the prevalence.

    Args:
        labels: (n,), 0 or 1.
        scores: (n,), higher means more likely to have the finding.

    Returns:
        A value in [0, 1], or nan if no label is 1. Equal scores enter together.

    Raises:
        DataError: As in ``auroc``.
    """
    truth, values = _checked(labels, scores)
    ranked = _rank(truth[:, 0], -values[:, 0])
    hits = np.cumsum(np.add.reduceat(ranked.positive, ranked.starts))
    if hits[-1] == 0:
        return float("nan")
    called = np.append(ranked.starts[1:], len(truth))
    return float(np.sum(np.diff(hits, prepend=0.0) * hits / called) / hits[-1])


def bootstrap_auroc(
    labels: ArrayLike, scores: ArrayLike, groups: Groups, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The AUROC, or the mean AUROC of several findings, with a percentile interval over resampled patients.

    A resampled set in which a finding has one class only leaves that finding out. Where nearly every film is ranked
    right the interval collapses towards its value: with few positives read it as a lower bound of the doubt.

    Args:
        labels: (n,) or (n, k), 0 or 1.
        scores: Like labels.
        groups: (n,) the patient of each film.
        samples: Number of resampled sets.
        seed: The same seed gives the same interval, in whatever order the films come.
        level: The share of resampled sets inside the interval.

    Returns:
        The interval; all three nan if no finding has both classes.

    Raises:
        DataError: As in ``auroc``, or ``groups`` has another length.
    """
    drawn = auroc_samples(labels, scores, groups, samples=samples, seed=seed)
    return bootstrap_mean(auroc_per_finding(labels, scores), drawn, level=level)


def paired_auroc_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: Groups,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """How much higher the (mean) AUROC of scores ``a`` is than that of ``b`` on the same films: a minus b.

    Both are measured on the same resampled patients, so what makes a set hard for both cancels out: the interval is
    much narrower than the two single ones suggest.

    Args:
        labels: (n,) or (n, k), 0 or 1.
        scores_a: Like labels.
        scores_b: Like labels.
        groups: (n,) the patient of each film.
        samples: Number of resampled sets.
        seed: Of the resampling.
        level: The share of resampled sets inside the interval.

    Raises:
        DataError: As in ``bootstrap_auroc``.
    """
    values = auroc_per_finding(labels, scores_a) - auroc_per_finding(labels, scores_b)
    drawn_a = auroc_samples(labels, scores_a, groups, samples=samples, seed=seed)
    drawn_b = auroc_samples(labels, scores_b, groups, samples=samples, seed=seed)
    return bootstrap_mean(values, drawn_a - drawn_b, level=level)


def auroc_samples(labels: ArrayLike, scores: ArrayLike, groups: Groups, *, samples: int = 1000, seed: int = 0) -> Array:
    """The AUROC of each finding in each set of resampled patients: what every interval here is made of.

    Args:
        labels: (n,) or (n, k), 0 or 1.
        scores: Like ``labels``.
        groups: (n,) the patient of each film.
        samples: Number of resampled sets; each draws as many patients as there are, with replacement.
        seed: Sets of one seed are the same for every score, which is what pairs two models.

    Returns:
        (samples, k) float64, nan where a resampled set holds one class only.

    Raises:
        DataError: As in ``auroc``, or ``groups`` has another length.
    """
    truth, values = _checked(labels, scores)
    if len(groups) != len(truth):
        raise DataError(f"expected one patient per film, got {len(groups)} patients for {len(truth)} films")
    patients, member = np.unique(np.asarray(groups), return_inverse=True)
    ranked = [_rank(truth[:, k], values[:, k]) for k in range(truth.shape[1])]
    rows = [
        np.stack([_weighted_auroc(finding, counts[member[finding.order]]) for finding in ranked], axis=1)
        for counts in _draws(len(patients), len(truth), samples, seed)
    ]
    return np.concatenate(rows)


def interval(value: float, drawn: Array, *, level: float = 0.95) -> Interval:
    """A percentile interval from resampled values.

    Args:
        value: The measurement itself.
        drawn: (samples,) the same measurement on each resampled set; nan ones are left out.
        level: The share of them inside the interval.

    Returns:
        Nan bounds if the value is undefined or fewer than half of the resampled sets define it: then too few
        patients carry the rarer class for any interval.
    """
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or 2 * len(defined) < len(drawn) or not len(defined):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def bootstrap_mean(values: Array, drawn: Array, *, level: float = 0.95) -> Interval:
    """The mean over findings with its interval, from what ``auroc_per_finding`` and ``auroc_samples`` gave.

    Args:
        values: (k,) the measurement per finding.
        drawn: (samples, k) the same on each resampled set; nan ones are left out of the mean of their set.
        level: The share of resampled sets inside the interval.
    """
    return interval(_mean(values), _row_means(drawn), level=level)


def choose_threshold(labels: ArrayLike, probabilities: ArrayLike, rule: str = "youden") -> float:
    """The probability from which on a film is called positive.

    ``youden`` maximises sensitivity + specificity - 1, as if a missed finding and a false alarm cost the same and
    both classes were equally common; a clinic that screens will want a lower threshold. Of equally good thresholds
    the lowest (most sensitive) is taken. It lies half-way between two probabilities that occur, so that rounding on
    another machine does not flip a decision.

    Args:
        labels: (n,), 0 or 1.
        probabilities: (n,) in [0, 1].
        rule: ``youden``.

    Returns:
        A probability; 0 where calling every film positive is best (scores worse than chance).

    Raises:
        DataError: The labels hold one class only, or as in ``auroc``.
        ValueError: An unknown rule.

    Source: Youden 1950, "Index for rating diagnostic tests".
    """
    if rule != "youden":
        raise ValueError(f"expected the rule 'youden', got {rule!r}")
    truth, values = _checked(labels, probabilities)
    ranked = _rank(truth[:, 0], values[:, 0])
    blocks = np.stack([ranked.positive, 1 - ranked.positive])
    per_block = np.add.reduceat(blocks, ranked.starts, axis=1)
    totals = per_block.sum(axis=1, keepdims=True)
    if not totals.all():
        raise DataError(
            f"a threshold needs films with and without the finding, got {int(totals[0, 0])} with and "
            f"{int(totals[1, 0])} without; use a larger set"
        )
    below = (np.cumsum(per_block, axis=1) - per_block) / totals  # share of each class below each distinct value
    best = int(np.argmax(np.round(below[1] - below[0], 12)))  # rounded: equal gains must not differ in the last bit
    distinct = values[ranked.order[ranked.starts], 0]
    return 0.0 if best == 0 else float((distinct[best - 1] + distinct[best]) / 2)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Labels and scores as (n, k) float64 arrays of one shape, without nan, labels 0 or 1."""
    truth, values = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if truth.shape != values.shape or truth.ndim not in (1, 2) or not truth.size:
        raise DataError(
            f"expected labels and scores of one shape (films,) or (films, findings), got {truth.shape} and "
            f"{values.shape}"
        )
    if not np.isin(truth, (0.0, 1.0)).all():
        raise DataError("expected labels of 0 or 1, got other values; leave films without a label out first")
    if np.isnan(values).any():
        raise DataError(f"expected scores without nan, got {int(np.isnan(values).sum())} nan; the model has diverged")
    return truth.reshape(len(truth), -1), values.reshape(len(truth), -1)


def _rank(positive: Array, scores: Array) -> _Ranked:
    """Sort once; equal scores form one block."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return _Ranked(order, starts, positive[order])


def _weighted_auroc(ranked: _Ranked, weights: Array) -> Array:
    """AUROC (sets,) of films counted ``weights`` (films, sets) times; nan for a set with one class only.

    Films come in the order of ``ranked``. Weights are whole numbers, so every sum is exact and the order in which the
    films were given cannot matter.
    """
    sick = weights * ranked.positive[:, None]
    healthy = weights - sick
    if len(ranked.starts) < len(weights):  # equal scores: one block, in which every pair is half won
        sick, healthy = (np.add.reduceat(films, ranked.starts, axis=0) for films in (sick, healthy))
    below = np.cumsum(healthy, axis=0)
    wins = np.einsum("bs,bs->s", sick, below - healthy / 2)
    pairs = sick.sum(axis=0) * below[-1]
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _draws(patients: int, films: int, samples: int, seed: int) -> Iterator[Array]:
    """How often each patient was drawn, (patients, chunk) at a time, ``samples`` columns in all."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_VALUES // max(films, 1))
    for first in range(0, samples, chunk):
        rows = min(chunk, samples - first)
        drawn = rng.integers(0, patients, (rows, patients)) + patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        yield np.ascontiguousarray(
            counts.T, np.float64
        )  # a film's counts side by side: gathering them is half the work


def _mean(values: Array) -> float:
    """The mean of the values that are defined; nan if none is."""
    return float(_row_means(values[None])[0])


def _row_means(values: Array) -> Array:
    """The mean of each row without its nans; nan for a row of nothing else (and no numpy warning for it)."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)

"""AUROC that compares a film only with films of its own stratum, for instance of its own hospital.

Where sick and healthy films come from different sources, a network can score well by telling the sources apart. Pairs
inside a source cannot be won that way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.errors import DataError
from cxr_compress.metrics.bootstrap import Groups, Measure, Weigh, resample
from cxr_compress.metrics.checks import Array, checked, checked_labels
from cxr_compress.metrics.ranking import Ranked, quotient, rank, weighted_pairs


def stratified_auroc(labels: ArrayLike, scores: ArrayLike, strata: Sequence[str]) -> float:
    """Pairs ranked right within strata, divided by all pairs within strata; equal scores count one half.

    Large strata with many pairs weigh most. It equals ``auroc`` if there is one stratum.

    Args:
        labels: (n,), 0, 1 or nan.
        scores: (n,), higher means more likely to have the finding.
        strata: (n,) the stratum of each film.

    Returns:
        A value in [0, 1], or nan if no stratum holds both classes.

    Raises:
        DataError: As in ``auroc``, or ``strata`` has another length.

    Source: van Elteren 1960, "On the combination of independent two sample tests of Wilcoxon", with each stratum
    weighted by its number of pairs.
    """
    truth, values = checked(labels, scores)
    return float(stratified_auroc_per_finding(truth[:, :1], values[:, :1], strata)[0])


def stratified_auroc_per_finding(labels: ArrayLike, scores: ArrayLike, strata: Sequence[str]) -> Array:
    """``stratified_auroc`` of each column: (n, k) labels and scores give (k,) values.

    Raises:
        DataError: As in ``stratified_auroc``.
    """
    ranked = _rank_strata(*checked(labels, scores), strata)
    return np.concatenate([_pooled(parts, lambda films: np.ones((len(films), 1))) for parts in ranked])


def stratified_auroc_samples(
    labels: ArrayLike, scores: ArrayLike, strata: Sequence[str], groups: Groups, *, samples: int = 1000, seed: int = 0
) -> Array:
    """The stratified AUROC of each finding in each set of resampled patients; the strata's sizes vary with the draw.

    Args:
        labels: (n,) or (n, k), 0, 1 or nan.
        scores: Like ``labels``.
        strata: (n,) the stratum of each film.
        groups: (n,) the patient of each film.
        samples: As in ``auroc_samples``.
        seed: As in ``auroc_samples``: the same sets as there.

    Returns:
        (samples, k) float64, nan where a resampled set holds no pair.

    Raises:
        DataError: As in ``stratified_auroc`` and ``auroc_samples``.
    """
    truth, values = checked(labels, scores)

    def measure(parts: list[Ranked]) -> Measure:
        return lambda weigh: _pooled(parts, weigh)

    ranked = _rank_strata(truth, values, strata)
    return resample([measure(parts) for parts in ranked], groups, len(truth), samples, seed)


def count_comparable_films(labels: ArrayLike, strata: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positives and negatives, (k,) each, that have a film of the other class in their stratum: what pairs rest on.

    Raises:
        DataError: A label is neither 0, 1 nor nan, or ``strata`` has another length.
    """
    truth = checked_labels(labels)
    totals = np.zeros((2, truth.shape[1]), np.int64)
    for films in _members(strata, len(truth)):
        counts = np.stack([(truth[films] == 1).sum(axis=0), (truth[films] == 0).sum(axis=0)])
        totals += np.where(counts.all(axis=0), counts, 0)
    return totals[0], totals[1]


def _rank_strata(truth: Array, values: Array, strata: Sequence[str]) -> list[list[Ranked]]:
    """For each finding one ranking a stratum."""
    members = list(_members(strata, len(truth)))
    return [[rank(truth[:, k], values[:, k], films) for films in members] for k in range(truth.shape[1])]


def _members(strata: Sequence[str], films: int) -> list[NDArray[np.bool_]]:
    """Which films each stratum holds, (films,) each."""
    if len(strata) != films:
        raise DataError(f"expected one stratum per film, got {len(strata)} strata for {films} films")
    names, member = np.unique(np.asarray(strata), return_inverse=True)
    return [member == number for number in range(len(names))]


def _pooled(parts: list[Ranked], weigh: Weigh) -> Array:
    """Pairs won and pairs, summed over strata, then divided."""
    counted = [weighted_pairs(part, weigh(part.order)) for part in parts]
    return quotient(np.sum([wins for wins, _ in counted], axis=0), np.sum([pairs for _, pairs in counted], axis=0))

"""What every measurement asks of its labels and scores, and means that leave out what is undefined."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.errors import DataError

Array = NDArray[np.float64]


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Labels and scores as (n, k) float64 arrays of one shape: labels 0, 1 or nan (unknown), scores without nan."""
    truth, values = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if truth.shape != values.shape or truth.ndim not in (1, 2) or not truth.size:
        raise DataError(
            f"expected labels and scores of one shape (films,) or (films, findings), got {truth.shape} and "
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

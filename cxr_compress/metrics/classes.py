"""Classes that exclude one another: each image has exactly one, and a model gives each image exactly one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.errors import DataError
from cxr_compress.metrics.checks import Array, row_means

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
    """Mean over the images of known class of ``-sum(weight * label * log(softmax(logits)))``; nan if there is none.

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

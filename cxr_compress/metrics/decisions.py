"""From scores to decisions: thresholds, what they catch and miss, and how many films that rests on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.errors import DataError
from cxr_compress.metrics.checks import checked, checked_labels, mean_defined
from cxr_compress.metrics.ranking import rank

# Below this many films of the rarer class an AUROC moves by several hundredths when one film is read differently
# (its standard error is near 0.06 at 20 positives and an AUROC of 0.8: Hanley and McNeil 1982).
ENOUGH_FILMS = 20


def count_films(labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many films have each finding and how many do not; films of unknown label are in neither.

    Args:
        labels: (n, k), 0, 1 or nan.

    Returns:
        Positives and negatives, (k,) each.

    Raises:
        DataError: A label is neither 0, 1 nor nan.
    """
    truth = checked_labels(labels)
    return (truth == 1).sum(axis=0), (truth == 0).sum(axis=0)


def has_enough_data(labels: ArrayLike) -> NDArray[np.bool_]:
    """Whether each finding has at least ``ENOUGH_FILMS`` films with and as many without it, (k,).

    Raises:
        DataError: As ``count_films``.
    """
    return np.minimum(*count_films(labels)) >= ENOUGH_FILMS


def sensitivity_specificity(labels: ArrayLike, decisions: ArrayLike) -> tuple[float, float]:
    """The share of the films with a finding that were called positive, and of those without it that were not.

    Args:
        labels: (n,), 0, 1 or nan; a film of unknown label is left out.
        decisions: (n,) bool, True for a film that was called positive.

    Returns:
        Both in [0, 1]; nan where no film of that class is there.

    Raises:
        DataError: Lengths differ, or a label is neither 0, 1 nor nan.
    """
    truth, called = checked(labels, decisions)
    return mean_defined(called[truth == 1]), mean_defined(1 - called[truth == 0])


def choose_threshold(labels: ArrayLike, probabilities: ArrayLike, rule: str = "youden") -> float:
    """The probability from which on a film is called positive.

    ``youden`` maximises sensitivity + specificity - 1, as if a missed finding and a false alarm cost the same and
    both classes were equally common; a clinic that screens will want a lower threshold. Of equally good thresholds
    the lowest (most sensitive) is taken. It lies half-way between two probabilities that occur, so that rounding on
    another machine does not flip a decision.

    Args:
        labels: (n,), 0, 1 or nan; a film of unknown label is left out.
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
    truth, values = checked(labels, probabilities)
    positives, negatives = count_films(truth[:, :1])
    if not positives[0] or not negatives[0]:
        raise DataError(
            f"a threshold needs films with and without the finding, got {positives[0]} with and {negatives[0]} "
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

"""Temperature scaling: the one slope that turns logits of classes that exclude one another into probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cxr_compress.metrics import softmax

Array = NDArray[np.float64]

_DOUBLINGS = 60
_HALVINGS = 100


def fit_temperature(labels: Array, logits: Array, offset: Array) -> float | None:
    """Slope s (one over the temperature) of ``softmax(s * logits + offset)`` that makes the labels most likely.

    Labels count as (n + 1) / (n + k) and 1 / (n + k), n images of the class and k classes, instead of 1 and 0, which
    keeps the slope finite where the logits separate the classes.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2; the targets of
    Platt 1999 for more than two classes.

    Args:
        labels: (n, k), one 1 a row.
        logits: (n, k), finite.
        offset: (k,).

    Returns:
        The slope; None where larger logits do not mean more of their class, so that no slope above 0 fits.
    """
    classes = labels.shape[1]
    counts = labels.sum(axis=0)
    rest = 1 / (counts + classes)
    target = labels * (counts * rest) + (labels @ rest)[:, None]
    centered = logits - logits.mean(axis=1, keepdims=True)
    spread = float(centered.std())
    if not spread > 0:
        return None
    unit = centered / spread

    def rise(slope: float) -> float:
        """Derivative of the cross-entropy by the slope; it grows with the slope, as the cross-entropy is convex."""
        return float(((softmax(slope * unit + offset) - target) * unit).sum(axis=1).mean())

    if not rise(0.0) < 0:
        return None
    low, high = 0.0, 1.0
    for _ in range(_DOUBLINGS):
        if rise(high) >= 0:
            break
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(middle) < 0 else (low, middle)
    return high / spread

"""Which weights are zero: exactly as many as asked for, in every kernel, with a fixed order among equals."""

from __future__ import annotations

import numpy as np


def zeros_wanted(weights: int, target_sparsity: float) -> int:
    """Zeros in a kernel of ``weights`` weights: the target, rounded to the nearest whole number, one weight kept."""
    return min(weights - 1, int(np.floor(weights * target_sparsity + 0.5)))


def exact_mask(kernel: np.ndarray, target_sparsity: float, held: np.ndarray | None = None) -> np.ndarray:
    """Keep the weights of largest magnitude so that exactly the wanted number goes.

    TF-MOT keeps every weight at or above a threshold, so equal magnitudes keep too many. Here, of equal weights the
    one with the higher index goes.

    Args:
        kernel: Any shape.
        target_sparsity: In [0, 1).
        held: An earlier mask of the same shape (1 kept, 0 zeroed); what it zeroed goes first.

    Returns:
        float32 of the kernel's shape, 1 kept, 0 zeroed.
    """
    magnitude = np.abs(kernel).ravel()
    if held is not None:
        # Below every true magnitude: a zeroed weight may have drifted since the mask was last applied to it.
        magnitude = np.where(held.ravel() > 0, magnitude, -1.0)
    mask = np.ones(magnitude.size, np.float32)
    index = np.arange(magnitude.size)
    mask[np.lexsort((-index, magnitude))[: zeros_wanted(magnitude.size, target_sparsity)]] = 0.0
    return mask.reshape(kernel.shape)

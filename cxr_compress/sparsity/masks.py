"""Which weights of a kernel stay, given how many go: exactly so many, in the pattern that was asked for."""

from __future__ import annotations

import math

import numpy as np

from cxr_compress.sparsity.target import SparsityTarget

_GROUP = 4  # of the pattern 2:4
_HELD, _PADDING = -1.0, -2.0  # below every true magnitude
_FLAT_RANK = 2


def exact_mask(kernel: np.ndarray, zeros: int, target: SparsityTarget, held: np.ndarray | None = None) -> np.ndarray:
    """Keep the weights of largest magnitude, in the target's pattern, so that exactly so many go.

    TF-MOT keeps every weight at or above a threshold, so that equal magnitudes keep too many.

    Args:
        kernel: of a shape that the pattern can prune, see `why_not`.
        zeros: what `allocate` says; 2:4 has its own number, `zeros_of_two_of_four`.
        target: only its pattern counts.
        held: an earlier mask.
    """
    magnitude = np.abs(kernel)
    if held is not None:
        magnitude = np.where(held > 0, magnitude, np.float32(_HELD))
    if target.pattern == "2:4":
        return _two_of_four(magnitude)
    if target.pattern == "block":
        units = _block_means(magnitude, target.block)
        return np.kron(_smallest(units, zeros // math.prod(target.block)), np.ones(target.block, np.float32))
    return _smallest(magnitude, zeros)


def block_magnitudes(kernel: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Mean magnitude of every block, what TF-MOT ranks them by.

    Args:
        kernel: (rows, columns), multiples of the block's.
        block: (rows, columns).

    Returns:
        (rows / block rows, columns / block columns).
    """
    return _block_means(np.abs(kernel), block)


def zeros_of_two_of_four(shape: tuple[int, ...]) -> int:
    """Zeros that 2:4 makes in a kernel: half, but in a last, shorter group all beyond two."""
    channels = shape[-2]
    groups, rest = divmod(channels, _GROUP)
    return (math.prod(shape) // channels) * (groups * 2 + max(0, rest - 2))


def why_not(shape: tuple[int, ...], target: SparsityTarget) -> str | None:
    """Why a kernel of this shape cannot have the target's pattern; None where it can."""
    if target.pattern == "2:4" and not zeros_of_two_of_four(shape):
        return f"2:4 needs more than two input channels, it has {shape[-2]}"
    if target.pattern == "block":
        if len(shape) != _FLAT_RANK:
            return f"TF-MOT prunes blocks in rank-2 kernels only, this one has rank {len(shape)}"
        rows, columns = target.block
        if shape[0] % rows or shape[1] % columns:
            # TF-MOT takes the mean over windows that are padded on both sides, the mask over blocks from the start.
            return f"its {shape[0]}x{shape[1]} kernel does not divide into blocks of {rows}x{columns}"
    return None


def _block_means(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    rows, columns = block
    tiles = values.reshape(values.shape[0] // rows, rows, values.shape[1] // columns, columns)
    return tiles.mean(axis=(1, 3))


def _smallest(magnitude: np.ndarray, zeros: int) -> np.ndarray:
    """0 for the so many smallest."""
    flat = magnitude.ravel()
    mask = np.ones(flat.size, np.float32)
    mask[np.lexsort((-np.arange(flat.size), flat))[:zeros]] = 0.0
    return mask.reshape(magnitude.shape)


def _two_of_four(magnitude: np.ndarray) -> np.ndarray:
    """0 for the two smallest of every four in a row along the input channels (the last axis in a TFLite file)."""
    rows = np.moveaxis(magnitude, -2, -1)  # (..., outputs, inputs)
    missing = -rows.shape[-1] % _GROUP
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)], constant_values=_PADDING)
    groups = padded.reshape(-1, _GROUP)
    mask = np.ones(groups.shape, np.float32)
    going = np.lexsort((np.broadcast_to(-np.arange(_GROUP), groups.shape), groups), axis=-1)[:, :2]
    np.put_along_axis(mask, going, 0.0, axis=-1)
    whole = mask.reshape(padded.shape)[..., : rows.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(whole, -1, -2))

"""How the zeros of a model are shared out among its kernels: the same everywhere, by magnitude, or by shape.

Nothing here knows a framework. What is shared out is counted in units: single weights, or the blocks of a pattern.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def zeros_wanted(units: int, sparsity: float) -> int:
    """Zeros among so many units: the share, rounded to the nearest whole number, one unit kept."""
    return min(units - 1, int(np.floor(units * sparsity + 0.5)))


def layer_zeros(units: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """Zeros per kernel where each has the same share of them.

    Args:
        units: Kernel -> its units.
        sparsity: In (0, 1).
    """
    return {name: zeros_wanted(count, sparsity) for name, count in units.items()}


def global_zeros(magnitudes: Mapping[str, np.ndarray], sparsity: float) -> dict[str, int]:
    """Zeros per kernel where the smallest units of all kernels together go.

    Of equal units the one of the later kernel goes, within a kernel the one with the higher index. The largest unit
    of every kernel stays: a kernel of zeros would cut the network in two.

    Args:
        magnitudes: Kernel -> magnitudes of its units, any shape, in a fixed order of kernels.
        sparsity: In (0, 1).

    Returns:
        Counts that sum to ``zeros_wanted`` of all units, or to all but one unit per kernel where that is less.
    """
    flat = [np.ravel(values) for values in magnitudes.values()]
    # argmax takes the first of the largest, the one that the order of ties would let go last anyway.
    may_go = np.concatenate([np.arange(values.size) != np.argmax(values) for values in flat])
    kernel = np.repeat(np.arange(len(flat)), [values.size for values in flat])[may_go]
    ranked = np.concatenate(flat)[may_go]
    # Positions follow kernels and indices: a stable sort from the end lets the later one of equals go first.
    order = ranked.size - 1 - np.argsort(ranked[::-1], kind="stable")
    going = order[: zeros_wanted(may_go.size, sparsity)]
    counts = np.bincount(kernel[going], minlength=len(flat))
    return {name: int(count) for name, count in zip(magnitudes, counts, strict=True)}


def erk_zeros(shapes: Mapping[str, tuple[int, ...]], units: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """Zeros per kernel where the number of weights that stay follows the sum of a kernel's sides.

    A kernel of shape s keeps a number in proportion to sum(s), so its density is in proportion to sum(s) / prod(s):
    small kernels stay denser. Where that is more than the kernel has, all of it stays and the others keep less. Whole
    numbers come from rounding at one common scale (Webster's method), which never gives a kernel more zeros for a
    lower sparsity; of kernels at the same point of rounding the first keeps one more.

    Source: Mocanu et al. (arXiv 1707.04780), section "Erdos-Renyi"; with kernel sides, Evci et al., "Rigging the
    lottery" (arXiv 1911.11134), section 3.

    Args:
        shapes: Kernel -> its shape.
        units: Kernel -> its units.
        sparsity: In (0, 1).

    Returns:
        Counts that sum to ``zeros_wanted`` of all units, or to all but one unit per kernel where that is less.
    """
    sizes = np.array([units[name] for name in shapes], np.int64)
    shares = np.array([float(sum(shape)) for shape in shapes.values()])
    wanted = max(int(sizes.sum()) - zeros_wanted(int(sizes.sum()), sparsity), len(sizes))
    kept = _round_to_total(_scale_of_total(shares, sizes, wanted), shares, sizes, wanted)
    return {name: int(size - count) for name, size, count in zip(shapes, sizes, kept, strict=True)}


def _scale_of_total(shares: np.ndarray, sizes: np.ndarray, total: int) -> float:
    """The scale at which ``min(scale * share, size)`` sums to the total."""
    # Kernels fill up in the order of size / share; between two of them the sum is linear in the scale.
    order = np.argsort(sizes / shares, kind="stable")
    full, open_shares = 0.0, float(shares.sum())
    for place in order:
        scale = (total - full) / open_shares
        if scale * shares[place] <= sizes[place]:
            return float(scale)
        full += float(sizes[place])
        open_shares -= float(shares[place])
    return float(np.max(sizes / shares))


def _round_to_total(scale: float, shares: np.ndarray, sizes: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near ``scale * shares``, from 1 to the sizes, that sum to the total."""
    kept = np.clip(np.floor(scale * shares + 0.5).astype(np.int64), 1, sizes)
    # A kernel keeps its n-th unit from the scale (n - 1/2) / share on, and its first one always.
    while kept.sum() < total:
        kept[np.argmin(np.where(kept < sizes, (kept + 0.5) / shares, np.inf))] += 1
    while kept.sum() > total:
        points = np.where(kept > 1, (kept - 0.5) / shares, -np.inf)
        kept[len(points) - 1 - np.argmax(points[::-1])] -= 1
    return kept

"""How many weights of each kernel go, decided before the first training step.

Zeros are shared out in units, single weights or the blocks of a pattern: the same share everywhere, by magnitude, or by
shape; or a threshold on the magnitude decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.zeros import kernel_of, prunable_layers
from cxr_compress.sparsity.masks import SparsityTarget, block_magnitudes, why_not, zeros_of_two_of_four

_NEARLY_EMPTY = 0.95  # a share of zeros at which a layer passes little on, when others keep much more


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one kernel.

    Attributes:
        name: of the layer; layers of a nested model carry that model's name in front.
        weights: in the kernel, the bias left out.
        zeros: among them, exactly 0.
    """

    name: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Zeros per weight, in [0, 1]."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class LayerTarget(LayerSparsity):
    """What shall become of one kernel; `zeros` is their number at the end of the run.

    Attributes:
        below: magnitude below which weights go, where a threshold decides; else None.
        kept_one: the threshold is above every weight, of which the largest stays all the same.
    """

    below: float | None = None
    kept_one: bool = False


class PrunableKernels:
    """Sums over all prunable kernels of a model, in `layers`."""

    layers: tuple[LayerSparsity, ...]

    @property
    def weights(self) -> int:
        """Weights of all prunable kernels, those that stay dense included."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Zeros of all prunable kernels."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def total(self) -> float:
        """Zeros per prunable weight, in [0, 1]; 0 for a model without any."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Allocation(PrunableKernels):
    """The zeros of every prunable kernel.

    Attributes:
        target: what was asked for.
        layers: one entry per prunable kernel, in the model's order; those that stay dense have 0 zeros.
        left_out: layer whose kernel the pattern cannot prune -> why.
    """

    target: SparsityTarget
    layers: tuple[LayerTarget, ...]
    left_out: dict[str, str]

    @property
    def pruned(self) -> dict[str, LayerTarget]:
        """The layers that get zeros."""
        return {layer.name: layer for layer in self.layers if layer.zeros}

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the shares, one line each."""
        lines = []
        if self.target.threshold is not None:
            lines.append(
                f"the threshold {_words(self.target)} zeroes {self.zeros} of {self.weights} weights "
                f"({self.total:.1%}), counted before training"
            )
        kept_one = [layer.name for layer in self.layers if layer.kept_one]
        if kept_one:
            lines.append(f"every weight of {', '.join(kept_one)} is below the threshold: the largest of each is kept")
        emptied = [f"{layer.name} ({layer.sparsity:.1%})" for layer in self.layers if layer.sparsity > _NEARLY_EMPTY]
        if emptied and self.target.allocation == "global" and self.total < _NEARLY_EMPTY:
            lines.append(f"the global ranking leaves almost nothing of {', '.join(emptied)}; layer or erk spare them")
        lines += _left_out_line(self.left_out)
        return tuple(lines)


def allocate(model: Any, target: SparsityTarget) -> Allocation:
    """Decide how many weights of each prunable kernel go; nothing is changed or trained.

    Thresholds and the "global" ranking look at the weights as they are now.

    Args:
        model: plain functional or Sequential model, nested models included.
        target: what is asked for.

    Raises:
        CompressionError: a kernel holds NaN or infinity, or no weight would go.
        UnsupportedLayerError: the model is subclassed, or has nothing to prune in this pattern.
    """
    if not (isinstance(model, keras.Sequential) or getattr(model, "_is_graph_network", False)):
        raise UnsupportedLayerError(
            f"weights are pruned in functional and Sequential models, got the subclassed {type(model).__name__}: "
            "rebuild it with the functional API"
        )
    kernels = {name: kernel_of(layer).numpy() for name, layer in prunable_layers(model).items()}
    _check_kernels(model.name, kernels)
    reasons = {name: why_not(kernel.shape, target) for name, kernel in kernels.items()}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    chosen = {name: kernel for name, kernel in kernels.items() if name not in left_out}
    if not chosen:
        raise UnsupportedLayerError(
            f"the pattern {target.pattern} fits no kernel of {model.name}: {_listed(left_out)}; choose the pattern "
            "unstructured"
        )
    decided = _decide(chosen, target)
    layers = [decided.get(name, LayerTarget(name, kernel.size, 0)) for name, kernel in kernels.items()]
    allocation = Allocation(target, tuple(layers), left_out)
    if not allocation.zeros:
        raise CompressionError(
            f"no weight of {model.name} would become zero with {_words(target)}: ask for more; its smallest magnitude "
            f"is {min(float(np.abs(kernel).min()) for kernel in chosen.values()):g}"
        )
    return allocation


def _decide(kernels: Mapping[str, np.ndarray], target: SparsityTarget) -> dict[str, LayerTarget]:
    if target.threshold is not None:
        return {name: _below(name, kernel, target) for name, kernel in kernels.items()}
    if target.pattern == "2:4":
        zeros = {name: zeros_of_two_of_four(kernel.shape) for name, kernel in kernels.items()}
    else:
        zeros = _share_out(kernels, target)
    return {name: LayerTarget(name, kernel.size, zeros[name]) for name, kernel in kernels.items()}


def _share_out(kernels: Mapping[str, np.ndarray], target: SparsityTarget) -> dict[str, int]:
    """Zeros per kernel, in whole blocks where blocks are asked for."""
    area = math.prod(target.block) if target.pattern == "block" else 1
    sparsity = 0.0 if target.sparsity is None else target.sparsity
    units = {name: kernel.size // area for name, kernel in kernels.items()}
    if target.allocation == "layer":
        zeros = layer_zeros(units, sparsity)
    elif target.allocation == "erk":
        zeros = erk_zeros({name: kernel.shape for name, kernel in kernels.items()}, units, sparsity)
    else:
        zeros = global_zeros({name: _magnitudes(kernel, target) for name, kernel in kernels.items()}, sparsity)
    return {name: count * area for name, count in zeros.items()}


def _magnitudes(kernel: np.ndarray, target: SparsityTarget) -> np.ndarray:
    return block_magnitudes(kernel, target.block) if target.pattern == "block" else np.abs(kernel)


def _below(name: str, kernel: np.ndarray, target: SparsityTarget) -> LayerTarget:
    """Count what is below the threshold; one weight stays in any case."""
    threshold = 0.0 if target.threshold is None else target.threshold
    if target.threshold_unit == "std":
        threshold *= float(np.std(kernel, dtype=np.float64))
    zeros = int(np.count_nonzero(np.abs(kernel) < threshold))
    kept = min(zeros, kernel.size - 1)
    return LayerTarget(name, kernel.size, kept, below=threshold, kept_one=kept < zeros)


def _check_kernels(model: str, kernels: Mapping[str, np.ndarray]) -> None:
    if not kernels:
        raise UnsupportedLayerError(
            f"{model} has no kernel to prune: apart from the head, it has no Conv2D, Dense or SeparableConv2D"
        )
    bad = [name for name, kernel in kernels.items() if not np.all(np.isfinite(kernel))]
    if bad:
        raise CompressionError(
            f"the kernels of {', '.join(bad)} hold NaN or infinity, which no magnitude can rank: prune the model of an "
            "epoch before that"
        )


def _words(target: SparsityTarget) -> str:
    if target.threshold is not None:
        unit = " standard deviations of each layer" if target.threshold_unit == "std" else ""
        return f"|w| < {target.threshold:g}{unit}"
    return f"sparsity {target.sparsity:g}" if target.sparsity is not None else target.pattern


def _left_out_line(left_out: Mapping[str, str]) -> list[str]:
    return [f"left dense: {_listed(left_out)}"] if left_out else []


def _listed(left_out: Mapping[str, str]) -> str:
    """Layers by their reason: "conv1, conv2 (rank 4)"."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def zeros_wanted(units: int, sparsity: float) -> int:
    """Zeros among so many units: the share, rounded to the nearest whole number, one unit kept."""
    return min(units - 1, int(np.floor(units * sparsity + 0.5)))


def layer_zeros(units: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """Zeros per kernel where each has the same share of them.

    Args:
        units: kernel -> its units.
        sparsity: in (0, 1).
    """
    return {name: zeros_wanted(count, sparsity) for name, count in units.items()}


def global_zeros(magnitudes: Mapping[str, np.ndarray], sparsity: float) -> dict[str, int]:
    """Zeros per kernel where the smallest units of all kernels together go.

    Of equal units the one of the later kernel goes, within a kernel the one with the higher index. The largest unit
    of every kernel stays: a kernel of zeros would cut the network in two.

    Args:
        magnitudes: kernel -> magnitudes of its units, any shape, in a fixed order of kernels.
        sparsity: in (0, 1).

    Returns:
        Counts that sum to `zeros_wanted` of all units, or to all but one unit per kernel where that is less.
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
        shapes: kernel -> its shape.
        units: kernel -> its units.
        sparsity: in (0, 1).

    Returns:
        Counts that sum to `zeros_wanted` of all units, or to all but one unit per kernel where that is less.
    """
    sizes = np.array([units[name] for name in shapes], np.int64)
    shares = np.array([float(sum(shape)) for shape in shapes.values()])
    wanted = max(int(sizes.sum()) - zeros_wanted(int(sizes.sum()), sparsity), len(sizes))
    kept = _round_to_total(_scale_of_total(shares, sizes, wanted), shares, sizes, wanted)
    return {name: int(size - count) for name, size, count in zip(shapes, sizes, kept, strict=True)}


def _scale_of_total(shares: np.ndarray, sizes: np.ndarray, total: int) -> float:
    """The scale at which `min(scale * share, size)` sums to the total."""
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
    """Whole numbers near `scale * shares`, from 1 to the sizes, that sum to the total."""
    kept = np.clip(np.floor(scale * shares + 0.5).astype(np.int64), 1, sizes)
    # A kernel keeps its n-th unit from the scale (n - 1/2) / share on, and its first one always.
    while kept.sum() < total:
        kept[np.argmin(np.where(kept < sizes, (kept + 0.5) / shares, np.inf))] += 1
    while kept.sum() > total:
        points = np.where(kept > 1, (kept - 0.5) / shares, -np.inf)
        kept[len(points) - 1 - np.argmax(points[::-1])] -= 1
    return kept

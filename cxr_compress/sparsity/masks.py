"""From a model and a target to the zeros of every kernel, decided before the first training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.zeros import kernel_of, prunable_layers
from cxr_compress.sparsity.allocate import erk_zeros, global_zeros, layer_zeros
from cxr_compress.sparsity.target import SparsityTarget

_GROUP = 4  # of the pattern 2:4
_HELD, _PADDING = -1.0, -2.0  # below every true magnitude
_FLAT_RANK = 2


def exact_mask(kernel: np.ndarray, zeros: int, target: SparsityTarget, held: np.ndarray | None = None) -> np.ndarray:
    """Keep the weights of largest magnitude, in the target's pattern, so that exactly so many go.

    TF-MOT keeps every weight at or above a threshold, so that equal magnitudes keep too many.

    Args:
        kernel: Of a shape that the pattern can prune, see ``why_not``.
        zeros: What ``allocate`` says; 2:4 has its own number, ``zeros_of_two_of_four``.
        target: Only its pattern counts.
        held: An earlier mask.
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


_NEARLY_EMPTY = 0.95  # a share of zeros at which a layer passes little on, when others keep much more


@dataclass(frozen=True)
class LayerTarget:
    """What shall become of one kernel.

    Attributes:
        name: Of the layer; layers of a nested model carry that model's name in front.
        weights: In the kernel.
        zeros: Among them, at the end of the run.
        below: Magnitude below which weights go, where a threshold decides; else None.
        kept_one: The threshold is above every weight, of which the largest stays all the same.
    """

    name: str
    weights: int
    zeros: int
    below: float | None = None
    kept_one: bool = False

    @property
    def sparsity(self) -> float:
        """Zeros per weight, in [0, 1)."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Allocation:
    """The zeros of every prunable kernel.

    Attributes:
        target: What was asked for.
        layers: One entry per prunable kernel, in the model's order; those that stay dense have 0 zeros.
        left_out: Layer whose kernel the pattern cannot prune -> why.
    """

    target: SparsityTarget
    layers: tuple[LayerTarget, ...]
    left_out: dict[str, str]

    @property
    def weights(self) -> int:
        """Of all prunable kernels, those left out included."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Of all prunable kernels."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def total(self) -> float:
        """Zeros per prunable weight: what ``measure_sparsity`` counts at the end."""
        return self.zeros / self.weights

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
        model: Plain functional or Sequential model, nested models included.
        target: What is asked for.

    Raises:
        CompressionError: A kernel holds NaN or infinity, or no weight would go.
        UnsupportedLayerError: The model is subclassed, or has nothing to prune in this pattern.
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

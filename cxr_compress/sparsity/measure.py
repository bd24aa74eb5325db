"""How many weights are zero, counted over what weight pruning may touch; everything else is listed with its reason."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.models.keras_graph import layers_by_path, traits_of
from cxr_compress.models.zeros import head_names, kernel_of, prunable_layers, variable_name
from cxr_compress.sparsity.allocate import Allocation, LayerSparsity, PrunableKernels

_HEAD_REASON = "makes the model's output: few weights, and every finding hangs on each"
_DEPTHWISE_REASON = "depthwise kernels hold few weights, each the only one on its channel and place"
_NORM_REASON = "batch normalization scales and shifts whole channels"


@dataclass(frozen=True)
class SparsityReport(PrunableKernels):
    """Zeros of a model's prunable kernels.

    Attributes:
        layers: one entry per prunable kernel, in the model's order.
        excluded: layer (and variable) that is not counted -> why.
    """

    layers: tuple[LayerSparsity, ...]
    excluded: dict[str, str]


def measure_sparsity(model: Any) -> SparsityReport:
    """Count the zeros in the kernels of Conv2D, Dense and SeparableConv2D (pointwise), the head left out.

    Args:
        model: a plain functional or Sequential `keras.Model`, nested models included.
    """
    prunable = prunable_layers(model)
    layers = [
        LayerSparsity(name, kernel.size, int(np.count_nonzero(kernel == 0)))
        for name, layer in prunable.items()
        for kernel in [kernel_of(layer).numpy()]
    ]
    excluded = {}
    heads = head_names(model)
    for name, layer in layers_by_path(model).items():
        if layer.weights and name not in prunable:
            excluded[name] = _reason(layer, name in heads)
        elif name in prunable:
            kept_apart = [weight.name for weight in layer.weights if weight is not kernel_of(layer)]
            excluded.update({f"{name}: {variable_name(weight)}": _small(weight) for weight in kept_apart})
    return SparsityReport(tuple(layers), excluded)


def _small(name: str) -> str:
    return "a bias is one number per filter" if variable_name(name) == "bias" else "depthwise kernels hold few weights"


def _reason(layer: Any, is_head: bool) -> str:
    if is_head:
        return _HEAD_REASON
    traits = traits_of(layer, subclasses=True)
    if traits.kernel == "depthwise_kernel":
        return _DEPTHWISE_REASON
    if traits.moving_statistics:
        return _NORM_REASON
    return f"weight pruning knows no kernel of {type(layer).__name__} layers"


ZEROS_ALONE = (
    "Zeros alone make neither a smaller .tflite nor a faster DenseNet: the file stores every zero and the kernels "
    "multiply by it. Only a deflated copy (a zip, a compressed download) is smaller; removing filters and int8 shrink "
    "the file itself."
)


@dataclass(frozen=True)
class SizeStatement:
    """The three sizes of one model file.

    Attributes:
        raw_bytes: as it lies on the disk and in the device's memory.
        deflated_bytes: after DEFLATE at its highest level, as in a zip.
        nonzero_bytes: without the zeros among its kernels, and without any index that says where they were: what no
            sparse format can get below.
        weights: among the kernels that weight pruning touches.
        zeros: among those.
    """

    raw_bytes: int
    deflated_bytes: int
    nonzero_bytes: int
    weights: int
    zeros: int

    @property
    def zero_fraction(self) -> float:
        """Zeros per weight, in [0, 1]."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def sentence(self) -> str:
        """The sizes in words, with what zeros do not do."""
        return (
            f"{self.raw_bytes:,} bytes on disk, {self.deflated_bytes:,} deflated, {self.nonzero_bytes:,} without its "
            f"zeros; {self.zero_fraction:.1%} of {self.weights:,} kernel weights are zero. {ZEROS_ALONE}"
        )


def size_statement(content: bytes, *, weights: int, zeros: int, bytes_per_weight: int) -> SizeStatement:
    """Measure a model file.

    Args:
        content: the whole .tflite.
        weights: of the prunable kernels, as counted in this very file.
        zeros: among them; in int8 the codes that mean 0.
        bytes_per_weight: 4 in a float32 file, 2 in fp16, 1 in every quantized one.

    Raises:
        CompressionError: the numbers cannot be of this file.
    """
    if not 0 <= zeros <= weights or bytes_per_weight < 1 or weights * bytes_per_weight > len(content):
        raise CompressionError(
            f"{zeros} zeros among {weights} weights of {bytes_per_weight} bytes cannot be in a file of {len(content)} "
            "bytes: count them in this file"
        )
    return SizeStatement(
        raw_bytes=len(content),
        deflated_bytes=len(zlib.compress(content, 9)),
        nonzero_bytes=len(content) - zeros * bytes_per_weight,
        weights=weights,
        zeros=zeros,
    )


@dataclass(frozen=True)
class LayerOutcome(LayerSparsity):
    """One kernel after pruning.

    Attributes:
        zeros_asked: what it was allocated before training.
        threshold: magnitude below which weights were to go, where a threshold decided; else None.
        still_below: weights that are not zero but below the threshold: they were above it when the run began, and
            training moved them; None without a threshold.
    """

    zeros_asked: int
    threshold: float | None
    still_below: int | None


def layer_outcomes(model: Any, allocation: Allocation) -> tuple[LayerOutcome, ...]:
    """Compare a pruned model with what was allocated, one entry per prunable kernel in the model's order.

    Args:
        model: what `prune_weights` returned, or a later stage's model of the same layers.
        allocation: what `allocate` said of the model before pruning.
    """
    kernels = {name: kernel_of(layer).numpy() for name, layer in prunable_layers(model).items()}
    outcomes = []
    for layer in allocation.layers:
        magnitude = np.abs(kernels[layer.name])
        zeros = int(np.count_nonzero(magnitude == 0))
        below = None if layer.below is None else int(np.count_nonzero(magnitude < layer.below)) - zeros
        outcomes.append(LayerOutcome(layer.name, magnitude.size, zeros, layer.zeros, layer.below, below))
    return tuple(outcomes)

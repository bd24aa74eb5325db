"""How many weights are zero, counted over what weight pruning may touch; everything else is listed with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.models.masked import head_names, kernel_of, named_layers, prunable_layers, variable_name

_HEAD_REASON = "makes the model's output: few weights, and every finding hangs on each"
_REASONS: dict[type, str] = {
    keras.layers.DepthwiseConv2D: "depthwise kernels hold few weights, each the only one on its channel and place",
    keras.layers.BatchNormalization: "batch normalisation scales and shifts whole channels",
}


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one kernel.

    Attributes:
        name: Of the layer; layers of a nested model carry that model's name in front.
        weights: In the kernel, the bias left out.
        zeros: Among them, exactly 0.
    """

    name: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Zeros per weight, in [0, 1]."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of a model's prunable kernels.

    Attributes:
        layers: One entry per prunable kernel, in the model's order.
        excluded: Layer (and variable) that is not counted -> why.
    """

    layers: tuple[LayerSparsity, ...]
    excluded: dict[str, str]

    @property
    def weights(self) -> int:
        """Of all prunable kernels."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Of all prunable kernels."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def total(self) -> float:
        """Zeros per prunable weight, in [0, 1]; 0 for a model without any."""
        return self.zeros / self.weights if self.weights else 0.0


def measure_sparsity(model: Any) -> SparsityReport:
    """Count the zeros in the kernels of Conv2D, Dense and SeparableConv2D (pointwise), the head left out.

    Args:
        model: A plain functional or Sequential ``keras.Model``, nested models included.
    """
    prunable = prunable_layers(model)
    layers = [
        LayerSparsity(name, kernel.size, int(np.count_nonzero(kernel == 0)))
        for name, layer in prunable.items()
        for kernel in [kernel_of(layer).numpy()]
    ]
    excluded = {}
    heads = head_names(model)
    for name, layer in named_layers(model):
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
    for kind, reason in _REASONS.items():
        if isinstance(layer, kind):
            return reason
    return f"weight pruning knows no kernel of {type(layer).__name__} layers"

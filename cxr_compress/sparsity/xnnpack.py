"""Whether XNNPACK's sparse kernels would run a model, looked up on its graph, with the reason for every layer.

The conditions are those of TF-MOT's ``PruneForLatencyOnXNNPack``, which stops at the first layer that breaks one. Two
are stricter here, as the runtime is: the mean at the end keeps its dimensions, and an activation fused into a layer is
looked at like one of its own.

Source: Elsen et al., "Fast sparse ConvNets" (arXiv 1911.09723); the section "Sparse inference" of the README of
TensorFlow Lite's XNNPACK delegate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.keras2 import keras

layers = keras.layers

_STEM_RULE = "the sparse path starts with a 3x3 convolution, stride 2, VALID, on 3 channels after ZeroPadding2D(1)"
_END_RULE = "the sparse path ends in GlobalAveragePooling2D(keepdims=True)"
_ACTIVATIONS = ("linear", "relu", "relu6", "leaky_relu", "elu", "sigmoid")
_ALWAYS = (layers.Add, layers.Multiply, layers.ZeroPadding2D, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Dropout)
_FUNCTIONS = ("identity", "add", "subtract", "multiply")


@dataclass(frozen=True)
class XnnpackSparse:
    """Whether, and why not, zeros would make a model faster on XNNPACK.

    Attributes:
        reasons: Layer -> what keeps the graph from running sparse; empty for a graph that may.
        sparse_layers: The 1x1 convolutions that would run sparse if there were no reasons.
        weights: In their kernels.
        zeros: Among those.
    """

    reasons: dict[str, str]
    sparse_layers: tuple[str, ...]
    weights: int
    zeros: int

    @property
    def eligible(self) -> bool:
        """Whether the graph allows it."""
        return not self.reasons

    @property
    def enough_zeros(self) -> bool:
        """Whether more than two thirds of the weights of the 1x1 convolutions are zero, as XNNPACK demands."""
        return 3 * self.zeros > 2 * self.weights

    @property
    def sentence(self) -> str:
        """One line for a report."""
        if self.reasons:
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:3])
            more = f"; and {len(self.reasons) - 3} more layers" if len(self.reasons) > 3 else ""  # noqa: PLR2004 - as cut
            return f"XNNPACK's sparse kernels cannot run this graph ({listed}{more}): zeros give it no speed."
        share = f"{self.zeros} of {self.weights} weights of its 1x1 convolutions are zero"
        if not self.enough_zeros:
            return f"XNNPACK's sparse kernels could run this graph, but {share}: more than two thirds are needed."
        return (
            f"XNNPACK's sparse kernels can run this graph ({share}) from a float file that stores its kernels sparse "
            "(DENSIFY); a file that stores them dense, or in int8, runs dense."
        )


def xnnpack_sparse(model: Any) -> XnnpackSparse:
    """Check a model's graph against what XNNPACK's sparse inference demands.

    Args:
        model: Plain functional or Sequential model.
    """
    graph = _Graph(model)
    stems, reasons = _stems(graph)
    ends, no_end = _ends(graph)
    between = graph.reach(graph.next_of(stems), graph.consumers, lambda layer: layer.name in ends)
    inside = [layer for layer in between if layer.name not in ends]
    for layer in inside:
        reason = _reason(layer, graph)
        if reason:
            reasons.setdefault(layer.name, reason)
    reasons.update(no_end)
    sparse = [layer for layer in inside if type(layer) is layers.Conv2D and layer.kernel_size == (1, 1)]
    kernels = [layer.kernel.numpy() for layer in sparse]
    return XnnpackSparse(
        reasons=reasons,
        sparse_layers=tuple(layer.name for layer in sparse),
        weights=sum(kernel.size for kernel in kernels),
        zeros=sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels),
    )


class _Graph:
    """Which layer feeds which, in this model alone: its layers may have nodes in others too."""

    def __init__(self, model: Any) -> None:
        self.consumers: dict[str, list[Any]] = {}
        self.producers: dict[str, list[Any]] = {}
        self.inputs = [tensor.node.layer for tensor in model.inputs]
        self.outputs = [tensor.node.layer for tensor in model.outputs]
        waiting, seen = [tensor.node for tensor in model.outputs], set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen or node.is_input:
                continue
            seen.add(id(node))
            for tensor in node.keras_inputs:
                _add(self.producers, node.layer, tensor.node.layer)
                _add(self.consumers, tensor.node.layer, node.layer)
                waiting.append(tensor.node)

    def next_of(self, sources: Iterable[Any]) -> list[Any]:
        """The layers that read these."""
        return [reader for source in sources for reader in self.consumers.get(source.name, [])]

    def only_producer(self, layer: Any) -> Any | None:
        """The layer that feeds this one, if there is one alone."""
        found = self.producers.get(layer.name, [])
        return found[0] if len(found) == 1 else None

    @staticmethod
    def reach(sources: Iterable[Any], onwards: dict[str, list[Any]], stop: Callable[[Any], bool]) -> list[Any]:
        """Every layer on the ways from the sources, up to and with those at which to stop, each once."""
        found: dict[str, Any] = {}
        waiting = list(sources)
        while waiting:
            layer = waiting.pop(0)
            if layer.name not in found:
                found[layer.name] = layer
                waiting += [] if stop(layer) else onwards.get(layer.name, [])
        return list(found.values())


def _add(table: dict[str, list[Any]], key: Any, value: Any) -> None:
    known = table.setdefault(key.name, [])
    if not any(other is value for other in known):
        known.append(value)


def _stems(graph: _Graph) -> tuple[list[Any], dict[str, str]]:
    """Where sparse paths start on the ways from the inputs, and what there is instead on ways without a start."""

    def stops(layer: Any) -> bool:
        return _is_stem(layer, graph)

    visited = graph.reach(graph.inputs, graph.consumers, stops)
    stems = [layer for layer in visited if stops(layer)]
    without = [layer for layer in visited if not stops(layer) and not graph.consumers.get(layer.name)]
    if not without:
        return stems, {}
    first = [layer for layer in graph.reach(graph.inputs, graph.consumers, _is_convolution) if _is_convolution(layer)]
    blamed = [layer for layer in first if not stops(layer)]
    # The rest is looked at all the same, from where a start would have been.
    return [*stems, *blamed] or graph.inputs, {layer.name: _STEM_RULE for layer in blamed or without}


def _ends(graph: _Graph) -> tuple[set[str], dict[str, str]]:
    """The last mean on each way to the outputs, and what is wrong at the end."""
    visited = graph.reach(graph.outputs, graph.producers, _is_mean)
    ends = [layer for layer in visited if _is_mean(layer)]
    reasons = {layer.name: f"{_END_RULE}: keepdims is False" for layer in ends if not layer.keepdims}
    if any(layer in graph.inputs for layer in visited):  # a way back from an output met no mean
        for layer in graph.outputs:
            back = graph.reach([layer], graph.producers, _is_mean)
            if any(source in graph.inputs for source in back):
                reasons[layer.name] = f"an output on whose way there is none: {_END_RULE}"
    return {layer.name for layer in ends}, reasons


def _is_convolution(layer: Any) -> bool:
    return isinstance(layer, layers.Conv2D) and not isinstance(layer, layers.DepthwiseConv2D)


def _is_mean(layer: Any) -> bool:
    return isinstance(layer, layers.GlobalAveragePooling2D)


def _is_stem(layer: Any, graph: _Graph) -> bool:
    kernel = getattr(layer, "kernel", None)
    return (
        kernel is not None
        and tuple(kernel.shape[:3]) == (3, 3, 3)
        and tuple(layer.strides) == (2, 2)
        and layer.padding == "valid"
        and _padded(layer, graph, 1)
    )


def _padded(layer: Any, graph: _Graph, by: int) -> bool:
    """Whether zeros are put around this layer's input, as a layer of its own."""
    before = graph.only_producer(layer)
    return isinstance(before, layers.ZeroPadding2D) and before.padding == ((by, by), (by, by))


def _reason(layer: Any, graph: _Graph) -> str | None:
    """Why a layer within the sparse path cannot run there; None where it can."""
    if isinstance(layer, keras.Model):
        return "is a model within the model, which nobody looks into: rebuild it flat"
    for kind, check in _CHECKS.items():
        if isinstance(layer, kind):
            return check(layer, graph) or _fused_reason(layer)
    if isinstance(layer, _ALWAYS):
        return None
    if type(layer).__name__ == "TFOpLambda":
        return None if _is_known_function(layer.function) else f"the function {layer.name} is none of the sparse path's"
    return f"{type(layer).__name__} is no layer of the sparse path"


def _depthwise_reason(layer: Any, graph: _Graph) -> str | None:
    side = layer.kernel_size[0]
    square = side in (3, 5) and tuple(layer.kernel_size) == (side, side)
    same = layer.padding == "same" and tuple(layer.strides) == (1, 1)
    valid = (
        layer.padding == "valid"
        and tuple(layer.strides) in ((1, 1), (2, 2))
        and square
        and _padded(layer, graph, side // 2)
    )
    plain = layer.depth_multiplier == 1 and tuple(layer.dilation_rate) == (1, 1)
    if square and plain and (same or valid):
        return None
    return (
        "a depthwise kernel must be 3x3 or 5x5, undilated, one per channel, with stride 1 and SAME padding, or with "
        "stride 1 or 2 and VALID after ZeroPadding2D by half of it"
    )


def _convolution_reason(layer: Any, _graph: _Graph) -> str | None:
    plain = layer.groups == 1 and tuple(layer.dilation_rate) == (1, 1) and tuple(layer.strides) == (1, 1)
    if plain and tuple(layer.kernel_size) == (1, 1):
        return None
    sides = "x".join(str(side) for side in layer.kernel_size)
    return f"only 1x1 convolutions, stride 1, ungrouped, run sparse, this one is {sides} with strides {layer.strides}"


def _mean_reason(layer: Any, _graph: _Graph) -> str | None:
    return None if layer.keepdims else "GlobalAveragePooling2D within the path needs keepdims=True"


def _norm_reason(layer: Any, _graph: _Graph) -> str | None:
    axis = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return None if axis == [3] else f"normalizes axis {axis}, not the channels"


def _upsampling_reason(layer: Any, _graph: _Graph) -> str | None:
    return None if layer.interpolation == "bilinear" else f"{layer.interpolation} resizing, only bilinear runs sparse"


def _activation_reason(_layer: Any, _graph: _Graph) -> str | None:
    return None  # the function itself is looked at like a fused one


def _fused_reason(layer: Any) -> str | None:
    name = getattr(getattr(layer, "activation", None), "__name__", "linear")
    return None if name in _ACTIVATIONS else f"the activation {name} is none of {', '.join(_ACTIVATIONS[1:])}"


def _is_known_function(function: Any) -> bool:
    known = (tf.identity, tf.__operators__.add, tf.math.add, tf.math.subtract, tf.math.multiply)
    return function in known or getattr(function, "__name__", "") in _FUNCTIONS


# DepthwiseConv2D before Conv2D: Keras 2 derives the one from the other's base, and the first that fits decides.
_CHECKS: dict[type, Callable[[Any, _Graph], str | None]] = {
    layers.DepthwiseConv2D: _depthwise_reason,
    layers.Conv2D: _convolution_reason,
    layers.GlobalAveragePooling2D: _mean_reason,
    layers.BatchNormalization: _norm_reason,
    layers.UpSampling2D: _upsampling_reason,
    layers.Activation: _activation_reason,
}

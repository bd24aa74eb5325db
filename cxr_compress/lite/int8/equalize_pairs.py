"""Finds the pairs of layers between which a channel's scale can be moved without changing what the model computes.

source -> (layers that work channel by channel and are positively homogeneous, f(s x) = s f(x) for s > 0) -> consumer

The source may be a convolution, a dense layer or a batch norm with gamma, whatever feeds it. All that lies between has
to have this one reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CONSUMERS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense")
SOURCES = (*CONSUMERS, "BatchNormalization")
_PASSING = (
    "AveragePooling2D", "Cropping2D", "Dropout", "Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D",
    "LeakyReLU", "MaxPooling2D", "PReLU", "SpatialDropout2D", "UpSampling2D", "ZeroPadding2D",
)  # fmt: skip
_HOMOGENEOUS = ("linear", "relu", "leaky_relu")
_OUTPUT = "the model's output"


@dataclass(frozen=True)
class Pair:
    """Two layers whose common channels can be rescaled.

    Attributes:
        source: divided per channel.
        consumer: multiplied per channel it reads.
        between: layers from the source to the consumer, in that order.
        read: the Keras tensor that the consumer reads.
        nested: inside a model that is a layer of the model.
    """

    source: Any
    consumer: Any
    between: tuple[Any, ...]
    read: Any
    nested: bool

    @property
    def flattened(self) -> bool:
        """The consumer reads every channel at many positions in a row, channels last."""
        return any(type(layer).__name__ == "Flatten" for layer in self.between)


def find_pairs(model: Any) -> tuple[list[Pair], dict[str, str]]:
    """All pairs of a functional or Sequential model, and for every other layer with a kernel why it is in none."""
    pairs: list[Pair] = []
    left: dict[str, str] = {}
    calls = Counter(id(node.layer) for scope, _ in _scopes(model, "") for node in _nodes(scope))
    for scope, prefix in _scopes(model, ""):
        wiring = _Wiring(scope, calls, nested=bool(prefix))
        for node in _nodes(scope):
            if type(node.layer).__name__ in CONSUMERS:
                found = wiring.pair(node)
                if isinstance(found, Pair):
                    pairs.append(found)
                else:
                    left[prefix + node.layer.name] = found
    return pairs, left


def _scopes(model: Any, prefix: str) -> Iterator[tuple[Any, str]]:
    """The model and the functional models inside it, each with the path of its layers."""
    from cxr_compress.keras2 import keras

    yield model, prefix
    for layer in model.layers:
        if isinstance(layer, keras.Model) and getattr(layer, "_is_graph_network", False):
            yield from _scopes(layer, f"{prefix}{layer.name}/")


def _nodes(model: Any) -> list[Any]:
    """Calls of a model's layers, each after those it depends on."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]


class _Wiring:
    """Who reads and who writes each tensor of one model."""

    def __init__(self, model: Any, calls: Counter[int], *, nested: bool) -> None:
        self._calls, self._nested = calls, nested
        self._writers: dict[int, Any] = {}
        self._readers: dict[int, list[str]] = {}
        for node in _nodes(model):
            for tensor in _flat(node.outputs):
                self._writers[id(tensor)] = node
            for tensor in node.keras_inputs:
                self._readers.setdefault(id(tensor), []).append(node.layer.name)
        for tensor in _flat(model.outputs):
            self._readers.setdefault(id(tensor), []).append(_OUTPUT)

    def pair(self, node: Any) -> Pair | str:
        """The pair that a consumer ends, or why it ends none."""
        reason = self._unfit(node.layer, node)
        if reason:
            return reason
        read = tensor = node.keras_inputs[0]
        between: list[Any] = []
        while True:
            writer = self._writers.get(id(tensor))
            if writer is None:
                return "reads the model's input"
            layer = writer.layer
            others = [
                name for name in self._readers[id(tensor)] if name != (between[0] if between else node.layer).name
            ]
            if others:
                return f"the output of {layer.name} also goes to {others[0]}"
            reason = self._unfit(layer, writer) or _not_homogeneous(layer)
            if reason:
                return reason
            if type(layer).__name__ in SOURCES:
                return Pair(layer, node.layer, tuple(between), read, self._nested)
            between.insert(0, layer)
            tensor = writer.keras_inputs[0]

    def _unfit(self, layer: Any, node: Any) -> str:
        """Why a layer cannot be part of any pair; "" where it can."""
        name = type(layer).__name__
        if self._calls[id(layer)] != 1:
            return f"{layer.name} is called {self._calls[id(layer)]} times: each call would need its own scale"
        if len(node.keras_inputs) != 1:
            return f"{layer.name} ({name}) joins several inputs"
        if getattr(layer, "data_format", None) == "channels_first":
            return f"{layer.name} has its channels first"
        if getattr(layer, "groups", 1) != 1:
            return f"{layer.name} is a grouped convolution"
        return ""


def _not_homogeneous(layer: Any) -> str:
    """Why a scale cannot pass through a layer, or come from it; "" where it can."""
    from cxr_compress.keras2 import keras

    name = type(layer).__name__
    if name == "ReLU":
        return _limits(layer)
    if name == "BatchNormalization":
        return _unscaled(layer)
    if name in _PASSING:
        return ""
    if name in (*CONSUMERS, "Activation"):
        activation = keras.activations.serialize(layer.activation)
        if activation in _HOMOGENEOUS:
            return ""
        return f"{layer.name} has activation {activation}, which is not positively homogeneous"
    return f"{layer.name} ({name}) does not work on each channel by itself, or is not positively homogeneous"


def _limits(layer: Any) -> str:
    if layer.max_value is not None:
        return (
            f"{layer.name} cuts at {float(layer.max_value):g} and is not positively homogeneous: a scaled channel "
            "would be cut elsewhere; train with a plain ReLU"
        )
    return f"{layer.name} has a threshold and is not positively homogeneous" if float(layer.threshold) else ""


def _unscaled(layer: Any) -> str:
    if list(layer.axis) != [len(layer.input_shape) - 1]:
        return f"{layer.name} does not normalize the last axis"
    return "" if layer.scale else f"{layer.name} has no gamma to scale"


def _flat(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]

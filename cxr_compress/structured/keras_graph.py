"""Reading the wiring of a Keras model: its layers by path, the calls of these layers, and what each call was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import tensorflow as tf

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.structured.flow import TensorSlot


def require_graph(model: keras.Model) -> None:
    """Refuse a model whose wiring cannot be read.

    Raises:
        UnsupportedLayerError: the model is subclassed, or a Sequential that is not built.
    """
    if not _is_graph(model):
        raise UnsupportedLayerError(
            f"expected a functional or built Sequential Keras model, got {type(model).__name__} {model.name!r}, whose "
            "wiring cannot be read: rebuild it with keras.Model(inputs, outputs)"
        )


def _is_graph(model: keras.Model) -> bool:
    return bool(getattr(model, "_is_graph_network", False))


def is_nested(layer: Any) -> bool:
    """Whether a layer is a model whose own layers are followed; a subclassed model is a layer like any unknown one."""
    return isinstance(layer, keras.Model) and _is_graph(layer)


def layers_by_path(model: keras.Model, prefix: str = "") -> dict[str, Any]:
    """Every layer of a model, those of nested models included, by the path that the analysis gives it."""
    found: dict[str, Any] = {}
    for layer in model.layers:
        if is_nested(layer):
            found.update(layers_by_path(layer, f"{prefix}{layer.name}/"))
        else:
            found[prefix + layer.name] = layer
    return found


def nodes(model: keras.Model) -> Iterator[Any]:
    """The calls of a model's layers, each after the calls it depends on; Keras keeps them by distance from the end."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def read_call(call: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments of a call; Keras numbers its input tensors in the order in which they are flattened."""
    tensors = {id(tensor) for tensor in call.keras_inputs}
    number = count()

    def slot(value: Any) -> Any:
        return TensorSlot(next(number)) if id(value) in tensors else value

    arguments, options = tf.nest.map_structure(slot, (tuple(call.call_args), dict(call.call_kwargs)))
    return arguments, options


def flat(outputs: Any) -> list[Any]:
    """The tensors of a call's output, whatever they come in."""
    return list(tf.nest.flatten(outputs))


def tensor_shape(tensor: Any, where: str) -> tuple[int, ...]:
    """A tensor's shape without the batch axis.

    Raises:
        UnsupportedLayerError: a size that is open until the model runs.
    """
    shape = tuple(tensor.shape)[1:]
    if None in shape:
        raise UnsupportedLayerError(
            f"{where}: expected a model with a fixed input size, got a tensor of shape {tuple(tensor.shape)}; "
            "rebuild the model with the size it will run at, for example input_shape=(224, 224, 3)"
        )
    return shape

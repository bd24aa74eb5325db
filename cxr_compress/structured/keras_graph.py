"""Reading the wiring of a Keras model: its layers by path, the calls of these layers, and what each call was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
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


def layers_by_path(model: keras.Model) -> dict[str, Any]:
    """Every layer of a model, those of nested models included, by the path that the analysis gives it.

    A layer that is used in several models is one layer, under the first of its paths.

    Raises:
        UnsupportedLayerError: two layers have one path, as "a/b" and the "b" in a nested model "a" do.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, layer in _all_layers(model, ""):
        if path in found and found[path] is not layer:
            raise UnsupportedLayerError(
                f"two layers of {model.name!r} have the path {path!r} (a nested model and a layer): rename one of them"
            )
        if id(layer) not in seen:
            found[path] = layer
            seen.add(id(layer))
    return found


def shared_layer(model: keras.Model) -> str:
    """The paths of the first layer that stands in several models ("conv and inner/conv"); "" where none does."""
    paths: dict[int, list[str]] = {}
    for path, layer in _all_layers(model, ""):
        paths.setdefault(id(layer), []).append(path)
    return next((" and ".join(several) for several in paths.values() if len(several) > 1), "")


def _all_layers(model: keras.Model, prefix: str) -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if is_nested(layer):
            yield from _all_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def nodes(model: keras.Model) -> Iterator[Any]:
    """The calls of a model's layers, each after the calls it depends on; Keras keeps them by distance from the end."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def is_from_keras(layer: Any) -> bool:
    """Whether a layer's class is Keras's own."""
    return type(layer).__module__.startswith(("tf_keras.", "keras."))


# Entries that rules ask for and that these classes keep, in the form that their config has, under the same name.
_OF_CONVOLUTION = frozenset(("strides", "padding", "data_format", "dilation_rate", "groups", "activation", "use_bias"))
_KEPT: Mapping[str, frozenset[str]] = {
    **{f"Conv{rank}D{kind}": _OF_CONVOLUTION for rank in (1, 2, 3) for kind in ("", "Transpose")},
    "Conv3DTranspose": _OF_CONVOLUTION - {"dilation_rate"},
    **{
        f"{kind}Conv{rank}D": _OF_CONVOLUTION | {"depth_multiplier"}
        for kind in ("Depthwise", "Separable")
        for rank in (1, 2)
    },
    "Dense": frozenset(("activation", "use_bias")),
    "Activation": frozenset(("activation",)),
    "BatchNormalization": frozenset(("axis",)),
    "LayerNormalization": frozenset(("axis",)),
    "GroupNormalization": frozenset(("axis", "groups")),
}
_ASKED_FOR = frozenset().union(*_KEPT.values())
_ABSENT = object()


class LayerConfig(Mapping[str, Any]):
    """The config of one of Keras's own layers, as `get_config` gives it, at a fraction of its time.

    `get_config` serializes every initializer, regularizer and constraint of a layer, which no rule looks at. What rules
    do ask of the layers that have these is read from the layer itself; all else waits until somebody asks.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._kept = _KEPT.get(type(layer).__name__)

    @cached_property
    def _whole(self) -> Mapping[str, Any]:
        return dict(self._layer.get_config())

    def __getitem__(self, key: str) -> Any:
        found = self.get(key, _ABSENT)
        if found is _ABSENT:
            raise KeyError(key)
        return found

    def _activation(self, function: Any) -> Any:
        """Keras's own functions go by their names; only Keras itself can tell how it writes others."""
        name = getattr(function, "__name__", "")
        own = name and function is getattr(keras.activations, name, None)
        return name if own else self._whole["activation"]

    def get(self, key: str, default: Any = None) -> Any:
        """As of every mapping; rules ask thousands of times, so this is the short way and `[]` goes through it."""
        if self._kept is None or key not in _ASKED_FOR:
            return self._whole.get(key, default)
        if key not in self._kept:
            return default
        value = getattr(self._layer, key)
        return self._activation(value) if key == "activation" else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)


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
    return [outputs] if hasattr(outputs, "_keras_history") else list(tf.nest.flatten(outputs))


def weights_of(layer: Any) -> list[Any]:
    """A layer's weights, in the order of `layer.get_weights()`."""
    own = _holds_no_other(layer)
    return list(layer._trainable_weights + layer._non_trainable_weights if own else layer.weights)


def weight_shapes(layer: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of a layer's weights, in the order of `layer.get_weights()`."""
    return tuple(tuple(weight.shape.as_list()) for weight in weights_of(layer))


def _holds_no_other(layer: Any) -> bool:
    """Whether the weights of a layer are its own alone; `layer.weights` searches it for other layers each time."""
    if not is_from_keras(layer):
        return False
    # A batch norm tracks the list of its axes, which holds no layer.
    return all(isinstance(held, list) and _are_numbers(held) for held in layer._self_tracked_trackables)


def _are_numbers(items: list[Any]) -> bool:
    return all(isinstance(item, int) for item in items)


def tensor_shape(tensor: Any, where: str) -> tuple[int, ...]:
    """A tensor's shape without the batch axis.

    Raises:
        UnsupportedLayerError: a size that is open until the model runs.
    """
    shape = tuple(tensor.shape.as_list()[1:])
    if None in shape:
        raise UnsupportedLayerError(
            f"{where}: expected a model with a fixed input size, got a tensor of shape {tuple(tensor.shape)}; "
            "rebuild the model with the size it will run at, for example input_shape=(224, 224, 3)"
        )
    return shape

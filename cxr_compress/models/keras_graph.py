"""The one reader of Keras models: layers by path, what each is, their calls and what these were given, config edits.

A path is a layer's name with the names of the nested models around it in front: "backbone/conv1".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.call_removal import Config, Fates, without_calls
from cxr_compress.models.layer_traits import LAYERS, UNKNOWN, LayerTraits


@dataclass(frozen=True)
class TensorSlot:
    """Stands for an input tensor among the arguments of a call: the one with this number in the call's inputs."""

    index: int


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
    """Whether a layer is a model whose own layers are followed; a subclassed model counts as one unknown layer."""
    return isinstance(layer, keras.Model) and _is_graph(layer)


def layers_by_path(model: keras.Model) -> dict[str, Any]:
    """Every layer of a model, those of nested models included, by its path.

    A layer that is used in several models is one layer, under the first of its paths.

    Raises:
        UnsupportedLayerError: two layers have one path, as "a/b" and the "b" in a nested model "a" do.
    """
    layers: dict[str, Any] = {}
    seen: set[int] = set()
    for path, layer in _all_layers(model, ""):
        if path in layers and layers[path] is not layer:
            raise UnsupportedLayerError(
                f"two layers of {model.name!r} have the path {path!r} (a nested model and a layer): rename one of them"
            )
        if id(layer) not in seen:
            layers[path] = layer
            seen.add(id(layer))
    return layers


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


def calls_of(model: keras.Model) -> Iterator[Any]:
    """The calls of a model's own layers, each after those it depends on, as Keras records them (its nodes)."""
    # Keras keeps them by their distance from the end.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def call_numbers(model: keras.Model) -> dict[int, int]:
    """By the id of a call that `calls_of` gives: how many of the model's calls of the same layer were made before.

    The config of a model lists a layer's calls in this order.
    """
    own = {id(node) for node in calls_of(model)}
    return {
        id(node): number
        for layer in model.layers
        for number, node in enumerate(node for node in layer._inbound_nodes if id(node) in own)
    }


def is_from_keras(layer: Any) -> bool:
    """Whether a layer's class is Keras's own."""
    return _is_of_keras(type(layer))


def _is_of_keras(layer_class: type) -> bool:
    return layer_class.__module__.startswith(("tf_keras.", "keras."))


def traits_of(layer: Any, *, subclasses: bool = False) -> LayerTraits:
    """What a layer is; `UNKNOWN` where its class is not Keras's own: a class of the same name may do anything.

    Args:
        layer: the layer.
        subclasses: take a class derived from one of Keras's for that one.
    """
    classes = type(layer).__mro__ if subclasses else type(layer).__mro__[:1]
    known = (LAYERS[one.__name__] for one in classes if one.__name__ in LAYERS and _is_of_keras(one))
    return next(known, UNKNOWN)


_ASKED_FOR = frozenset().union(*(traits.attributes for traits in LAYERS.values()))
_ABSENT = object()


class LayerConfig(Mapping[str, Any]):
    """The config of one of Keras's own layers, as `get_config` gives it, at a fraction of its time.

    `get_config` serializes every initializer, regularizer and constraint of a layer, which no rule looks at. What rules
    do ask of the layers that have these is read from the layer itself; all else waits until somebody asks.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._kept = LAYERS.get(type(layer).__name__, UNKNOWN).attributes

    @cached_property
    def _whole(self) -> Mapping[str, Any]:
        return dict(self._layer.get_config())

    def __getitem__(self, key: str) -> Any:
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def _activation(self, function: Any) -> Any:
        """Keras's own functions go by their names; only Keras itself can tell how it writes others."""
        name = getattr(function, "__name__", "")
        own = name and function is getattr(keras.activations, name, None)
        return name if own else self._whole["activation"]

    def get(self, key: str, default: Any = None) -> Any:
        """As of every mapping; rules ask thousands of times, so this is the short way and `[]` goes through it."""
        if not self._kept or key not in _ASKED_FOR:
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


def tensors_in(outputs: Any) -> list[Any]:
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


@dataclass(frozen=True, eq=False)
class Step:
    """One call of one layer, in a model whose nested models are unrolled.

    Attributes:
        path: of the layer.
        layer: the layer.
        node: the call, as Keras recorded it.
        reads: the numbers of the tensors that it takes.
        makes: the numbers of the tensors that it gives.
    """

    path: str
    layer: Any
    node: Any
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    def run(self, arguments: Sequence[Any]) -> list[Any]:
        """The layer's outputs for these tensors, in inference mode."""
        values: dict[str, list[Any]] = {}
        for tensor, value in zip(self.node.keras_inputs, arguments, strict=True):
            values.setdefault(str(id(tensor)), []).append(value)
        positional, named = self.node.map_arguments(values)
        outputs = self.layer(*positional, **named)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


@dataclass(frozen=True, eq=False)
class Steps:
    """A model as a straight list of calls.

    Attributes:
        calls: in the order in which they run.
        source: the number of the tensor that is the model's input.
        results: the numbers of the model's outputs.
    """

    calls: tuple[Step, ...]
    source: int
    results: tuple[int, ...]

    def last_reads(self) -> dict[int, int]:
        """By tensor, the place of the last call that reads it; the model's outputs are not kept for longer."""
        return {tensor: place for place, step in enumerate(self.calls) for tensor in step.reads}

    def readers(self, tensor: int) -> list[Step]:
        """The calls that read a tensor."""
        return [step for step in self.calls if tensor in step.reads]


def unroll(model: keras.Model) -> Steps:
    """The calls of a model's layers, those of nested models in their place.

    Raises:
        CompressionError: a model with several inputs.
    """
    if len(model.inputs) != 1:
        raise CompressionError(f"expected a model with one input to run on batches, got {len(model.inputs)} inputs")
    calls: list[Step] = []
    results = _unroll(model, "", [0], calls, count(1))
    return Steps(tuple(calls), 0, tuple(results))


def _unroll(model: keras.Model, prefix: str, inputs: list[int], calls: list[Step], numbers: count[int]) -> list[int]:
    known = {id(tensor): number for tensor, number in zip(model.inputs, inputs, strict=True)}
    for node in calls_of(model):
        reads = [known[id(tensor)] for tensor in node.keras_inputs]
        outputs = tensors_in(node.outputs)
        path = prefix + node.layer.name
        if is_nested(node.layer):
            makes = _unroll(node.layer, f"{path}/", reads, calls, numbers)
        else:
            makes = [next(numbers) for _ in outputs]
            calls.append(Step(path, node.layer, node, tuple(reads), tuple(makes)))
        known.update((id(tensor), number) for tensor, number in zip(outputs, makes, strict=True))
    return [known[id(tensor)] for tensor in model.outputs]


# Operations on Keras tensors are layers that Keras itself knows how to build, though `keras.layers` does not name them.
_BUILT_IN = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")

# (path, class name, config) of a layer; changes the config in place.
LayerEdit = Callable[[str, str, dict[str, Any]], None]


def rebuilt(model: Any, edit: Callable[[Config], Config | None] = lambda config: None) -> Any:
    """A model of the same layers, not yet of the same weights.

    Args:
        model: functional or Sequential, whatever classes of its own it came with.
        edit: changes the configuration of the whole model, or gives another one.
    """
    config = copy.deepcopy(model.get_config())
    config.pop("build_input_shape", None)  # of a Sequential model: its first layer decides
    config = edit(config) or config
    with own_layers(model):
        return type(model).from_config(config)


def own_layers(model: Any) -> Any:
    """A scope in which a model's config can be built anew, whatever classes of its own it came with.

    ConvNeXt is one such model of `keras.applications`: its LayerScale is not registered anywhere.
    """
    single = [
        layer for layer in model._flatten_layers(include_self=False) if not getattr(layer, "_is_graph_network", False)
    ]
    classes = {type(layer).__name__: type(layer) for layer in single}
    own = {name: cls for name, cls in classes.items() if getattr(keras.layers, name, None) is not cls}
    return keras.utils.custom_object_scope({name: cls for name, cls in own.items() if name not in _BUILT_IN})


def rebuild_model(model: keras.Model, edit: LayerEdit, fates: Fates = MappingProxyType({})) -> keras.Model:
    """A new model with new weights from the config of `model`, each layer's config edited; `model` is left untouched.

    Whatever Keras raises where it cannot build a layer from its config goes through.

    Args:
        model: as `rebuilt`.
        edit: changes the config of a layer.
        fates: calls that go or keep fewer inputs; see `without_calls`.
    """

    def edit_layers(config: Config) -> None:
        without_calls(config, fates)
        for path, layer in _layer_entries(config, ""):
            edit(path, layer["class_name"], layer["config"])

    return rebuilt(model, edit_layers)


def copy_model(model: keras.Model, edit: LayerEdit = lambda path, class_name, config: None) -> keras.Model:
    """A copy of a model with its weights; edits of its layers' configs must leave the weights' shapes as they are."""
    copied = rebuild_model(model, edit)
    copy_weights(copied, model)
    return copied


def copy_weights(copied: keras.Model, model: keras.Model, besides: Sequence[str] = ()) -> None:
    """Give a rebuilt model the weights of the model it was made of, in its own precision.

    They go over by the names of layers, whose order a rebuilt model need not keep.

    Args:
        copied: what is filled.
        model: whose weights they are.
        besides: paths of layers that keep what they have.
    """
    copies = dict(_all_layers(copied, ""))
    for path, layer in _all_layers(model, ""):  # one that two models share has a copy in each
        if path not in besides:
            copies[path].set_weights(layer.get_weights())
            # Normalization computes from numbers derived of its weights, which only this refreshes.
            copies[path].finalize_state()


def _layer_entries(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The path and the entry of every layer in a model's config, nested models opened up, freed of built shapes."""
    for layer in config["layers"]:
        # The shape that it was once built for: calls build it for the one that they have.
        layer.pop("build_config", None)
        inner = layer["config"]
        if isinstance(inner.get("layers"), list):
            yield from _layer_entries(inner, f"{prefix}{inner['name']}/")
        else:
            yield prefix + str(layer.get("name") or inner.get("name")), layer

"""Where the outputs of a Keras model get their activation, read in its graph and in the models that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras

_layers = keras.layers
# TensorFlow's own operations in a graph, by the names that their layers keep.
_OPERATIONS = {
    "math.sigmoid": "sigmoid",
    "nn.softmax": "softmax",
    **dict.fromkeys(("math.reduce_mean", "__operators__.add", "math.add", "math.subtract", "math.multiply"), ""),
    **dict.fromkeys(("concat", "nn.bias_add", "linalg.matmul"), ""),
    **dict.fromkeys(("reshape", "squeeze", "identity", "cast"), ""),
}
_SQUASHING = frozenset(("sigmoid", "softmax", "hard_sigmoid"))
_MOVES = frozenset(("reshape", "squeeze", "identity", "cast"))
_OTHER_ACTIVATIONS = (_layers.ReLU, _layers.LeakyReLU, _layers.PReLU, _layers.ELU, _layers.ThresholdedReLU)
MEANS = (_layers.GlobalAveragePooling2D, _layers.AveragePooling2D)  # a difference of channels goes through them
_POOLS = (*MEANS, _layers.GlobalMaxPooling2D, _layers.MaxPooling2D)


@dataclass(frozen=True)
class Place:
    """A call of a layer.

    Attributes:
        models: The model, the model within it that is its last layer, and so on, down to the one that makes the call.
        node: The call.
    """

    models: tuple[Any, ...]
    node: Any

    @property
    def layer(self) -> Any:
        """What is called."""
        return self.node.layer

    @property
    def path(self) -> str:
        """The layer with the models around it in front."""
        return "/".join([*(model.name for model in self.models[1:]), self.layer.name])


@dataclass(frozen=True)
class End(Place):
    """Where an output gets its activation.

    Attributes:
        activation: "sigmoid", "softmax" or "" for none.
        behind: The calls from there to the output, which change no number.
    """

    activation: str = ""
    behind: tuple[Place, ...] = ()


def check_graph(model: Any) -> None:
    """Refuse a model whose end cannot be read: a subclassed one, or one of several outputs.

    Raises:
        UnsupportedLayerError: it is; says how to make one that can be read.
    """
    if not getattr(model, "_is_graph_network", False):
        raise UnsupportedLayerError(
            f"expected a functional or built Sequential model, got {type(model).__name__} "
            f"{getattr(model, 'name', '')!r}, whose end cannot be read: rebuild it with keras.Model(inputs, outputs)"
        )
    if len(model.outputs) != 1:
        raise UnsupportedLayerError(
            f"expected a model with one output, {model.name} has {len(model.outputs)}: cut it to the one with the "
            "findings, keras.Model(model.inputs, model.outputs[i])"
        )


def upwards(models: tuple[Any, ...], tensor: Any) -> Iterator[Place]:
    """The calls from a tensor up, as long as each has one input, into models but not out of them again."""
    while True:
        node = tensor.node
        if isinstance(node.layer, keras.Model) and getattr(node.layer, "_is_graph_network", False):
            # A model of several outputs gives more than one tensor: the one that is used here.
            inner = node.layer.outputs[tensor._keras_history.tensor_index]
            yield from upwards((*models, node.layer), inner)
            return
        yield Place(models, node)
        if node.is_input or len(node.keras_inputs) != 1:
            return
        tensor = node.keras_inputs[0]


def find_ends(models: tuple[Any, ...], tensor: Any) -> list[End]:
    """Find the activation of an output, or of each of the heads that a Concatenate joins to it.

    One end without an activation stands for an output of logits.

    Args:
        models: the model, and those within it down to the one that the tensor belongs to.
        tensor: the output.

    Raises:
        UnsupportedLayerError: it ends in something else, or in a way that cannot be undone; it names the layer.
    """
    behind: list[Place] = []
    pooled = ""
    for place in upwards(models, tensor):
        activation = activation_of(place)
        if activation in ("sigmoid", "softmax"):
            if pooled:
                raise UnsupportedLayerError(
                    f"{place.path!r} gives probabilities that {pooled!r} pools, and pooled logits are another number: "
                    "build the model with the activation behind the pooling, and train that"
                )
            return [_checked(End(place.models, place.node, activation, tuple(behind)))]
        if activation:
            raise UnsupportedLayerError(
                f"expected a model that ends in logits, sigmoid or softmax, {place.path!r} ends it with {activation}: "
                "give it a Dense layer of logits as its head"
            )
        if isinstance(place.layer, _POOLS):
            pooled = place.path
        elif changes_no_number(place.layer):
            behind.append(place)
        elif _joins_classes(place) and not pooled:
            return _joined(place, behind)
        else:
            break
    near = _probabilities_near(place.models, place.node.outputs, set())
    if near:
        raise UnsupportedLayerError(
            f"{place.path!r} computes something else from the probabilities that {near!r} gives: give the model a "
            "Dense layer of logits as its head"
        )
    return [End(place.models, place.node)]


def _joins_classes(place: Place) -> bool:
    """Whether a call puts the classes of several heads in a row."""
    if not isinstance(place.layer, _layers.Concatenate):
        return False
    return place.layer.axis in (-1, len(place.node.outputs.shape) - 1)


def _joined(join: Place, behind: list[Place]) -> list[End]:
    ends = [end for tensor in join.node.keras_inputs for end in find_ends(join.models, tensor)]
    kinds = {end.activation for end in ends}
    if kinds == {""}:
        return [End(join.models, join.node)]
    if kinds != {"sigmoid"}:
        raise UnsupportedLayerError(
            f"{join.path!r} joins heads that end in {', '.join(sorted(kind or 'logits' for kind in kinds))}: give all "
            "of them a sigmoid, or one softmax behind it"
        )
    joined = [replace(end, behind=(*behind, join, *end.behind)) for end in ends]
    return [_checked(end) for end in joined]


def _probabilities_near(models: tuple[Any, ...], tensor: Any, seen: set[int]) -> str:
    """The sigmoid or softmax that a tensor is computed from without weights in between; "" for none."""
    for place in upwards(models, tensor):
        if id(place.node) in seen:
            return ""
        seen.add(id(place.node))
        if activation_of(place) in _SQUASHING:
            return place.path
        if any(len(weight.shape) > 1 for weight in place.layer.weights):
            return ""  # what its kernel makes of them is a number of its own
        if not place.node.is_input and len(place.node.keras_inputs) != 1:
            found = (_probabilities_near(place.models, one, seen) for one in place.node.keras_inputs)
            return next(filter(None, found), "")
    return ""


def activation_of(place: Place) -> str:
    """The name of a layer's activation; "" for none."""
    layer = place.layer
    if isinstance(layer, _layers.Softmax):
        return "softmax"
    operation = operation_of(layer)
    if operation:
        return _OPERATIONS.get(operation, f"TensorFlow's {operation}")
    if isinstance(layer, _OTHER_ACTIVATIONS):
        return type(layer).__name__
    function = getattr(layer, "activation", keras.activations.linear)
    return "" if function is keras.activations.linear else str(getattr(function, "__name__", function))


def operation_of(layer: Any) -> str:
    """The operation of a layer that stands for one of TensorFlow's; "" for any other layer."""
    return str(layer.get_config()["function"]) if type(layer).__name__ == "TFOpLambda" else ""


def changes_no_number(layer: Any) -> bool:
    """Whether a layer hands its numbers on, at inference; an activation other than linear is looked at before."""
    passing = isinstance(layer, _layers.Flatten | _layers.Reshape | _layers.Dropout | _layers.Activation)
    return passing or operation_of(layer) in _MOVES


def _checked(end: End) -> End:
    """Refuse ends that cannot be edited without changing something else."""
    for model, layer in zip(end.models, (*end.models[1:], end.layer), strict=True):
        require_one_call(model, layer)
    options = end.node.call_kwargs if operation_of(end.layer) else {"axis": getattr(end.layer, "axis", None)}
    if options.get("axis") not in (None, -1, len(end.node.outputs.shape) - 1):
        raise UnsupportedLayerError(
            f"expected a softmax over the last axis, that of {end.path!r} is over axis {options['axis']}: reorder it"
        )
    if end.behind and operation_of(end.layer):
        raise UnsupportedLayerError(
            f"{end.behind[0].path!r} follows the TensorFlow operation {end.path!r}, which is no layer of Keras: use "
            f"keras.layers.Activation({end.activation!r}) as the last layer of the model"
        )
    return end


def require_one_call(model: Any, layer: Any) -> None:
    """Refuse a layer that a model calls more than once: edited for one call, it would be for the others too.

    Raises:
        UnsupportedLayerError: it does.
    """
    calls = sum(node.layer is layer for nodes in model._nodes_by_depth.values() for node in nodes)
    if calls != 1:
        raise UnsupportedLayerError(
            f"{layer.name!r}, which ends {model.name}, is called {calls} times in it: give the end a layer of its own"
        )

"""Where the outputs of a Keras model get their activation, read in its graph and in the models that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from cxr_compress.device.runner import CAM_NAME
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import traits_of

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
_PASSING = ("view", "noise")  # kinds of layers that hand their numbers on as they are when a model is only run
MEANS = (_layers.GlobalAveragePooling2D, _layers.AveragePooling2D)  # a difference of channels goes through them


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
        if traits_of(place.layer, subclasses=True).kind == "pool":
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
            f"{place.path!r} computes something else from the probabilities that {near!r} gives",
            "give the model a Dense layer of logits as its head",
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
            f"{join.path!r} joins heads that end in {', '.join(sorted(kind or 'logits' for kind in kinds))}",
            "give all of them a sigmoid, or one softmax behind it",
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
    if traits_of(layer, subclasses=True).kind == "activation" and not hasattr(layer, "activation"):
        return type(layer).__name__
    function = getattr(layer, "activation", keras.activations.linear)
    return "" if function is keras.activations.linear else str(getattr(function, "__name__", function))


def operation_of(layer: Any) -> str:
    """The operation of a layer that stands for one of TensorFlow's; "" for any other layer."""
    return str(layer.get_config()["function"]) if type(layer).__name__ == "TFOpLambda" else ""


def changes_no_number(layer: Any) -> bool:
    """Whether a layer hands its numbers on, at inference; an activation other than linear is looked at before."""
    passing = traits_of(layer, subclasses=True).kind in _PASSING or isinstance(layer, _layers.Activation)
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
            f"{layer.name!r}, which ends {model.name}, is called {calls} times in it",
            "give the end a layer of its own",
        )


LOGITS, PROBABILITIES, SHARES, CONSTANT = "logits", "probabilities", "shares", "constant"

PROBES = 64
_BATCH = 8
_COARSE = 8
# float32 sums of probabilities, and activations that compute in bfloat16, end a little beside 0 and 1.
_BESIDE = 1e-4
_SAME = 1e-6

Call = Callable[[npt.NDArray[np.float32]], npt.ArrayLike]


def kind_of_outputs(call: Call, input_shape: tuple[int, int, int], *, batch: int = _BATCH) -> str:
    """What a classifier gives, judged by its answers to 64 random and extreme inputs; stops at the first clear one.

    Args:
        call: from float32 (n, height, width, channels) to (n, k).
        input_shape: (height, width, channels).
        batch: images that a call takes, 1 or 8.

    Returns:
        LOGITS where an answer leaves [0, 1]; SHARES where none does and every row of several sums to 1; PROBABILITIES
        where none does; CONSTANT where all answers are the same, or none is finite: then nothing can be told.
    """
    rows: list[npt.NDArray[np.float64]] = []
    with np.errstate(all="ignore"):
        for images in (part for eight in probe_images(input_shape) for part in np.split(eight, _BATCH // batch)):
            outputs = np.asarray(call(images), np.float64).reshape(len(images), -1)
            finite = outputs[np.isfinite(outputs).all(axis=1)]
            if ((finite < -_BESIDE) | (finite > 1 + _BESIDE)).any():
                return LOGITS
            rows.append(finite)
    found = np.concatenate(rows)
    if not len(found) or np.ptp(found, axis=0).max(initial=0.0) < _SAME:
        return CONSTANT
    if found.shape[1] > 1 and (np.abs(found.sum(axis=1) - 1) < _BESIDE).all():
        return SHARES
    return PROBABILITIES


def probe_images(input_shape: tuple[int, int, int]) -> Iterator[npt.NDArray[np.float32]]:
    """64 inputs in batches of 8, the same on every machine: noise and smooth noise from faint to extreme, flat images.

    Every batch has one of each kind, so that few have to be run where the answer is clear.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    height, width, channels = input_shape
    coarse = (-(-height // _COARSE), -(-width // _COARSE), channels)
    for step in range(PROBES // _BATCH):
        smooth = rng.normal(size=coarse).repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)[:height, :width]
        noise = rng.normal(size=(3, height, width, channels))
        flat = np.broadcast_to(rng.normal(scale=10.0**step, size=channels), (height, width, channels))
        batch = (
            *(noise[0], 10.0 * noise[1], 10.0 ** (step - 2) * noise[2]),
            *(rng.uniform(0, 1, input_shape), rng.uniform(0, 255, input_shape)),
            *(2.0 * smooth, 127.5 + 60.0 * smooth, flat),
        )
        yield np.stack(batch).astype(np.float32)


_FLAT_RANK = 2


def with_cam(model: Any) -> Any:
    """A plain model with the outputs logits (batch, k) and "cam" (batch, h, w, k); `model` computes what it did.

    The new model shares the layers of the old one, so it is there at once, and has a copy of the head's kernel: make it
    when training is over. Where evidence lies is shown on the grid of the last feature map (7 x 7 for a DenseNet at 224
    px); it is no outline of a disease.

    Args:
        model: functional or Sequential tf_keras model that ends GlobalAveragePooling2D -> (Dropout) -> Dense, linear.

    Raises:
        UnsupportedLayerError: another head; it names what was found there.
    """
    if not getattr(model, "_is_graph_network", False) or len(model.outputs) != 1:
        count = len(getattr(model, "outputs", None) or [])
        _refuse(f"{type(model).__name__} {getattr(model, 'name', '')!r} with {count} outputs")
    if any(layer.name == CAM_NAME for layer in model.layers):
        _refuse(f"a layer that is called {CAM_NAME!r} already")
    dense, features = _head(model.outputs[0])
    cam = _layers.Conv2D(dense.units, 1, use_bias=False, dtype="float32", name=CAM_NAME)
    result = keras.Model(model.inputs, [model.outputs[0], cam(features)], name=model.name)
    cam.set_weights([dense.kernel.numpy()[None, None]])
    return result


def _head(output: Any) -> tuple[Any, Any]:
    """The Dense layer that makes an output, and the feature map whose mean it reads."""
    dense, tensor = _maker(output)
    if type(dense) is not _layers.Dense:
        _refuse(f"{type(dense).__name__} {dense.name!r} at its end")
    if dense.activation is not keras.activations.linear:
        _refuse(f"{dense.activation.__name__} in {dense.name!r}")
    if len(output.shape) != _FLAT_RANK:
        _refuse(f"{dense.name!r}, which gives {tuple(output.shape)}")
    while True:
        layer, source = _maker(tensor)
        if isinstance(layer, _layers.GlobalAveragePooling2D):
            break
        if traits_of(layer, subclasses=True).kind not in _PASSING:
            _refuse(f"{type(layer).__name__} {layer.name!r} before {dense.name!r}")
        tensor = source
    if layer.data_format != "channels_last":
        _refuse(f"{layer.name!r} with its channels first")
    return dense, source


def _maker(tensor: Any) -> tuple[Any, Any]:
    """The layer that makes a tensor, and the one tensor it reads (None for an input or a layer of several)."""
    node = tensor.node
    sources = [] if node.is_input else node.keras_inputs
    return node.layer, sources[0] if len(sources) == 1 else None


def _refuse(found: str) -> NoReturn:
    raise UnsupportedLayerError(
        "expected a model that ends GlobalAveragePooling2D, Dense without activation, from which the class activation "
        f"map is exact; found {found}: ask for the logits alone, or give the model that head"
    )

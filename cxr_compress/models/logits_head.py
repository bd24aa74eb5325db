"""Models that end in probabilities, made to end in the logits they were made from.

An int8 sigmoid knows 256 values only, which ruins the ranking of rare findings, and the loss of training is taken from
logits: so everything here ends in logits, and what turns them into probabilities is float arithmetic behind the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_file import application_layers
from cxr_compress.models.masked import named_layers

_layers = keras.layers
# TensorFlow's own operations in a graph, by the names that their layers keep.
_OPERATIONS = {
    "math.sigmoid": "sigmoid",
    "nn.softmax": "softmax",
    **dict.fromkeys(("math.reduce_mean", "__operators__.add", "math.add", "math.subtract", "math.multiply"), ""),
    **dict.fromkeys(("concat", "nn.bias_add", "linalg.matmul"), ""),
    **dict.fromkeys(("reshape", "squeeze", "identity", "cast"), ""),
}
_MOVES = frozenset(("reshape", "squeeze", "identity", "cast"))
_OTHER_ACTIVATIONS = (_layers.ReLU, _layers.LeakyReLU, _layers.PReLU, _layers.ELU, _layers.ThresholdedReLU)
_MEANS = (_layers.GlobalAveragePooling2D, _layers.AveragePooling2D)  # a difference of channels goes through them
_POOLS = (*_MEANS, _layers.GlobalMaxPooling2D, _layers.MaxPooling2D)
_KERNELS = {_layers.Dense: "units", _layers.Conv2D: "filters"}
_PAIR = 2


@dataclass(frozen=True)
class HeadChange:
    """What was done to the end of a model.

    Attributes:
        activation: "sigmoid" or "softmax", which was taken off; "" where the model ended in logits already.
        layer: The layer that had it, those around it in front; "" likewise.
        outputs: Logits of the result, in the order of the old outputs.
        exact: Whether ``sigmoid(logit)`` is the old probability (of the positive class, where there were two).
        note: One sentence for a report; "" where nothing was done.
    """

    activation: str
    layer: str
    outputs: int
    exact: bool
    note: str


def to_logits(model: Any, *, positive: int = 1) -> tuple[Any, HeadChange]:
    """Give a plain model that ends in logits; ``model`` itself is left unchanged, and returned if it does so already.

    * A sigmoid is taken off: k probabilities become k logits, and ``sigmoid(logit)`` is the old probability.
    * A softmax over two classes, a finding and its absence, becomes the one logit ``z[positive] - z[other]``, whose
      sigmoid is the old probability of the finding; the last layer gets the difference of its two filters.
    * A softmax over more classes is taken off: k logits, *not* exact. A softmax shares one total among its classes;
      its probability of class i is the sigmoid of ``z_i - log(sum of exp(z_j), j != i)``, which depends on all the
      others, and no linear layer gives that. The likeliest class stays the same, but a class's films may rank
      otherwise than by its probability, and thresholds and calibration of the old model do not carry over: the
      classes are scored as findings of their own from here on, so measure them again, best after a fine-tuning.

    Args:
        model: Functional or Sequential, with one output (films, classes) or (films, ..., classes); the activation may
            be an argument of its last layer, a layer of its own or TensorFlow's operation, and the last layer may be
            a model itself.
        positive: Which of two softmax classes is the finding; Keras numbers folders by name, NORMAL before PNEUMONIA.

    Returns:
        The model, weights and names kept but for those two filters, and what was done.

    Raises:
        UnsupportedLayerError: The model is subclassed, has several outputs, ends in another activation, or its softmax
            of two follows something else than a Dense layer or convolution.
        CompressionError: ``positive`` is neither 0 nor 1, or a softmax is over one class.
    """
    if positive not in (0, 1):
        raise CompressionError(f"positive must be 0 or 1, which of two classes is the finding, got {positive}")
    _check_graph(model)
    end = _find_end(model)
    classes = int(model.output_shape[-1])
    if not end.activation:
        return model, HeadChange("", "", classes, True, "")
    if end.activation == "softmax" and classes == 1:
        raise CompressionError(f"the softmax {end.path!r} is over one class and always gives 1: nothing can be learnt")
    pair = _producer(end) if end.activation == "softmax" and classes == _PAIR else None
    plain = _rebuilt(model, end, pair)
    _copy_weights(model, plain, pair, positive)
    return plain, _change(end, plain, positive if pair else None)


@dataclass(frozen=True)
class _Place:
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
class _End(_Place):
    """Where an output gets its activation.

    Attributes:
        activation: "sigmoid", "softmax" or "" for none.
        behind: The calls from there to the output, which change no number.
    """

    activation: str = ""
    behind: tuple[_Place, ...] = ()


def _check_graph(model: Any) -> None:
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


def _upwards(models: tuple[Any, ...], tensor: Any) -> Iterator[_Place]:
    """The calls from a tensor up, as long as each has one input, into models but not out of them again."""
    while True:
        node = tensor.node
        if isinstance(node.layer, keras.Model) and getattr(node.layer, "_is_graph_network", False):
            yield from _upwards((*models, node.layer), node.layer.outputs[0])
            return
        yield _Place(models, node)
        if node.is_input or len(node.keras_inputs) != 1:
            return
        tensor = node.keras_inputs[0]


def _find_end(model: Any) -> _End:
    """Find the activation of the output, or the layer that makes the output where there is none."""
    behind: list[_Place] = []
    pooled = ""
    for place in _upwards((model,), model.outputs[0]):
        activation = _activation(place)
        if activation in ("sigmoid", "softmax"):
            if pooled:
                raise UnsupportedLayerError(
                    f"{place.path!r} gives probabilities that {pooled!r} pools, and pooled logits are another number: "
                    "build the model with the activation behind the pooling, and train that"
                )
            return _checked(_End(place.models, place.node, activation, tuple(behind)))
        if activation:
            raise UnsupportedLayerError(
                f"expected a model that ends in logits, sigmoid or softmax, {place.path!r} ends it with {activation}: "
                "give it a Dense layer of logits as its head"
            )
        if isinstance(place.layer, _POOLS):
            pooled = place.path
        elif _changes_no_number(place.layer):
            behind.append(place)
        else:
            break
    return _End(place.models, place.node)


def _activation(place: _Place) -> str:
    """The name of a layer's activation; "" for none."""
    layer = place.layer
    if isinstance(layer, _layers.Softmax):
        return "softmax"
    operation = _operation(layer)
    if operation:
        return _OPERATIONS.get(operation, f"TensorFlow's {operation}")
    if isinstance(layer, _OTHER_ACTIVATIONS):
        return type(layer).__name__
    function = getattr(layer, "activation", keras.activations.linear)
    return "" if function is keras.activations.linear else str(getattr(function, "__name__", function))


def _operation(layer: Any) -> str:
    """The operation of a layer that stands for one of TensorFlow's; "" for any other layer."""
    return str(layer.get_config()["function"]) if type(layer).__name__ == "TFOpLambda" else ""


def _changes_no_number(layer: Any) -> bool:
    passing = isinstance(layer, _layers.Flatten | _layers.Reshape | _layers.Dropout | _layers.Activation)
    return passing or _operation(layer) in _MOVES


def _checked(end: _End) -> _End:
    """Refuse ends that cannot be edited without changing something else."""
    for model, layer in zip(end.models, (*end.models[1:], end.layer), strict=True):
        _require_one_call(model, layer)
    options = end.node.call_kwargs if _operation(end.layer) else {"axis": getattr(end.layer, "axis", None)}
    if options.get("axis") not in (None, -1, len(end.node.outputs.shape) - 1):
        raise UnsupportedLayerError(
            f"expected a softmax over the last axis, that of {end.path!r} is over axis {options['axis']}: reorder it"
        )
    if end.behind and _operation(end.layer):
        raise UnsupportedLayerError(
            f"{end.behind[0].path!r} follows the TensorFlow operation {end.path!r}, which is no layer of Keras: use "
            f"keras.layers.Activation({end.activation!r}) as the last layer of the model"
        )
    return end


def _require_one_call(model: Any, layer: Any) -> None:
    calls = sum(node.layer is layer for nodes in model._nodes_by_depth.values() for node in nodes)
    if calls != 1:
        raise UnsupportedLayerError(
            f"{layer.name!r}, which ends {model.name}, is called {calls} times in it: give the end a layer of its own"
        )


def _producer(end: _End) -> _Place:
    """The Dense layer or convolution that makes the two channels of a softmax; what lies between keeps them apart."""
    for place in (*end.behind, *_upwards(end.models, end.node.outputs)):
        layer, is_end = place.layer, place.node is end.node
        linear = is_end or not _activation(place)
        if type(layer) in _KERNELS and linear and place.node.outputs.shape[-1] == _PAIR:
            for model, called in zip(place.models, (*place.models[1:], layer), strict=True):
                _require_one_call(model, called)
            return place
        fixed = isinstance(layer, _layers.Reshape) or _operation(layer) == "reshape"  # to a shape that holds the 2
        passes = is_end or (linear and (isinstance(layer, _MEANS) or _changes_no_number(layer)))
        if fixed or not passes:
            break
    raise UnsupportedLayerError(
        f"expected the two classes of the softmax {end.path!r} to come from a Dense layer or a convolution, found "
        f"{type(place.layer).__name__} {place.path!r}: give the model a Dense layer of logits as its head"
    )


def _rebuilt(model: Any, end: _End, pair: _Place | None) -> Any:
    """A model of the same layers without the activation, and with one output where there were two."""
    config = model.get_config()
    if pair is not None:
        entry = _entry(_inner(config, pair.models), pair.layer.name)
        entry["config"][_KERNELS[type(pair.layer)]] = 1
    inner = _inner(config, end.models)
    if isinstance(end.layer, _layers.Softmax | _layers.Activation) or _operation(end.layer):
        _take_off(inner, end)
    else:
        _entry(inner, end.layer.name)["config"]["activation"] = "linear"
    with keras.utils.custom_object_scope(application_layers()):
        return type(model).from_config(config)


def _inner(config: dict[str, Any], models: tuple[Any, ...]) -> dict[str, Any]:
    """The configuration of the innermost of the models, within that of the outermost."""
    config.pop("build_input_shape", None)  # of a Sequential model: its first layer decides
    for model in models[1:]:
        config = _entry(config, model.name)["config"]
        config.pop("build_input_shape", None)
    return config


def _entry(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in config["layers"] if entry["config"]["name"] == name)


def _take_off(config: dict[str, Any], end: _End) -> None:
    """Remove the layer that is nothing but the activation; where others follow, or it casts, nothing is put there."""
    entry = _entry(config, end.layer.name)
    if end.behind or end.node.outputs.dtype != end.node.keras_inputs[0].dtype:
        entry["class_name"] = "Activation"
        kept = {key: entry["config"][key] for key in ("name", "trainable", "dtype")}
        entry["config"] = {**kept, "activation": "linear"}
        return
    config["layers"].remove(entry)
    if "output_layers" in config:
        source = entry["inbound_nodes"][0]
        while isinstance(source[0], list | tuple):
            source = source[0]
        config["output_layers"] = [list(source[:3])]


def _copy_weights(model: Any, plain: Any, pair: _Place | None, positive: int) -> None:
    own = dict(named_layers(model))
    for name, layer in named_layers(plain):
        weights = own[name].get_weights()
        if pair is not None and own[name] is pair.layer:
            # In float64, so that one rounding is all that the logit's weights lose.
            wide = [np.asarray(weight, np.float64) for weight in weights]
            weights = [wide_[..., [positive]] - wide_[..., [1 - positive]] for wide_ in wide]
        layer.set_weights(weights)


def _change(end: _End, plain: Any, positive: int | None) -> HeadChange:
    count = int(plain.output_shape[-1])
    exact = end.activation == "sigmoid" or positive is not None
    if positive is not None:
        note = (
            f"the softmax {end.path!r} over two classes became one logit, that of class {positive} less that of class "
            f"{1 - positive}; its sigmoid is the old probability of class {positive}"
        )
    elif exact:
        note = f"the sigmoid {end.path!r} was taken off; the sigmoid of each of the {count} logits is what it gave"
    else:
        note = (
            f"the softmax {end.path!r} over {count} classes was taken off; its probabilities shared one total and were "
            "no independent findings: the likeliest class stays, but the sigmoid of a logit is another number than its "
            "old probability, so ranking, calibration and thresholds have to be measured again"
        )
    return HeadChange(end.activation, end.path, count, exact, note)

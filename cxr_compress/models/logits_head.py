"""Models that end in probabilities, made to end in the logits they were made from.

An int8 sigmoid knows 256 values only, which ruins the ranking of rare findings, and the loss of training is taken from
logits: so everything here ends in logits, and what turns them into probabilities is float arithmetic behind the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.ends import (
    LOGITS,
    MEANS,
    PROBABILITIES,
    PROBES,
    SHARES,
    End,
    Place,
    activation_of,
    changes_no_number,
    check_graph,
    find_ends,
    kind_of_outputs,
    operation_of,
    probe_images,
    require_one_call,
    upwards,
)
from cxr_compress.models.keras_graph import layers_by_path, rebuilt

_layers = keras.layers
_KERNELS = {_layers.Dense: "units", _layers.Conv2D: "filters"}
_PAIR = 2
_IMAGE_RANK, _FLAT_RANK = 3, 2
_PROBE_SIZE = 64  # pixels, where a model leaves its input size open
# Logits of extreme inputs reach 1e4 and carry a rounding of 1e-6 of that; a sigmoid passes on a quarter of it. A second
# sigmoid, or one over other classes, is off by a tenth and more.
_SAME_PROBABILITY = 0.01


@dataclass(frozen=True)
class HeadChange:
    """What the end of a model is, and what was done to it.

    Attributes:
        activation: "sigmoid" or "softmax", which was taken off; "" where nothing was.
        layer: the layer that had it, those around it in front; "" likewise.
        outputs: of the result, in the order of the old outputs; 1 where a softmax over two classes became one logit.
        note: one sentence for a report; "" where nothing was done and nothing is unusual.
        reason: why no logits can be had of it, where that is so.
        gives: "logits", or "probabilities" where the model is kept as it is because no logits can be had of it.
        exclusive: the outputs are classes that exclude one another: their probabilities sum to 1.
    """

    activation: str
    layer: str
    outputs: int
    note: str = ""
    gives: str = LOGITS
    exclusive: bool = False
    reason: str = ""

    @property
    def unsaid(self) -> bool:
        """Whether nothing at the end of the model says what its logits are of."""
        return self.gives == LOGITS and not self.activation

    @property
    def probabilities_by(self) -> str:
        """What turns logits into probabilities: "softmax" for classes that exclude one another, else "sigmoid"."""
        return "softmax" if self.exclusive else "sigmoid"


def to_logits(model: Any, *, positive: int | None = None) -> tuple[Any, HeadChange]:
    """Give a plain model that ends in logits; `model` itself is left unchanged, and returned if it does so already.

    * A sigmoid is taken off: k probabilities become k logits, and `sigmoid(logit)` is the old probability. Several
      heads that a Concatenate joins are treated alike.
    * A softmax over two classes, a finding and its absence, becomes the one logit `z[positive] - z[other]`, whose
      sigmoid is the old probability of the finding; the last layer gets the difference of its two filters.
    * A softmax over more classes is taken off: k logits of classes that exclude one another, and `softmax(logits)` is
      the old output (`HeadChange.exclusive`).

    Args:
        model: functional or Sequential, with one output (images, classes) or (images, ..., classes); the activation may
            be an argument of its last layer, a layer of its own or TensorFlow's operation, and the last layer may be
            a model itself.
        positive: which of two softmax classes is the finding; needed there, since no file says it: Keras numbers
            folders by name (NORMAL before PNEUMONIA, but COVID before NORMAL).

    Returns:
        The model, weights and names kept but for those two filters, and what was done.

    Raises:
        UnsupportedLayerError: the model is subclassed, has several outputs, or ends in something of which no logits can
            be had; the message names the layer.
        CompressionError: `positive` is missing where it is needed, or neither 0 nor 1, or a softmax is over one class.
    """
    plain, change = read_head(model, positive=positive)
    if change.gives != LOGITS:
        raise UnsupportedLayerError(
            f"expected a model of which logits can be had, but {change.note}: give the model a Dense layer of logits "
            "as its head; cxr_convert exports it as it is"
        )
    return plain, change


def read_head(model: Any, *, positive: int | None = None) -> tuple[Any, HeadChange]:
    """As `to_logits`, but a model that gives probabilities of which no logits can be had is kept, and that is said.

    The graph is read first. What comes of it is run on random and extreme inputs beside the model, and counts only
    where its probabilities are the old ones. A graph that shows nothing is run on 64 of them: outputs that never leave
    [0, 1] are probabilities whatever it looks like, and get no second sigmoid (`HeadChange.gives`).

    Raises:
        UnsupportedLayerError: the end is neither understood nor do its outputs stay in [0, 1], or a layer is called as
            in training, so that an image has no one answer; it names the layer.
        CompressionError: as `to_logits`.
    """
    if positive not in (None, 0, 1) or isinstance(positive, bool):
        raise CompressionError(f"positive must be 0 or 1, which of two classes is the finding, got {positive}")
    check_graph(model)
    _check_calls(model)
    try:
        ends = find_ends((model,), model.outputs[0])
        if ends[0].activation:
            plain, change = _taken_off(model, ends, positive)
            _check_same(model, plain, change, positive)
            return plain, change
    except UnsupportedLayerError as error:
        kept = _kept(model, str(error), error.reason)
        if kept is None:
            raise
        return model, kept
    reason = f"no sigmoid or softmax ends {model.name}, yet its outputs are probabilities"
    return model, _kept(model, reason, reason) or HeadChange("", "", int(model.output_shape[-1]))


def softmax_classes(model: Any) -> int:
    """The classes of the softmax that ends a model; 0 where none does, or where its end cannot be read."""
    try:
        check_graph(model)
        ends = find_ends((model,), model.outputs[0])
        if ends[0].activation == "softmax":
            _require_all_classes(ends[0], int(model.output_shape[-1]))
            return int(model.output_shape[-1])
    except UnsupportedLayerError:
        return 0
    return 0


def _taken_off(model: Any, ends: Sequence[End], positive: int | None) -> tuple[Any, HeadChange]:
    end, classes = ends[0], int(model.output_shape[-1])
    softmax = end.activation == "softmax"
    if softmax:
        _require_all_classes(end, classes)
    if softmax and classes == 1:
        raise CompressionError(f"the softmax {end.path!r} is over one class and always gives 1: nothing can be learnt")
    pair = _producer(end) if softmax and classes == _PAIR else None
    if pair is not None and positive is None:
        raise CompressionError(
            f"the softmax {end.path!r} is over two classes, and which of them is the finding is not said: give its "
            "index, positive=0 or 1"
        )
    plain = _rebuilt(model, ends, pair)
    _copy_weights(model, plain, pair, positive or 0)
    return plain, _change(ends, plain, positive if pair else None)


def _require_all_classes(end: End, classes: int) -> None:
    over = int(end.node.outputs.shape[-1])
    if over != classes:
        raise UnsupportedLayerError(
            f"the softmax {end.path!r} is over {over} classes, and the model gives {classes} outputs: one softmax for "
            "each finding has no logits of findings; give the model a Dense layer of logits as its head"
        )


def _check_calls(model: Any) -> None:
    """Refuse layers that are called as in training: the same image would get another answer every time."""
    for level in model._nodes_by_depth.values():
        for node in level:
            if not node.is_input and node.call_kwargs.get("training") and not isinstance(node.layer, keras.Model):
                raise UnsupportedLayerError(
                    f"expected a model whose answers depend on the image alone, {node.layer.name!r} is called with "
                    "training=True: call it without that, and save the model again"
                )
    for layer in model.layers:
        if getattr(layer, "_is_graph_network", False):
            _check_calls(layer)


def _check_same(model: Any, plain: Any, change: HeadChange, positive: int | None) -> None:
    """Run both on eight inputs, one of every kind and strength: reading a graph can fail in ways nobody thought of."""
    shape = _probe_shape(model)
    if shape is None or len(model.output_shape) != _FLAT_RANK:
        return
    images = np.stack([batch[row] for row, batch in enumerate(probe_images(shape))])
    with np.errstate(all="ignore"):
        old = np.asarray(model(images, training=False), np.float64)
        new = probabilities_of(np.asarray(plain(images, training=False), np.float64), change.probabilities_by)
    if change.outputs == 1 and old.shape[1] == _PAIR:
        old = old[:, [positive or 0]]
    known = np.isfinite(old) & np.isfinite(new)
    if old.shape != new.shape or (np.abs(old - new)[known] > _SAME_PROBABILITY).any():
        raise UnsupportedLayerError(
            f"the {change.activation} {change.layer!r} seems to end {model.name}, but without it the model gives other "
            "probabilities",
            "give it a Dense layer of logits as its head",
        )


def _probe_shape(model: Any) -> tuple[int, int, int] | None:
    """(height, width, channels) to try a model with; None where it does not take one image."""
    sizes = [int(size or _PROBE_SIZE) for size in model.inputs[0].shape[1:]]
    if len(model.inputs) != 1 or len(sizes) != _IMAGE_RANK:
        return None
    return sizes[0], sizes[1], sizes[2]


def _kept(model: Any, explanation: str, reason: str) -> HeadChange | None:
    """What to say of a model whose outputs stay in [0, 1]; None where they do not, or are always the same."""
    shape = _probe_shape(model)
    if shape is None or len(model.output_shape) != _FLAT_RANK:
        return None
    kind = kind_of_outputs(lambda images: model(images, training=False), shape)
    if kind not in (PROBABILITIES, SHARES):
        return None
    share = ", and each row sums to 1" if kind == SHARES else ""
    note = f"the outputs are kept as the probabilities that they are (for {PROBES} inputs they stay in [0, 1]{share}): "
    change = HeadChange("", "", int(model.output_shape[-1]), note + explanation, gives=PROBABILITIES)
    return replace(change, exclusive=kind == SHARES, reason=reason)


def _producer(end: End) -> Place:
    """The Dense layer or convolution that makes the two channels of a softmax; what lies between keeps them apart."""
    for place in (*end.behind, *upwards(end.models, end.node.outputs)):
        layer, is_end = place.layer, place.node is end.node
        linear = is_end or not activation_of(place)
        if type(layer) in _KERNELS and linear and place.node.outputs.shape[-1] == _PAIR:
            for model, called in zip(place.models, (*place.models[1:], layer), strict=True):
                require_one_call(model, called)
            return place
        fixed = isinstance(layer, _layers.Reshape) or operation_of(layer) == "reshape"  # to a shape that holds the 2
        passes = is_end or (linear and (isinstance(layer, MEANS) or changes_no_number(layer)))
        if fixed or not passes:
            break
    raise UnsupportedLayerError(
        f"expected the two classes of the softmax {end.path!r} to come from a Dense layer or a convolution, found "
        f"{type(place.layer).__name__} {place.path!r}",
        "give the model a Dense layer of logits as its head",
    )


def _rebuilt(model: Any, ends: Sequence[End], pair: Place | None) -> Any:
    """A model of the same layers without the activations, and with one output where there were two."""

    def edit(config: dict[str, Any]) -> None:
        if pair is not None:
            entry = _entry(_inner(config, pair.models), pair.layer.name)
            entry["config"][_KERNELS[type(pair.layer)]] = 1
        for end in ends:
            inner = _inner(config, end.models)
            if isinstance(end.layer, _layers.Softmax | _layers.Activation) or operation_of(end.layer):
                _take_off(inner, end)
            else:
                _entry(inner, end.layer.name)["config"]["activation"] = "linear"

    return rebuilt(model, edit)


def _inner(config: dict[str, Any], models: tuple[Any, ...]) -> dict[str, Any]:
    """The configuration of the innermost of the models, within that of the outermost."""
    for model in models[1:]:
        config = _entry(config, model.name)["config"]
        config.pop("build_input_shape", None)
    return config


def _entry(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in config["layers"] if entry["config"]["name"] == name)


def _take_off(config: dict[str, Any], end: End) -> None:
    """Remove the layer that is nothing but the activation; where others follow, or it casts, nothing is put there."""
    entry = _entry(config, end.layer.name)
    several = len(config.get("output_layers", ())) > 1
    if end.behind or several or end.node.outputs.dtype != end.node.keras_inputs[0].dtype:
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


def _copy_weights(model: Any, plain: Any, pair: Place | None, positive: int) -> None:
    own = layers_by_path(model)
    for name, layer in layers_by_path(plain).items():
        weights = own[name].get_weights()
        if pair is not None and own[name] is pair.layer:
            # In float64, so that one rounding is all that the logit's weights lose.
            wide = [np.asarray(weight, np.float64) for weight in weights]
            weights = [wide_[..., [positive]] - wide_[..., [1 - positive]] for wide_ in wide]
        layer.set_weights(weights)


def _change(ends: Sequence[End], plain: Any, positive: int | None) -> HeadChange:
    end, count = ends[0], int(plain.output_shape[-1])
    if positive is not None:
        note = (
            f"the softmax {end.path!r} over two classes became one logit, that of class {positive} less that of class "
            f"{1 - positive}; its sigmoid is the old probability of class {positive}"
        )
    elif end.activation == "sigmoid":
        names = repr(end.path) if len(ends) == 1 else f"of {len(ends)} heads, {end.path!r} the first,"
        note = f"the sigmoid {names} was taken off; the sigmoid of each of the {count} logits is what it gave"
    else:
        note = (
            f"the softmax {end.path!r} over {count} classes, which exclude one another, was taken off; one softmax "
            "over the logits is what it gave"
        )
    exclusive = end.activation == "softmax" and positive is None
    return HeadChange(end.activation, end.path, count, note, exclusive=exclusive)

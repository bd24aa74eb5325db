"""Which outputs a file has: logits, or logits and the class activation map, or probabilities that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.lite.freeze import PASS_ON, FrozenFunction, freeze_call
from cxr_compress.lite.graph.flatbuffer import CAM_NAME, read_graphs
from cxr_compress.lite.int8.ranges import Ranges

if TYPE_CHECKING:
    from cxr_compress.models.logits_head import HeadChange

_SQUASHING = frozenset(("Sigmoid", "Softmax", "LogSoftmax"))
_OTHER_ENDS = frozenset(("Tanh", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign", "Exp"))
# What comes out of a kernel is a number of its own, whatever goes in.
_KERNELS = frozenset(("MatMul", "BatchMatMulV2", "Conv2D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Einsum"))
_PAIR = 2
# Of the range that occurred, half at either end.
_ROOM = 0.25
LOGITS, LOGITS_AND_CAM = HEADS = ("logits", "logits+cam")


def leave_room_for_map(content: bytes, ranges: Ranges) -> Ranges:
    """The same ranges with room around that of the map, where the file has one.

    One strong cell of an image that is stronger than all in the calibration images would be clipped, and the mean of
    the map no longer the logit. A step that is a quarter wider costs little: the mean averages it out.

    Args:
        content: float flatbuffer, logits first.
        ranges: tensor index -> (minimum, maximum).
    """
    outputs = read_graphs(content)[0].outputs[1:]
    rooms = {index: (high - low) * _ROOM / 2 for index, (low, high) in ranges.items() if index in outputs}
    return {**ranges, **{index: (ranges[index][0] - room, ranges[index][1] + room) for index, room in rooms.items()}}


def headed(model: Any, head: str) -> Any:
    """A Keras model, or a frozen one, with the outputs that `head` asks for; the model itself is not modified.

    Raises:
        CompressionError: the map of a frozen function that has none, or logits alone of one with it.
        UnsupportedLayerError: the model ends in another head than a map can be read from.
    """
    frozen = isinstance(model, FrozenFunction)
    names = list(getattr(model, "output_names", None) or [])
    there = bool(model.cam_shape) if frozen else names[1:] == [CAM_NAME]
    if there and head == LOGITS:
        raise CompressionError("head 'logits' asks for logits alone, the model gives a map too: ask for 'logits+cam'")
    if there or head == LOGITS:
        return model
    if frozen:
        raise CompressionError(
            "head 'logits+cam' needs a Keras model, in which the last feature map is known; got a frozen function "
            "without the map: freeze what models.cam.with_cam makes of the model"
        )
    from cxr_compress.models.ends import with_cam  # loads Keras

    return with_cam(model)


def read_frozen_head(frozen: FrozenFunction, *, positive: int | None = None) -> tuple[FrozenFunction, HeadChange]:
    """Bring a frozen graph, as of a SavedModel, to logits, or keep its probabilities and say so.

    As `models.logits_head.read_head` does for a Keras model: a sigmoid or softmax at the end is cut off, also of heads
    in a row; of two classes one logit is left, that of the finding; all else is run on 64 random and extreme inputs.

    Args:
        frozen: one image in, one output (1, k); it is left as it is.
        positive: which of two classes is the finding; needed where there are two that exclude one another.

    Raises:
        UnsupportedLayerError: the end is neither understood nor do its outputs stay in [0, 1]; it names the operator.
        CompressionError: `positive` is needed and was not given.
    """
    from cxr_compress.models.ends import PROBABILITIES, PROBES, SHARES
    from cxr_compress.models.logits_head import HeadChange

    _check_repeats(frozen)
    outputs = frozen.output_shape[-1]
    kind, sources = _activation_sources(_output(frozen).op)
    if kind in ("Softmax", "LogSoftmax") and outputs == _PAIR:
        first = _require_positive(positive, "softmax")
        made = _cut(frozen, sources, pair=(first, 1 - first))
        note = (
            f"the softmax over two classes became one logit, that of class {first} less that of class {1 - first}; its "
            f"sigmoid is the old probability of class {first}"
        )
        return made, HeadChange("softmax", kind, 1, note)
    if kind:
        softmax = kind != "Sigmoid"
        what = f"one softmax over the {outputs}" if softmax else f"the sigmoid of each of the {outputs}"
        note = f"the {kind} at the end of the graph was taken off; {what} logits is what it gave"
        made = _cut(frozen, sources)
        return made, HeadChange("softmax" if softmax else "sigmoid", kind, outputs, note, exclusive=softmax)
    found, near = examine(frozen), _squashed_near(_output(frozen).op, set())
    if found not in (PROBABILITIES, SHARES):
        if near:
            raise UnsupportedLayerError(
                f"expected a graph that ends in logits or probabilities, its end computes something else from what "
                f"{near} gives: export a model that ends in a Dense layer of logits"
            )
        return replace(frozen, gives="logits"), HeadChange("", "", outputs)
    exclusive, kept = found == SHARES, replace(frozen, gives="probabilities", last_activation="")
    share = ", and each row sums to 1" if exclusive else ""
    note = f"the outputs are kept as the probabilities that they are (for {PROBES} inputs they stay in [0, 1]{share})"
    if exclusive and outputs == _PAIR:
        first = _require_positive(positive, "pair of probabilities")
        kept, exclusive, outputs = _one_column(kept, first), False, 1
        note = f"{note}; that of class {first} is left"
    return kept, HeadChange("", "", outputs, note, gives="probabilities", exclusive=exclusive)


def frozen_pair(frozen: FrozenFunction) -> bool:
    """Whether a frozen graph gives two classes that exclude one another, so that the finding has to be named."""
    from cxr_compress.models.ends import SHARES

    if frozen.output_shape[1:] != (_PAIR,):
        return False
    kind, _ = _activation_sources(_output(frozen).op)
    return kind in ("Softmax", "LogSoftmax") or (not kind and examine(frozen) == SHARES)


def examine(frozen: FrozenFunction) -> str:
    """What a frozen function gives, by its answers: see `models.outputs.kind_of_outputs`."""
    import tensorflow as tf

    from cxr_compress.models.ends import kind_of_outputs

    batch, height, width, channels = frozen.input_shape
    if batch != 1:
        return ""

    def call(images: Any) -> Any:
        return tf.nest.flatten(frozen.function(tf.constant(images)))[0].numpy()

    return kind_of_outputs(call, (height, width, channels), batch=1)


def _check_repeats(frozen: FrozenFunction) -> None:
    """Refuse graphs that give one image another answer every time, as with a Dropout that is always on."""
    if not any(operation.type.startswith("Random") for operation in frozen.function.graph.get_operations()):
        return
    raise UnsupportedLayerError(
        "expected a model whose answers depend on the image alone, its graph draws random numbers: export it with its "
        "layers called for inference (training=False)"
    )


def _require_positive(positive: int | None, what: str) -> int:
    if positive is None:
        raise CompressionError(
            f"the graph ends in a {what} of two classes, and which of them is the finding is not said: give its index, "
            "positive=0 or 1"
        )
    return positive


def _output(frozen: FrozenFunction) -> Any:
    return frozen.function.outputs[0]


def _activation_sources(operation: Any) -> tuple[str, list[Any]]:
    """The activation that gives an output, and the tensors of logits it is taken of; "" and none for any other end.

    Several tensors belong to heads in a row, all with a sigmoid.

    Raises:
        UnsupportedLayerError: the output is that of an activation that gives neither logits nor probabilities.
    """
    while operation.type in PASS_ON and operation.inputs:
        operation = operation.inputs[0].op
    if operation.type in _SQUASHING:
        over, classes = operation.outputs[0].shape[-1], operation.graph.outputs[0].shape[-1]
        # One softmax for each finding, flattened to a row, has no logits of findings.
        return ("", []) if operation.type != "Sigmoid" and over != classes else (operation.type, [operation.inputs[0]])
    if operation.type == "ConcatV2":
        heads = [_activation_sources(tensor.op) for tensor in list(operation.inputs)[:-1]]
        if all(kind == "Sigmoid" for kind, _ in heads) and len(operation.outputs[0].shape) == _PAIR:
            return "Sigmoid", [source for _, sources in heads for source in sources]
    if operation.type in _OTHER_ENDS:
        raise UnsupportedLayerError(
            f"expected a graph that ends in logits, sigmoid or softmax, it ends in {operation.type}: export a model "
            "that ends in a Dense layer of logits"
        )
    return "", []


def _squashed_near(operation: Any, seen: set[str]) -> str:
    """The sigmoid or softmax that an operation computes from without a kernel in between; "" for none."""
    if operation.name in seen or operation.type in _KERNELS:
        return ""
    seen.add(operation.name)
    if operation.type in _SQUASHING:
        return str(operation.type)
    return next(filter(None, (_squashed_near(tensor.op, seen) for tensor in operation.inputs)), "")


def _cut(frozen: FrozenFunction, sources: Sequence[Any], *, pair: tuple[int, int] | None = None) -> FrozenFunction:
    """A function that ends in what the activations were taken of, or in the difference of two of its columns."""
    import tensorflow as tf

    cut = frozen.function.prune(list(frozen.function.inputs), list(sources))

    def call(image: Any) -> Any:
        heads = [tf.reshape(tensor, (frozen.input_shape[0], -1)) for tensor in _flat(cut(image))]
        logits = heads[0] if len(heads) == 1 else tf.concat(heads, axis=-1)
        if pair is None:
            return logits
        first, other = (logits[:, column : column + 1] for column in pair)
        return first - other

    return _as_before(frozen, freeze_call(call, frozen.input_shape), "logits")


def _one_column(frozen: FrozenFunction, column: int) -> FrozenFunction:
    def call(image: Any) -> Any:
        return next(_flat(frozen.function(image)))[:, column : column + 1]

    return _as_before(frozen, freeze_call(call, frozen.input_shape), frozen.gives)


def _as_before(frozen: FrozenFunction, made: FrozenFunction, gives: str) -> FrozenFunction:
    """A function with another end, and what is known of the one it was made of."""
    made = replace(made, gives=gives, last_activation="")
    return replace(made, pixel_input=frozen.pixel_input, notes=frozen.notes)


def _flat(outputs: Any) -> Iterator[Any]:
    import tensorflow as tf

    return iter(tf.nest.flatten(outputs))

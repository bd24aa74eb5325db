"""Folds the scale of a batch norm in front of a convolution into that convolution; what the graph computes stays.

A batch norm behind a concatenation cannot fold into what comes before it: in .tflite it is a MUL and an ADD, and int8
rounds what each of them gives. Its scale can move on through the ReLU instead. With m > 0

    relu(m x + a) = m relu(x + a / m)

so the MUL goes, and the convolution that reads the result has its kernel multiplied by m, channel by channel; zeros of
a padding stay zeros. Where some m is 0 or negative, and the convolution does not pad, the two bounds do the same:

    relu(m x + a) = a + m max(x, -a / m) for m > 0,  a + m min(x, -a / m) for m < 0,  max(a, 0) for m = 0

MUL and ADD become MAXIMUM and MINIMUM, whose int8 kernels write with the scale of what they read and round nothing;
the constants go into the bias. DenseNets are full of such batch norms: 62 of the 121 in a DenseNet121.

This works on the float flatbuffer, not on the Keras model: all is seen that really is left as MUL and ADD, wherever the
graph came from, and it takes well under a second.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.lite.graph.flatbuffer import (
    Graph,
    Operator,
    graphs_of,
    operator_code,
    read_graphs,
    schema,
    to_bytes,
    to_object,
)

Floats = npt.NDArray[np.float64]
# What a scale per channel passes through unchanged on its way to the kernel that takes it.
_PASSING = ("MEAN", "PAD")
# Kernel kind -> the axis of its kernel that follows the channels it reads.
_CHANNEL_AXIS = {"CONV_2D": 3, "FULLY_CONNECTED": 1, "DEPTHWISE_CONV_2D": 3}
_INPUT, _KERNEL, _BIAS = 0, 1, 2
# Beyond any activation, and far from infinity, from which a quantiser would derive a scale.
_UNBOUND = 1e30


@dataclass(frozen=True)
class ScaleFold:
    """What was folded and what was left alone.

    Attributes:
        scaled: results of the ADDs that lost their MUL.
        bounded: results that became MAXIMUM and MINIMUM.
        left: result of an ADD behind a MUL -> why its scale stays.
    """

    scaled: tuple[str, ...] = ()
    bounded: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Norm:
    """A batch norm and a ReLU as the graph has them: relu(scale * source + shift)."""

    multiply: Operator
    add: Operator
    source: int
    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class Foldable:
    """A batch norm whose scale can move on through its ReLU: m > 0 in all channels.

    Attributes:
        name: of the result of its ADD.
        product: tensor index of what its MUL gives.
        result: tensor index of what its ADD gives, after the ReLU.
        scale: m, float64 (channels,).
        kernels: of the operators that read the result, float64 (filters, taps, channels).
    """

    name: str
    product: int
    result: int
    scale: Floats
    kernels: tuple[Floats, ...]


def find_foldable(content: bytes) -> list[Foldable]:
    """The batch norms of a float flatbuffer that `fold_scales` would rid of their MUL, in the order they run."""
    model = to_object(content)
    editor = _Editor(model)
    found = []
    for norm in _norms(model, editor.graph):
        takers = editor.takers(norm.add.outputs[0])
        if isinstance(takers, list) and (norm.scale > 0).all():
            name = editor.graph.tensors[norm.add.outputs[0]].name
            kernels = editor.kernels(takers, len(norm.scale))
            found.append(Foldable(name, norm.multiply.outputs[0], norm.add.outputs[0], norm.scale, kernels))
    return found


def fold_scales(
    content: bytes, *, bounds: bool = False, only: Collection[str] | None = None
) -> tuple[bytes, ScaleFold]:
    """Fold what can be folded in a float flatbuffer; the same outputs but for the rounding of float32.

    Args:
        content: float flatbuffer.
        bounds: take MAXIMUM also where all m are positive. It rounds nothing, but runtimes have slower kernels for it
            than for ADD.
        only: names of those to fold, as `find_foldable` has them; None for all.

    Returns:
        The folded flatbuffer (as it came where nothing folds), and what was done.
    """
    model = to_object(content)
    editor = _Editor(model)
    scaled, bounded = [], []
    left: dict[str, str] = {}
    for norm in _norms(model, editor.graph):
        name = editor.graph.tensors[norm.add.outputs[0]].name
        takers = editor.takers(norm.add.outputs[0])
        if only is not None and name not in only:
            left[name] = "was not chosen"
        elif isinstance(takers, str):
            left[name] = takers
        elif (norm.scale > 0).all() and not (bounds and editor.unpadded(takers)):
            editor.shift(norm, takers)
            scaled.append(name)
        elif editor.unpadded(takers):
            editor.bound(norm, takers)
            bounded.append(name)
        else:
            left[name] = "some of its scales are not positive, and what reads it pads or has no bias"
    if not (scaled or bounded):
        return content, ScaleFold(left=left)
    editor.finish()
    return to_bytes(model), ScaleFold(tuple(scaled), tuple(bounded), left)


def fold_like(content: bytes, folded: bytes) -> bytes:
    """A float flatbuffer with those batch norms folded that are in another file of the same network, of any type."""
    graph = read_graphs(folded)[0]
    written = {graph.tensors[index].name for operator in graph.operators for index in operator.outputs}
    own = read_graphs(content)[0].tensors
    only = {one.name for one in find_foldable(content) if own[one.product].name not in written}
    return fold_scales(content, only=only)[0] if only else content


def _norms(model: Any, graph: Graph) -> list[_Norm]:
    """The batch norms that are left as MUL and ADD with a ReLU, in the order they run."""
    relu = schema().ActivationFunctionType.RELU
    readers: dict[int, list[Operator]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    found = []
    for multiply in graph.operators:
        behind = readers.get(multiply.outputs[0], []) if multiply.kind == "MUL" else []
        if len(behind) != 1 or behind[0].kind != "ADD" or multiply.outputs[0] in graph.outputs:
            continue
        fused = [
            int(model.subgraphs[0].operators[one.index].builtinOptions.fusedActivationFunction)
            for one in (multiply, behind[0])
        ]
        product, total = _split(graph, multiply), _split(graph, behind[0])
        if fused == [0, relu] and product is not None and total is not None:
            found.append(_Norm(multiply, behind[0], product[0], product[1], total[1]))
    return found


def _split(graph: Graph, operator: Operator) -> tuple[int, Floats] | None:
    """The computed operand of a MUL or ADD, and its constant as one value per channel; None where it has none."""
    first, second = operator.inputs
    constant, other = (first, second) if graph.tensors[first].values is not None else (second, first)
    values, shape = graph.tensors[constant].values, graph.tensors[other].shape
    channels = shape[-1] if shape else 0
    if (
        values is None
        or values.dtype != np.float32
        or values.size not in (1, channels)
        or values.shape[-1:]
        not in (
            (),
            (1,),
            (channels,),
        )
    ):
        return None
    return other, np.broadcast_to(values.astype(np.float64).ravel(), (channels,))


class _Editor:
    """Edits a ``ModelT`` in place; what it knows of the graph is as it was before the first edit."""

    def __init__(self, model: Any) -> None:
        self._model, self._fb = model, schema()
        self.graph = graphs_of(model)[0]
        self._subgraph = model.subgraphs[0]
        self._removed: list[int] = []
        # Kernels and biases that are written already, and the tensors that hold them now.
        self._own: set[int] = set()

    def takers(self, result: int) -> list[Operator] | str:
        """The operators whose kernels take a scale per channel of a result; why there are none where one cannot."""
        if result in self.graph.outputs:
            return "is an output of the model"
        takers: list[Operator] = []
        for operator in self.graph.operators:
            if result not in operator.inputs:
                continue
            if operator.kind in _PASSING and _keeps_channels(self.graph, operator):
                more = self.takers(operator.outputs[0])
                if isinstance(more, str):
                    return more
                takers += [operator, *more]
            elif operator.kind in _CHANNEL_AXIS and self._takes(operator, result):
                takers.append(operator)
            else:
                return f"{operator.kind} reads it"
        return takers or "nothing reads it"

    def _takes(self, operator: Operator, result: int) -> bool:
        kernel = self.graph.tensors[operator.inputs[_KERNEL]]
        channels = self.graph.tensors[result].shape[-1]
        return (
            operator.inputs[_INPUT] == result
            and kernel.values is not None
            and kernel.dtype == "float32"
            and kernel.shape[_CHANNEL_AXIS[operator.kind]] == channels
        )

    def unpadded(self, takers: list[Operator]) -> bool:
        """True where every taker has a bias, and sees no zeros that are none of the result's values."""
        return all(operator.kind == "MEAN" or self._is_unpadded(operator) for operator in takers)

    def _is_unpadded(self, operator: Operator) -> bool:
        if operator.kind not in ("CONV_2D", "FULLY_CONNECTED") or not self._has_bias(operator):
            return False
        if operator.kind == "FULLY_CONNECTED":
            return True
        options = self._subgraph.operators[operator.index].builtinOptions
        pointwise = self.graph.tensors[operator.inputs[_KERNEL]].shape[1:3] == (1, 1)
        return pointwise or options.padding == self._fb.Padding.VALID

    def _has_bias(self, operator: Operator) -> bool:
        """True where a constant can be put into a bias: there is one, and it is no result itself."""
        places = operator.inputs[_BIAS : _BIAS + 1]
        return bool(places) and places[0] >= 0 and self.graph.tensors[places[0]].values is not None

    def kernels(self, takers: list[Operator], channels: int) -> tuple[Floats, ...]:
        """The kernels of the takers as (filters, taps, channels)."""
        found = []
        for operator in takers:
            if operator.kind in _CHANNEL_AXIS:
                kernel = self._values(operator, _KERNEL)[1]
                # A depthwise kernel (1, height, width, channels) has one filter of each channel: taken as one.
                found.append(kernel.reshape(len(kernel), -1, channels))
        return tuple(found)

    def shift(self, norm: _Norm, takers: list[Operator]) -> None:
        """ADD of a / m straight on the source; kernels times m."""
        self._rewire(norm.add, norm.source, self._constant(norm.shift / norm.scale))
        self._removed.append(norm.multiply.index)
        self._multiply_kernels(takers, norm.scale)

    def bound(self, norm: _Norm, takers: list[Operator]) -> None:
        """MAXIMUM, and MINIMUM where some scale is not positive; kernels times m, biases plus the constants."""
        positive, negative = norm.scale > 0, norm.scale < 0
        edge = -norm.shift / np.where(norm.scale == 0, 1.0, norm.scale)
        constant = np.where(norm.scale == 0, np.maximum(norm.shift, 0.0), norm.shift)
        self._add_to_biases(takers, constant)
        self._multiply_kernels(takers, norm.scale)
        low = self._constant(np.where(positive, edge, -_UNBOUND))
        if positive.all():
            self._rewire(norm.add, norm.source, low, "MAXIMUM")
            self._removed.append(norm.multiply.index)
            return
        self._rewire(norm.multiply, norm.source, low, "MAXIMUM")
        high = self._constant(np.where(negative, edge, _UNBOUND))
        self._rewire(norm.add, norm.multiply.outputs[0], high, "MINIMUM")

    def finish(self) -> None:
        """Take out the operators that are no longer needed, and the values of constants that nobody reads any more."""
        for index in sorted(self._removed, reverse=True):
            del self._subgraph.operators[index]
        self._drop_codes()
        read = {int(index) for operator in self._subgraph.operators for index in operator.inputs}
        kept = {tensor.buffer for number, tensor in enumerate(self._subgraph.tensors) if number in read}
        kept |= {tensor.buffer for other in self._model.subgraphs[1:] for tensor in other.tensors}
        for tensor in self._subgraph.tensors:
            if tensor.buffer not in kept:
                # The tensors stay, so that those of the graph keep their numbers.
                self._model.buffers[tensor.buffer].data = None

    def _drop_codes(self) -> None:
        """Take out the kinds of operators that no longer occur: a runtime without them would refuse the file."""
        operators = [operator for one in self._model.subgraphs for operator in one.operators]
        used = sorted({int(operator.opcodeIndex) for operator in operators})
        for operator in operators:
            operator.opcodeIndex = used.index(int(operator.opcodeIndex))
        self._model.operatorCodes = [self._model.operatorCodes[place] for place in used]

    def _rewire(self, operator: Operator, source: int, constant: int, kind: str = "") -> None:
        edited = self._subgraph.operators[operator.index]
        edited.inputs = np.array([source, constant], np.int32)
        if kind:
            edited.opcodeIndex = operator_code(self._model, kind)
            edited.builtinOptionsType = self._fb.BuiltinOptions.MaximumMinimumOptions
            edited.builtinOptions = self._fb.MaximumMinimumOptionsT()

    def _multiply_kernels(self, takers: list[Operator], scale: Floats) -> None:
        for operator in takers:
            if operator.kind in _CHANNEL_AXIS:
                index, values = self._values(operator, _KERNEL)
                shape = [1] * values.ndim
                shape[_CHANNEL_AXIS[operator.kind]] = len(scale)
                self._write(operator, _KERNEL, index, values * scale.reshape(shape))

    def _add_to_biases(self, takers: list[Operator], constant: Floats) -> None:
        """What a constant in each channel gives through the kernels, which are not multiplied yet."""
        for operator in takers:
            if operator.kind in _CHANNEL_AXIS:
                _, kernel = self._values(operator, _KERNEL)
                taps = kernel.reshape(len(kernel), -1, len(constant)).sum(axis=1)
                index, bias = self._values(operator, _BIAS)
                self._write(operator, _BIAS, index, bias + taps @ constant)

    def _values(self, operator: Operator, place: int) -> tuple[int, Floats]:
        """A constant of an operator as it is by now."""
        index = int(self._subgraph.operators[operator.index].inputs[place])
        tensor = self._subgraph.tensors[index]
        raw = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8)
        return index, raw.view(np.float32).reshape(tuple(tensor.shape)).astype(np.float64)

    def _write(self, operator: Operator, place: int, index: int, values: Floats) -> None:
        """Write a constant of one operator; others may share the tensor, so each gets its own when first written."""
        if index not in self._own:
            index = self._constant(values, like=self._subgraph.tensors[index])
            edited = self._subgraph.operators[operator.index]
            edited.inputs = np.array([*edited.inputs[:place], index, *edited.inputs[place + 1 :]], np.int32)
        self._fill(index, values)

    def _constant(self, values: Floats, like: Any = None) -> int:
        """A new constant tensor; its index."""
        tensor = self._fb.TensorT() if like is None else copy.copy(like)
        tensor.type, tensor.shape = self._fb.TensorType.FLOAT32, np.array(values.shape, np.int32)
        number = len(self._subgraph.tensors)
        tensor.name = f"folded/{number}".encode() if like is None else like.name
        self._model.buffers.append(self._fb.BufferT())
        tensor.buffer = len(self._model.buffers) - 1
        self._subgraph.tensors.append(tensor)
        self._own.add(number)
        self._fill(number, values)
        return number

    def _fill(self, index: int, values: Floats) -> None:
        buffer = self._model.buffers[self._subgraph.tensors[index].buffer]
        buffer.data = np.frombuffer(values.astype(np.float32).tobytes(), np.uint8)


def _keeps_channels(graph: Graph, operator: Operator) -> bool:
    """True for a MEAN over positions and a PAD around them: the last axis stays as it is."""
    constant = graph.tensors[operator.inputs[1]].values
    if constant is None:
        return False
    rank = len(graph.tensors[operator.inputs[0]].shape)
    if operator.kind == "PAD":
        return bool((constant[-1] == 0).all())
    return (rank - 1) not in {int(axis) % rank for axis in constant.ravel()}

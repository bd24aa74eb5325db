"""Edits a flatbuffer so that the scale of a batch norm moves on into the kernels behind it; `fold_scale` says where."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.lite.graph.flatbuffer import Graph, Operator, graphs_of, operator_code, schema

Floats = npt.NDArray[np.float64]
# What a scale per channel passes through unchanged on its way to the kernel that takes it.
_PASSING = ("MEAN", "PAD")
# Kernel kind -> the axis of its kernel that follows the channels it reads.
_CHANNEL_AXIS = {"CONV_2D": 3, "FULLY_CONNECTED": 1, "DEPTHWISE_CONV_2D": 3}
_INPUT, _KERNEL, _BIAS = 0, 1, 2
# Beyond any activation, and far from infinity, from which a quantizer would derive a scale.
_UNBOUND = 1e30


@dataclass(frozen=True)
class Norm:
    """A batch norm and a ReLU as the graph has them: relu(scale * source + shift)."""

    multiply: Operator
    add: Operator
    source: int
    scale: Floats
    shift: Floats


class FoldEditor:
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

    def shift(self, norm: Norm, takers: list[Operator]) -> None:
        """ADD of a / m straight on the source; kernels times m."""
        self._rewire(norm.add, norm.source, self._constant(norm.shift / norm.scale))
        self._removed.append(norm.multiply.index)
        self._multiply_kernels(takers, norm.scale)

    def bound(self, norm: Norm, takers: list[Operator]) -> None:
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

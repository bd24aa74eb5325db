"""The constants of a .tflite: zeros among its kernels, their scales, and the bytes that kernels and filters take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cxr_compress.device.cost_table import FileBytes
from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import Graph, Operator, Tensor, read_graphs
from cxr_compress.lite.graph.names import layer_of

COUNTED = ("CONV_2D", "FULLY_CONNECTED")
# The operators with a kernel, and the axis of the filters in it.
_FILTER_AXIS = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0, "CONV_3D": 4}
_WITH_KERNEL = (*_FILTER_AXIS, "BATCH_MATMUL")
_KERNEL_PLACE, _BIAS_PLACE = 1, 2  # among the inputs
_FLAT_RANK = 2
# Constants of these types take part in the arithmetic; int32 without a scale are shapes, axes and paddings.
_WEIGHT_DTYPES = ("float32", "float16", "int8", "uint8", "int16")

HEAD = "head: makes the output of the model"
DEPTHWISE = "depthwise kernel: a filter of its own per channel"
BIAS = "bias"


@dataclass(frozen=True)
class SparsityCount:
    """Zeros among the kernels of CONV_2D and FULLY_CONNECTED, without the head.

    Attributes:
        zeros: weights that are exactly 0; in int8, codes equal to the zero point of their channel.
        weights: weights counted.
        layers: (zeros, weights) per kernel tensor, in the order they run.
        excluded: constant tensor -> why it is not counted.
    """

    zeros: int
    weights: int
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Zeros per weight in [0, 1]; 0 where nothing is counted."""
        return self.zeros / self.weights if self.weights else 0.0


def count_zeros(graph: Graph) -> SparsityCount:
    """Count the zero weights of a graph; float, fp16, dynamic and int8 files alike."""
    kernels, left_out = _kernels(graph)
    layers = {_unique_name(graph, tensor): (_zeros(tensor), _size(tensor)) for tensor in kernels}
    excluded = {_unique_name(graph, graph.tensors[index]): reason for index, reason in left_out.items()}
    return SparsityCount(
        zeros=sum(zeros for zeros, _ in layers.values()),
        weights=sum(size for _, size in layers.values()),
        layers=layers,
        excluded=excluded,
    )


def find_heads(graph: Graph) -> set[int]:
    """Indices of the operators with a kernel that make the outputs.

    Walks back from each output to the first operator with a kernel, so that a RESHAPE, a QUANTIZE, a MEAN (of a class
    activation map), an activation or the concatenation of several heads does not hide it. It stops where feature maps
    are joined: a model that ends in a residual sum or a dense block has no head.
    """
    producers = graph.producers()
    heads: set[int] = set()
    waiting, seen = list(graph.outputs), set(graph.outputs)
    while waiting:
        operator = producers.get(waiting.pop())
        if operator is None:
            continue
        if operator.kind in _WITH_KERNEL:
            heads.add(operator.index)
            continue
        computed = [i for i in operator.inputs if i >= 0 and _constant(graph, producers, i) is None and i not in seen]
        if len(computed) == 1 or (operator.kind == "CONCATENATION" and _is_flat(graph, operator)):
            waiting += computed
            seen.update(computed)
    return heads


def _is_flat(graph: Graph, operator: Operator) -> bool:
    """True for (batch, values): the outputs of heads, not feature maps."""
    return len(graph.tensors[operator.outputs[0]].shape) <= _FLAT_RANK


def _unique_name(graph: Graph, tensor: Tensor) -> str:
    """The tensor's name, with its index where the converter gave that name twice."""
    twins = sum(other.name == tensor.name for other in graph.tensors)
    return tensor.name if twins == 1 else f"{tensor.name}#{tensor.index}"


def _kernels(graph: Graph) -> tuple[list[Tensor], dict[int, str]]:
    """The kernels to count, each once, and why every other constant with weights (by index) is left out."""
    producers, heads = graph.producers(), find_heads(graph)
    counted: dict[int, Tensor] = {}
    excluded: dict[int, str] = {}
    for operator in graph.operators:
        if operator.kind == "DEQUANTIZE":
            continue  # only unpacks an fp16 constant; the operator that uses it says what it is
        for place, index in enumerate(operator.inputs):
            tensor = _constant(graph, producers, index)
            if tensor is None or not (tensor.dtype in _WEIGHT_DTYPES or tensor.scale):
                continue
            reason = _reason(operator, place, operator.index in heads)
            if reason:
                excluded.setdefault(tensor.index, reason)
            else:
                counted[tensor.index] = tensor
    # A kernel that the head shares with another layer is pruned by nobody: the head's word counts.
    return [tensor for index, tensor in counted.items() if index not in excluded], excluded


def _reason(operator: Operator, place: int, is_head: bool) -> str:
    """Why a constant at this place is not counted; "" where it is."""
    if place == _BIAS_PLACE and operator.kind in _WITH_KERNEL:
        return BIAS
    if place != _KERNEL_PLACE or operator.kind not in _WITH_KERNEL:
        return f"constant of {operator.kind}"
    if is_head:
        return HEAD
    if operator.kind == "DEPTHWISE_CONV_2D":
        return DEPTHWISE
    return "" if operator.kind in COUNTED else f"kernel of {operator.kind}"


def _constant(graph: Graph, producers: dict[int, Operator], index: int) -> Tensor | None:
    """The constant behind an operand, through the DEQUANTIZE that an fp16 file puts before it."""
    if index < 0:
        return None
    tensor, producer = graph.tensors[index], producers.get(index)
    if tensor.values is None and producer is not None and producer.kind == "DEQUANTIZE":
        tensor = graph.tensors[producer.inputs[0]]
    return tensor if tensor.values is not None else None


def _size(tensor: Tensor) -> int:
    return 0 if tensor.values is None else int(tensor.values.size)


def _zeros(tensor: Tensor) -> int:
    if tensor.values is None:
        return 0
    if not tensor.zero_point:
        return int(np.count_nonzero(tensor.values == 0))
    shape = [1] * tensor.values.ndim
    shape[tensor.channel_axis] = len(tensor.zero_point)
    zero = np.asarray(tensor.zero_point, dtype=np.int64).reshape(shape)
    return int(np.count_nonzero(tensor.values == zero))


@dataclass(frozen=True)
class KernelScales:
    """The integer kernels of a file.

    Attributes:
        per_channel: kernels with a scale for each filter, or with one filter.
        per_tensor: layers whose filters share one scale: one wild filter makes all the others coarse.
    """

    per_channel: int
    per_tensor: tuple[str, ...]

    def to_text(self) -> str:
        """One line."""
        shared = f", one scale for all: {', '.join(self.per_tensor)}" if self.per_tensor else ""
        return (
            f"{self.per_channel} of {self.per_channel + len(self.per_tensor)} kernels with a scale per filter{shared}"
        )


def count_scales(graphs: Sequence[Graph]) -> KernelScales:
    """Look at the kernels that are stored as integers."""
    fine, coarse = 0, []
    for graph in graphs:
        for operator in graph.operators:
            axis, place = _FILTER_AXIS.get(operator.kind), operator.inputs[_KERNEL_PLACE : _KERNEL_PLACE + 1]
            if axis is None or not place or place[0] < 0:
                continue
            kernel = graph.tensors[place[0]]
            if kernel.values is None or not kernel.scale or kernel.is_float:
                continue
            if len(kernel.scale) == 1 and kernel.shape[axis] > 1:
                coarse.append(layer_of(graph, operator))
            else:
                fine += 1
    return KernelScales(fine, tuple(coarse))


# One float32 scale and one int64 zero point. Source: schema.fbs, table QuantizationParameters.
_BYTES_PER_SCALE = 12
_KERNEL_RANK = 2
_NORM_KINDS = ("MUL", "ADD", "SUB", "DIV")


def measure_file_bytes(
    content: bytes, *, kernels: int, filters: int, norm_channels: int, metadata_bytes: int = 0
) -> FileBytes:
    """What the int8 file of an original model costs per kernel element, filter and norm channel.

    Args:
        content: the file, with or without its appended metadata.
        kernels: elements of the model's kernels.
        filters: filters of its convolutions and dense layers.
        norm_channels: channels of the normalizations that stay in the graph.
        metadata_bytes: what will be appended to `content`, where it is bare.

    Returns:
        Rates that give back the size of this very file for these counts.

    Raises:
        CompressionError: the file holds no int8 kernel.
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
    """
    kernel_bytes = filter_bytes = norm_bytes = 0
    for graph in read_graphs(content):
        kernel, bias, norm = _constants(graph)
        kernel_bytes += _buffer_bytes(kernel)
        filter_bytes += _buffer_bytes(bias)
        filter_bytes += sum(_BYTES_PER_SCALE * len(t.scale) for t in (*kernel, *bias) if len(t.scale) > 1)
        norm_bytes += _buffer_bytes(norm)
    if not kernel_bytes:
        raise CompressionError("expected an int8 .tflite to split the bytes of, got one without int8 kernels")
    parts = ((kernel_bytes, kernels), (filter_bytes, filters), (norm_bytes, norm_channels))
    kernel_rate, filter_rate, norm_rate = (spent / count if count else 0.0 for spent, count in parts)
    known = sum(spent for spent, count in parts if count)
    return FileBytes(kernel_rate, filter_rate, norm_rate, float(len(content) - known + metadata_bytes))


def _constants(graph: Graph) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The constants of a graph that grow with its channels: kernels, biases, and those of normalizations."""
    kernels: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}
    norms: dict[int, Tensor] = {}
    for operator in graph.operators:
        for place, index in enumerate(operator.inputs):
            if index < 0 or graph.tensors[index].values is None:
                continue
            tensor = graph.tensors[index]
            if operator.kind in _NORM_KINDS:
                norms[index] = tensor
            elif tensor.is_integer and len(tensor.shape) >= _KERNEL_RANK:
                kernels[index] = tensor
            elif place >= _BIAS_PLACE and tensor.dtype == "int32" and tensor.scale:
                biases[index] = tensor
    return list(kernels.values()), list(biases.values()), list(norms.values())


def _buffer_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values; a buffer that tensors share counts once."""
    return sum({tensor.buffer: tensor.values.nbytes for tensor in tensors if tensor.values is not None}.values())

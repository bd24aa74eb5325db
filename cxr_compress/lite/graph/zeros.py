"""How many weights of a .tflite are exactly zero, counted where weight pruning works and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cxr_compress.lite.graph.flatbuffer import Graph, Operator, Tensor

COUNTED = ("CONV_2D", "FULLY_CONNECTED")
_KERNEL_PLACE = {  # which input of an operator is its kernel
    "CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "DEPTHWISE_CONV_2D": 1,
    "TRANSPOSE_CONV": 1,
    "CONV_3D": 1,
    "BATCH_MATMUL": 1,
}
_BIAS_PLACE = 2
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
        if operator.kind in _KERNEL_PLACE:
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
    if place == _BIAS_PLACE and operator.kind in _KERNEL_PLACE:
        return BIAS
    if place != _KERNEL_PLACE.get(operator.kind):
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

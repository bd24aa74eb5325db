"""Multiply-accumulates of a .tflite, counted on its operators: what it computes, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from cxr_compress.lite.graph.flatbuffer import Graph, Operator, Tensor, read_graphs, schema

Shapes = list[Tensor]
# Operators whose MACs are neither none nor counted here.
_UNKNOWN = (
    *("CONV_3D", "CONV_3D_TRANSPOSE", "RNN", "LSTM", "SVDF", "CALL", "CALL_ONCE", "IF", "WHILE"),
    *("UNIDIRECTIONAL_SEQUENCE_RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN"),
    *("BIDIRECTIONAL_SEQUENCE_LSTM", "STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL"),
)


def count_macs(content: bytes) -> int | None:
    """Multiply-accumulates of one image (the batch that the file has); zeros among the weights count like others.

    Args:
        content: the flatbuffer.

    Returns:
        None where an operator is there whose MACs are not known: custom ones, recurrent ones, branches.

    Raises:
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
        RuntimeUnavailableError: ai-edge-litert, which has the schema, is not installed.
    """
    graph = read_graphs(content)[0]
    counts = [_count(graph, operator) for operator in graph.operators]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count(graph: Graph, operator: Operator) -> int | None:
    if operator.kind in _MACS:
        inputs = [graph.tensors[index] for index in operator.inputs]
        return _MACS[operator.kind](inputs, graph.tensors[operator.outputs[0]])
    known = operator.kind not in _UNKNOWN and hasattr(schema().BuiltinOperator, operator.kind)  # else a custom one
    return 0 if known else None


def _of_convolution(inputs: Shapes, output: Tensor) -> int:
    """Weights (out, height, width, in), where `in` is that of one group."""
    return prod(output.shape) * prod(inputs[1].shape[1:])


def _of_depthwise(inputs: Shapes, output: Tensor) -> int:
    """Weights (1, height, width, out)."""
    return prod(output.shape) * prod(inputs[1].shape[1:3])


def _of_transposed(inputs: Shapes, output: Tensor) -> int:
    """Shape of the output, weights (out, height, width, in), input: each input is multiplied with all that reads it."""
    weights, values = inputs[1:3]
    return prod(values.shape) * prod(weights.shape[:3])


def _of_dense(inputs: Shapes, output: Tensor) -> int:
    """Weights (out, in)."""
    return prod(output.shape) * inputs[1].shape[-1]


def _of_product(inputs: Shapes, output: Tensor) -> int:
    """(..., m, k) by (..., k, n), each perhaps transposed: what of the first is not m is k."""
    return prod(output.shape) * (prod(inputs[0].shape[-2:]) // output.shape[-2])


_MACS: dict[str, Callable[[Shapes, Tensor], int]] = {
    "CONV_2D": _of_convolution,
    "DEPTHWISE_CONV_2D": _of_depthwise,
    "TRANSPOSE_CONV": _of_transposed,
    "FULLY_CONNECTED": _of_dense,
    "BATCH_MATMUL": _of_product,
}

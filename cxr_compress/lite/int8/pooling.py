"""Averages as convolutions, where int8 has no fast kernel for them.

XNNPACK takes an AVERAGE_POOL_2D of floats and leaves one of int8 to the reference kernels: that costs a fifth of the
time of a DenseNet121 with 0.06 of its MACs, and cuts the graph that XNNPACK runs into pieces. A depthwise convolution
with the weight 1 / (height * width) in every place gives the same mean; all its weights are one code, exactly. What it
gives in int8 differs by one code at most: both round the same sum of codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.lite.graph.flatbuffer import (
    Graph,
    Operator,
    drop_unused_codes,
    graphs_of,
    operator_code,
    schema,
    to_bytes,
    to_object,
)

# Kernels of XNNPACK for depthwise convolutions take up to 25 places; larger ones are slow.
_MOST_PLACES = 25


def average_by_convolution(content: bytes) -> bytes:
    """A float flatbuffer whose average poolings without padding are depthwise convolutions; the same outputs.

    Averages over the whole image stay: they are one place each, and few.

    Args:
        content: float flatbuffer; it comes back as it is where there is nothing to do.
    """
    model = to_object(content)
    graph = graphs_of(model)[0]
    pools = [operator for operator in graph.operators if _is_taken(model, graph, operator)]
    for pool in pools:
        _replace(model, graph, pool)
    if not pools:
        return content
    drop_unused_codes(model)
    return to_bytes(model)


def _is_taken(model: Any, graph: Graph, operator: Operator) -> bool:
    if operator.kind != "AVERAGE_POOL_2D" or graph.tensors[operator.outputs[0]].dtype != "float32":
        return False
    options = model.subgraphs[0].operators[operator.index].builtinOptions
    places = int(options.filterHeight) * int(options.filterWidth)
    # With padding, a mean at the border is over fewer places.
    return options.padding == schema().Padding.VALID and 1 < places <= _MOST_PLACES


def _replace(model: Any, graph: Graph, pool: Operator) -> None:
    fb, operator = schema(), model.subgraphs[0].operators[pool.index]
    options, channels = operator.builtinOptions, graph.tensors[pool.inputs[0]].shape[-1]
    size = (int(options.filterHeight), int(options.filterWidth))
    name = graph.tensors[pool.outputs[0]].name
    kernel = np.full((1, *size, channels), 1 / (size[0] * size[1]), np.float32)
    constants = [
        _constant(model, f"{name}/kernel", kernel),
        _constant(model, f"{name}/bias", np.zeros(channels, np.float32)),
    ]
    operator.inputs = np.array([pool.inputs[0], *constants], np.int32)
    operator.opcodeIndex = operator_code(model, "DEPTHWISE_CONV_2D")
    operator.builtinOptionsType = fb.BuiltinOptions.DepthwiseConv2DOptions
    operator.builtinOptions = fb.DepthwiseConv2DOptionsT()
    for field in ("padding", "strideW", "strideH", "fusedActivationFunction"):
        setattr(operator.builtinOptions, field, getattr(options, field))
    operator.builtinOptions.depthMultiplier = 1
    operator.builtinOptions.dilationWFactor = operator.builtinOptions.dilationHFactor = 1


def _constant(model: Any, name: str, values: np.ndarray) -> int:
    """A new constant tensor; its index."""
    fb = schema()
    tensor, buffer = fb.TensorT(), fb.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer, tensor.name = len(model.buffers) - 1, name.encode()
    tensor.type, tensor.shape = fb.TensorType.FLOAT32, np.array(values.shape, np.int32)
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1

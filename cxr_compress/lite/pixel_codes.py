"""Lets an int16 graph of pixel values take them as uint8, in integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.lite.graph.flatbuffer import operator_code, schema, to_bytes, to_object


def widen_pixels(content: bytes) -> bytes:
    """The same int16 flatbuffer with uint8 pixels at its input: two QUANTIZE in front, uint8 - int8 - int16.

    Two, because no kernel goes from uint8 to int16. The first only subtracts 128; the second is the one rounding that
    the int16 input had anyway.
    """
    model, fb = to_object(content), schema()
    subgraph = model.subgraphs[0]
    wide = int(subgraph.inputs[0])
    shape = subgraph.tensors[wide].shape
    narrow = _add_tensor(subgraph, _codes(fb, b"pixels_less_128", fb.TensorType.INT8, -128, shape))
    pixels = _add_tensor(subgraph, _codes(fb, b"pixels", fb.TensorType.UINT8, 0, shape))
    subgraph.inputs = np.array([pixels], np.int32)
    # Version 2 of QUANTIZE brought int16.
    steps = [_quantize(model, fb, 1, pixels, narrow), _quantize(model, fb, 2, narrow, wide)]
    subgraph.operators[:0] = steps
    return to_bytes(model)


def _codes(fb: Any, name: bytes, dtype: int, zero_point: int, shape: Any) -> Any:
    """A tensor of pixel values: one a step."""
    tensor, quantization = fb.TensorT(), fb.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.array([1], np.float32), np.array([zero_point], np.int64)
    tensor.name, tensor.type, tensor.buffer, tensor.quantization = name, dtype, 0, quantization
    tensor.shape = np.asarray(shape, np.int32)
    return tensor


def _add_tensor(subgraph: Any, tensor: Any) -> int:
    subgraph.tensors.append(tensor)
    return len(subgraph.tensors) - 1


def _quantize(model: Any, fb: Any, version: int, source: int, target: int) -> Any:
    """A QUANTIZE of this version."""
    operator = fb.OperatorT()
    operator.opcodeIndex = operator_code(model, "QUANTIZE", version)
    operator.inputs, operator.outputs = np.array([source], np.int32), np.array([target], np.int32)
    return operator

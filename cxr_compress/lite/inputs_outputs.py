"""What the input and the output of a file store: the quant type says so, and the user within its limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.lite.freeze import FrozenFunction, freeze_call
from cxr_compress.lite.graph.flatbuffer import operator_code, read_graphs, schema, to_bytes, to_object
from cxr_compress.lite.int8.ranges import Ranges
from cxr_compress.quant_types import TYPES

STORED_TYPES = tuple(sorted({dtype for quant_type in TYPES.values() for dtype in quant_type.input_output}))


@dataclass(frozen=True)
class InputOutput:
    """What a file takes and gives; the integers stand for real values by a scale and a zero point.

    Attributes:
        input: numpy's name of the input's dtype.
        output: likewise.
        pixels: the input is uint8 and its codes are the pixels themselves.
        arithmetic: what the activations between them are, "int8" or "int16"; for integer types.
    """

    input: str = "int8"
    output: str = "int8"
    pixels: bool = False
    arithmetic: str = "int8"


INT8 = InputOutput()
INT16 = InputOutput("int16", "int16", arithmetic="int16")


def input_output_of(
    quant_type: str, *, pixels: bool = False, input_type: str | None = None, output_type: str | None = None
) -> InputOutput:
    """What a file of a quant type takes and gives.

    Args:
        quant_type: one of QUANT_TYPES.
        pixels: the file normalizes pixels itself, so its input is uint8 in any type.
        input_type: as asked for; None for the type's own.
        output_type: likewise.

    Raises:
        CompressionError: the type has no such input or output, or pixels and another input were asked for.
    """
    if pixels and input_type not in (None, "uint8"):
        raise CompressionError(
            f"a file that takes pixels has a uint8 input, got inference_input_type {input_type}: leave that out, or "
            "let the device normalize (input=float32)"
        )
    stored_input = "uint8" if pixels else _stored_type(quant_type, "inference_input_type", input_type)
    stored_output = _stored_type(quant_type, "inference_output_type", output_type)
    activations = TYPES[quant_type].activations
    return InputOutput(stored_input, stored_output, pixels, "int16" if activations == "int16" else "int8")


def _stored_type(quant_type: str, option: str, wanted: str | None) -> str:
    possible = TYPES[quant_type].input_output
    if wanted is None:
        return possible[0]
    if wanted not in possible:
        takers = [name for name, other in TYPES.items() if wanted in other.input_output]
        raise CompressionError(
            f"{quant_type} has {' or '.join(possible)} input and output, got {option} {wanted}: "
            + (f"ask for {' or '.join(takers)}" if takers else f"expected one of {', '.join(STORED_TYPES)}")
        )
    return wanted


PIXEL_RANGE = (0.0, 255.0)


def normalization(spec: PreprocessSpec) -> tuple[np.ndarray, np.ndarray]:
    """What `device.preprocess.normalize` does to pixels as a 1x1 convolution.

    Returns:
        float32 kernel (1, 1, channels fed, channels of the network) and bias (channels of the network,): network input
        = pixel * kernel + bias. Each differs from the table of `normalize` by float32 rounding alone.
    """
    std, mean = np.asarray(spec.std, np.float64), np.asarray(spec.mean, np.float64)
    kernel = np.zeros((1, 1, _channels_fed(spec), spec.channels))
    for channel, source in enumerate(spec.sources):
        kernel[0, 0, source, channel] = 1.0 / (255.0 * std[channel])
    return kernel.astype(np.float32), (-mean / std).astype(np.float32)


def take_pixels(frozen: FrozenFunction, spec: PreprocessSpec) -> FrozenFunction:
    """Put the normalization of `spec` in front of a frozen function, which is left as it is.

    Returns:
        A function of pixel values as float32 (0 to 255): (batch, height, width, 1) for gray, else 3 channels.

    Raises:
        CompressionError: the spec is not for this network.
    """
    import tensorflow as tf

    batch, *network = frozen.input_shape
    require_pixels_of(tuple(network), spec)
    kernel, bias = normalization(spec)

    def call(pixels: Any) -> Any:
        return _results(frozen.function(tf.nn.bias_add(tf.nn.conv2d(pixels, kernel, 1, "VALID"), bias)))

    folded = freeze_call(call, (batch, spec.height, spec.width, _channels_fed(spec)))
    return replace(folded, last_activation=frozen.last_activation, gives=frozen.gives)


def require_pixels_of(network: tuple[int, ...], spec: PreprocessSpec) -> None:
    """Refuse a spec that makes other images than a network takes.

    Args:
        network: (height, width, channels) of the network's input.
        spec: how pixels become it.

    Raises:
        CompressionError: says both shapes.
    """
    made = (spec.height, spec.width, spec.channels)
    if network != made:
        raise CompressionError(
            f"the network takes {network}, the preprocessing makes {made}: give the one it was trained with"
        )


def pin_pixel_range(content: bytes, ranges: Ranges) -> Ranges:
    """The same ranges with 0 to 255 for the input, whatever the calibration images held: one code a pixel value."""
    return {**ranges, read_graphs(content)[0].inputs[0]: PIXEL_RANGE}


def feed_uint8(content: bytes) -> bytes:
    """Let a float flatbuffer of pixel values take them as uint8: a CAST in front."""
    model, fb = to_object(content), schema()
    subgraph = model.subgraphs[0]
    numbers = int(subgraph.inputs[0])
    pixels = fb.TensorT()
    pixels.name, pixels.type, pixels.buffer = b"pixels", fb.TensorType.UINT8, 0
    pixels.shape = np.asarray(subgraph.tensors[numbers].shape, np.int32)
    subgraph.tensors[numbers].name = b"pixels_as_numbers"
    subgraph.tensors.append(pixels)
    subgraph.inputs = np.array([len(subgraph.tensors) - 1], np.int32)
    subgraph.operators.insert(0, _cast(model, fb, int(subgraph.inputs[0]), numbers))
    return to_bytes(model)


def _cast(model: Any, fb: Any, source: int, target: int) -> Any:
    """A CAST from uint8 to float32."""
    operator, options = fb.OperatorT(), fb.CastOptionsT()
    options.inDataType, options.outDataType = fb.TensorType.UINT8, fb.TensorType.FLOAT32
    operator.opcodeIndex = operator_code(model, "CAST")
    operator.inputs, operator.outputs = np.array([source], np.int32), np.array([target], np.int32)
    operator.builtinOptionsType, operator.builtinOptions = fb.BuiltinOptions.CastOptions, options
    return operator


def _channels_fed(spec: PreprocessSpec) -> int:
    return replace(spec, input="uint8").input_shape[2]


def _results(outputs: Any) -> Any:
    """What a concrete function gave, bare or in a list or dict: the tensor, or the list of the two."""
    import tensorflow as tf

    tensors = tf.nest.flatten(outputs)
    return tensors[0] if len(tensors) == 1 else tensors


def pixels_to_int16(content: bytes) -> bytes:
    """The same int16 flatbuffer with uint8 pixels at its input: two QUANTIZE in front, uint8 - int8 - int16.

    Two, because no kernel goes from uint8 to int16. The first only subtracts 128; the second is the one rounding that
    the int16 input had anyway.
    """
    model, fb = to_object(content), schema()
    subgraph = model.subgraphs[0]
    int16_input = int(subgraph.inputs[0])
    shape = subgraph.tensors[int16_input].shape
    int8_pixels = _add_tensor(subgraph, _codes(fb, b"pixels_less_128", fb.TensorType.INT8, -128, shape))
    pixels = _add_tensor(subgraph, _codes(fb, b"pixels", fb.TensorType.UINT8, 0, shape))
    subgraph.inputs = np.array([pixels], np.int32)
    # Version 2 of QUANTIZE brought int16.
    steps = [_quantize(model, fb, 1, pixels, int8_pixels), _quantize(model, fb, 2, int8_pixels, int16_input)]
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

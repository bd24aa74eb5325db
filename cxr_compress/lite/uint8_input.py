"""Let a network take uint8 pixels and normalise them itself: nothing is left for a device to get wrong.

The normalisation becomes one 1x1 convolution in front of the network: gray pixels come in as one channel and leave as
the network's three, each with its own scale and offset. It is not folded into the network's first convolution, whose
zero padding stands for the mean and not for black. A convolution, because its int8 kernel has a scale for each channel,
which makes it exact there but for one rounding; MUL and ADD would share one and round twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.lite.freeze import FrozenFunction, freeze_call
from cxr_compress.lite.graph.flatbuffer import operator_code, read_graphs, schema, to_bytes, to_object
from cxr_compress.lite.int8.ranges import Ranges

PIXEL_RANGE = (0.0, 255.0)


def normalisation(spec: PreprocessSpec) -> tuple[np.ndarray, np.ndarray]:
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
    """Put the normalisation of `spec` in front of a frozen function, which is left as it is.

    Returns:
        A function of pixel values as float32 (0 to 255): (batch, height, width, 1) for gray, else 3 channels.

    Raises:
        CompressionError: the spec is not for this network.
    """
    import tensorflow as tf

    batch, *network = frozen.input_shape
    require_pixels_of(tuple(network), spec)
    kernel, bias = normalisation(spec)

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
    """The same ranges with 0 to 255 for the input, whatever the calibration films held: one code a pixel value."""
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

"""The two steps of TensorFlow's converter that are used: a frozen function becomes a float graph, that becomes int8."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.lite.freeze import FrozenFunction


def quantize(
    content: bytes, *, float_io: bool = False, pixels: bool = False, float_tensors: Collection[str] = ()
) -> bytes:
    """Quantise a float flatbuffer whose tensors carry their ranges to int8.

    Weights get a scale per output channel (zero point 0, so an exact zero stays code 0), activations one per tensor.

    Args:
        content: float flatbuffer with ranges (`ranges.write_ranges`).
        float_io: keep float32 at the ends.
        pixels: uint8 at the input, whose range is 0 to 255.
        float_tensors: names of results whose operators stay in float, fenced with DEQUANTIZE and QUANTIZE.
    """
    import tensorflow as tf

    # The step behind TFLiteConverter's int8 path. TensorFlow offers it to the public only together with its own
    # calibrator, whose faults are named in ranges.py.
    from tensorflow.lite.python.convert import mlir_quantize

    end = tf.float32 if float_io else tf.int8
    start = tf.uint8 if pixels else end
    left = set(float_tensors) or None
    return run_converter(
        lambda: mlir_quantize(content, input_data_type=start, output_data_type=end, denylisted_nodes=left)
    )


def lower(frozen: FrozenFunction, quant_type: str) -> bytes:
    """Frozen function -> flatbuffer of a type that needs no calibration.

    Raises:
        UnsupportedLayerError: a layer has no TFLite operator.
    """
    import tensorflow as tf

    converter = frozen_converter(frozen)
    if quant_type != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quant_type == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if quant_type == "dynamic":
        # Per-channel FULLY_CONNECTED is version 12, which tflite-runtime 2.14 refuses.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    return run_converter(converter.convert)


def frozen_converter(frozen: FrozenFunction) -> Any:
    """A `tf.lite.TFLiteConverter` that takes a frozen function as it is."""
    import tensorflow as tf

    # The function as its own trackable object: the converter takes the fast path, and does not advise the slow one.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen.function], frozen.function)
    # What it would freeze is frozen already; without this it does so again for each type (2 s for DenseNet121).
    converter._freeze_concrete_function = lambda: (
        frozen.graph_def,
        frozen.function.inputs,
        frozen.function.outputs,
        frozen.function,
    )
    # Metadata holds the converter's version and the wrong mode for what is quantised afterwards.
    converter.exclude_conversion_metadata = True
    return converter


def run_converter(step: Callable[[], bytes]) -> bytes:
    """Run a step of the converter; its pages of MLIR become one line.

    Raises:
        UnsupportedLayerError: it fails.
    """
    from tensorflow.lite.python.convert import ConverterError

    try:
        return bytes(step())
    except (ConverterError, RuntimeError, ValueError) as error:
        missing = sorted(set(re.findall(r"\btf\.[A-Z]\w+", str(error))))
        reason = f"no TFLite operator for {', '.join(missing)}" if missing else str(error).strip().split("\n")[0]
        raise UnsupportedLayerError(
            f"the model cannot be converted: {reason}: replace those layers by ones that TFLite has"
        ) from error

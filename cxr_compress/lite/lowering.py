"""The two steps of TensorFlow's converter that are used: a frozen function becomes a float graph, that becomes int8."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from cxr_compress.device.interpreter import SECONDS, crash_of
from cxr_compress.device.native import NativeCrashError, run_in_child
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.lite.freeze import FrozenFunction
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.graph.names import layer_in, layer_of
from cxr_compress.lite.inputs_outputs import INT8, INT16, InputOutput, pixels_to_int16
from cxr_compress.quant_types import TYPES

_NAMED = 3  # layers in an error


def quantize(content: bytes, *, input_output: InputOutput = INT8, float_tensors: Collection[str] = ()) -> bytes:
    """Quantize a float flatbuffer whose tensors carry their ranges to int8.

    Weights get a scale per output channel (zero point 0, so an exact zero stays code 0), activations one per tensor.

    Args:
        content: float flatbuffer with ranges (`ranges.write_ranges`).
        input_output: what the file takes and gives; the range of pixels is 0 to 255.
        float_tensors: names of results whose operators stay in float, fenced with DEQUANTIZE and QUANTIZE.
    """
    import tensorflow as tf

    # The step behind TFLiteConverter's int8 path. TensorFlow offers it to the public only together with its own
    # calibrator, whose faults are named in ranges.py.
    from tensorflow.lite.python.convert import mlir_quantize

    input_type, output_type = (tf.dtypes.as_dtype(name) for name in (input_output.input, input_output.output))
    in_float = set(float_tensors) or None
    return _guarded(
        content,
        "int8",
        lambda part: mlir_quantize(
            part, input_data_type=input_type, output_data_type=output_type, denylisted_nodes=in_float
        ),
    )


def quantize_int16(content: bytes, *, input_output: InputOutput = INT16) -> bytes:
    """Quantize a float flatbuffer whose tensors carry their ranges to int16 activations and int8 weights.

    Activations are symmetric: zero is code 0, the larger end of the range is code 32767 of either sign. Weights are
    those of `quantize`, biases int64: a step of the sum is so fine that int32 would clip large ones. There are no fast
    kernels for it: about 30 times slower than float32.

    Args:
        content: float flatbuffer with ranges (`ranges.write_ranges`).
        input_output: what the file takes and gives: int16 or float32, or pixels.

    Raises:
        UnsupportedLayerError: an operator has no kernel for int16.
    """
    import tensorflow as tf

    # The step behind TFLiteConverter's int16x8 path, which is not the one of int8: that one makes int16 with zero
    # points, which the kernels refuse. It takes the ranges that are there where it is given no images.
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    input_type, output_type = (
        tf.float32 if name == "float32" else tf.int16 for name in (input_output.input, input_output.output)
    )
    try:
        content_int16 = _guarded(
            content,
            "int16x8",
            lambda part: Calibrator(part).calibrate_and_quantize(
                lambda: iter(()),
                input_type,
                output_type,
                allow_float=False,
                activations_type=tf.int16,
                bias_type=tf.int64,
            ),
        )
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(_without_int16(content, str(error))) from error
    return pixels_to_int16(content_int16) if input_output.pixels else content_int16


def _without_int16(content: bytes, text: str) -> str:
    """What the quantizer said, with the layer that it means."""
    kind = re.search(r"for op: '(\w+)'", text)
    if kind is None:
        return text
    graph = read_graphs(content)[0]
    layers = [layer_of(graph, operator) for operator in graph.operators if operator.kind == kind[1]]
    return (
        f"int16x8 has no kernel for {kind[1]} (layer {', '.join(layers[:1])}): export int8_float_io with that layer in "
        "float_layers, or fp16 or dynamic"
    )


def lower(frozen: FrozenFunction, quant_type: str) -> bytes:
    """Frozen function -> flatbuffer of a type that needs no calibration.

    Raises:
        UnsupportedLayerError: a layer has no TFLite operator.
    """
    import tensorflow as tf

    converter = frozen_converter(frozen)
    weights = TYPES[quant_type].weights
    if weights != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if weights == "int8":
        # Per-channel FULLY_CONNECTED is version 12, which tflite-runtime 2.14 refuses.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    return run_converter(converter.convert, frozen.graph_def)


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
    # Metadata holds the converter's version and the wrong mode for what is quantized afterwards.
    converter.exclude_conversion_metadata = True
    return converter


def _guarded(content: bytes, quant_type: str, step: Callable[[bytes], Any]) -> bytes:
    """Round a graph in a process of its own: the quantizer aborts on some graphs.

    Raises:
        UnsupportedLayerError: it fails, or crashes; then the message names the operator.
    """
    try:
        return run_converter(lambda: run_in_child(lambda: bytes(step(content)), seconds=SECONDS))
    except NativeCrashError as crash:
        where = crash_of(content, step) or f"with {crash}"
        raise UnsupportedLayerError(
            f"the converter crashes {where} as it makes {quant_type} of the model: choose another quant type, or "
            "replace that layer"
        ) from crash


def run_converter(step: Callable[[], bytes], graph_def: Any = None) -> bytes:
    """Run a step of the converter; its pages of MLIR become one line.

    Args:
        step: what to run.
        graph_def: of the model, which knows the layers; None where that is not known any more.

    Raises:
        UnsupportedLayerError: it fails.
    """
    from tensorflow.lite.python.convert import ConverterError

    try:
        return bytes(step())
    except (ConverterError, RuntimeError, ValueError) as error:
        missing = sorted(set(re.findall(r"\btf\.[A-Z]\w+", str(error))))
        named = ", ".join(f"{kind}{_layers_with(kind, graph_def)}" for kind in missing)
        reason = f"no TFLite operator for {named}" if missing else str(error).strip().split("\n")[0]
        raise UnsupportedLayerError(
            f"the model cannot be converted: {reason}: replace those layers by ones that TFLite has"
        ) from error


def _layers_with(kind: str, graph_def: Any) -> str:
    """The layers that an operation of TensorFlow comes from, in brackets; "" where none can be named."""
    nodes = () if graph_def is None else graph_def.node
    layers = list(dict.fromkeys(layer_in(node.name) for node in nodes if f"tf.{node.op}" == kind))
    if not layers:
        return ""
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    named = ", ".join(repr(layer) for layer in layers[:_NAMED])
    return f" (layer{'s' if len(layers) > 1 else ''} {named}{more})"

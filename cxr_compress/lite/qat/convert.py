"""A model in quantization-aware training -> .tflite that computes in int8 with the trained ranges."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
import numpy as np
import tensorflow as tf

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite.audit import audit, require_integer
from cxr_compress.lite.exporter import LiteModel, Stage
from cxr_compress.lite.freeze import FrozenFunction, freeze_call, static_shape
from cxr_compress.lite.graph.flatbuffer import FILE_IDENTIFIER, Graph, name_signature, read_graphs, to_object
from cxr_compress.lite.inputs_outputs import PIXEL_RANGE, InputOutput, input_output_of, normalization, require_pixels_of
from cxr_compress.lite.lowering import frozen_converter, run_converter
from cxr_compress.lite.parity import require_runs
from cxr_compress.lite.qat.prepare import PREFIX, QatModel
from cxr_compress.lite.qat.quantizers import export, fake_quant, quantize_kernel
from cxr_compress.quant_types import TYPES


def share_vectors(content: bytes) -> bytes:
    """Store every distinct vector of a flatbuffer once; what reads it sees no difference.

    A kernel with a scale per channel carries a zero point of eight bytes for each, all of them zero, and so does its
    bias: with 62 depthwise layers in a DenseNet121 that is 0.6 of 8.3 MB. The format lets tables point to one vector.
    """
    builder = _SharingBuilder(len(content))
    builder.Finish(to_object(content).Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """Remembers where it has put which numbers."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._places: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, values: np.ndarray) -> Any:  # noqa: N802 - the name that the generated schema calls
        """The place of a vector of these numbers, a new one only where there is none."""
        key = (values.dtype.str, values.tobytes())
        if key not in self._places:
            self._places[key] = super().CreateNumpyVector(values)
        return self._places[key]


_TYPES = tuple(name for name, quant_type in TYPES.items() if quant_type.activations == "int8")
_KERNEL_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

Progress = Callable[[str], None]


def convert_qat(
    qat: QatModel,
    quant_type: str | list[str] | tuple[str, ...] = "int8",
    *,
    input_size: int | tuple[int, int] | None = None,
    pixels: PreprocessSpec | None = None,
    progress: Progress | None = None,
) -> Any:
    """Convert to .tflite with the kernels and ranges as they are trained; `qat` may be trained on afterwards.

    No calibration: every range comes from the training. The same weights give the same bytes.

    Args:
        qat: from `prepare_qat`.
        quant_type: "int8" (integers throughout) or "int8_float_io" (float32 input and output), or several, which share
            the freeze.
        input_size: where the model leaves its height and width open.
        pixels: the preprocessing the model was trained with; its normalization becomes the first layer and the file
            takes uint8 pixels, "int8_float_io" then being float at its output only.
        progress: is told each stage and its seconds.

    Returns:
        A LiteModel, or for several quant types a dict of them in the order asked.

    Raises:
        CompressionError: another quant type, a result that computes in float somewhere, or a masked weight that is not
            zero in the file.
        UnsupportedLayerError: a layer has no int8 TFLite operator.
    """
    wanted = [quant_type] if isinstance(quant_type, str) else list(quant_type)
    _check_types(wanted)
    report = progress or (lambda line: None)
    with Stage("freeze", report), export():
        frozen = _freeze(qat.model, input_size, pixels)
    files = {}
    for name in wanted:
        input_output = input_output_of(name, pixels=pixels is not None)
        with Stage(name, report):
            content = share_vectors(name_signature(_lower(frozen, input_output)))
            audited = audit(content)
            require_integer(audited, input_output=input_output)
            _require_zeros(read_graphs(content)[0], qat)
            require_runs(content, name)
            files[name] = LiteModel(content, name, audited)
    return files[quant_type] if isinstance(quant_type, str) else files


def _check_types(wanted: Sequence[str]) -> None:
    """Check what is asked for before the slow part starts."""
    if not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= set(_TYPES):
        given = ", ".join(map(str, wanted)) or "nothing"
        raise CompressionError(
            f"expected quant types among {', '.join(_TYPES)}, each once, got {given}: other types need no "
            "quantization-aware training: convert the model itself"
        )


def _freeze(model: Any, input_size: int | tuple[int, int] | None, pixels: PreprocessSpec | None) -> FrozenFunction:
    """The model in inference, rounding and all, behind the normalization of pixels if it is to take them."""
    shape = static_shape(tuple(model.inputs[0].shape), 1, input_size)
    if pixels is None:
        return freeze_call(lambda image: model(image, training=False), shape)
    require_pixels_of(shape[1:], pixels)
    kernel, bias = normalization(pixels)
    low, high = (tf.constant(end) for end in PIXEL_RANGE)

    def call(image: Any) -> Any:
        codes = fake_quant(image, low, high, training=False)
        weights = quantize_kernel(tf.constant(kernel), keras.layers.Conv2D, training=False)
        return model(tf.nn.bias_add(tf.nn.conv2d(codes, weights, 1, "VALID"), bias), training=False)

    return freeze_call(call, (*shape[:3], kernel.shape[2]))


def _lower(frozen: FrozenFunction, input_output: InputOutput) -> bytes:
    """Frozen function with rounding in it -> int8 flatbuffer."""
    converter = frozen_converter(frozen)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.dtypes.as_dtype(input_output.input)
    converter.inference_output_type = tf.dtypes.as_dtype(input_output.output)
    with warnings.catch_warnings():
        # There are none because the ranges are in the graph.
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        return run_converter(converter.convert)


def _require_zeros(graph: Graph, qat: QatModel) -> None:
    """Check that every weight that a mask holds at zero is code 0 in the file.

    Raises:
        CompressionError: one is not, or a masked kernel cannot be found; it names the layer.
    """
    for name, mask in qat.masks.items():
        codes = _codes(graph, name)
        if codes is None or codes.shape != mask.shape:
            raise CompressionError(f"the kernel of {name}, whose zeros are to be kept, is not in the file")
        lost = int(np.count_nonzero(codes[mask == 0]))
        if lost:
            raise CompressionError(f"{lost} weights of {name} that a mask holds at zero are not zero in the file")


def _codes(graph: Graph, name: str) -> np.ndarray | None:
    """The int8 codes of a layer's kernel in Keras's layout; None where there is none."""
    for operator in graph.operators:
        if operator.kind not in _KERNEL_OPERATORS:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        if f"/{PREFIX}{name}/" in tensor.name and tensor.values is not None:
            axes = {"CONV_2D": (1, 2, 3, 0), "FULLY_CONNECTED": (1, 0)}.get(operator.kind, (1, 2, 3, 0))
            return tensor.values.transpose(axes)
    return None

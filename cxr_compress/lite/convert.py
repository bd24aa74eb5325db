"""Keras model -> .tflite in five quant types: freeze once, lower once, calibrate once, then one quick step per type."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.lite.audit import Audit, audit, require_integer
from cxr_compress.lite.calibration import DEFAULT_STEPS, collect_images
from cxr_compress.lite.flatbuffer import name_signature
from cxr_compress.lite.freeze import FrozenFunction, freeze
from cxr_compress.lite.ranges import measure_ranges, write_ranges
from cxr_compress.lite.uint8_input import feed_uint8, pin_pixel_range, take_pixels

QUANT_TYPES = ("none", "fp16", "dynamic", "int8", "int8_float_io")
_FLOAT_ENDS = "int8_float_io"
_CALIBRATED = ("int8", _FLOAT_ENDS)
_MAX_THREADS = 4  # small graphs gain nothing from more

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LiteModel:
    """One converted model.

    Attributes:
        content: the plain flatbuffer, without labels and preprocessing (device.modelfile.pack_model adds those).
        quant_type: one of QUANT_TYPES.
        audit: what is inside.
    """

    content: bytes = field(repr=False)
    quant_type: str
    audit: Audit


@overload
def convert(
    model: Any,
    quant_type: str = "int8",
    *,
    calibration: Iterable[np.ndarray] | None = None,
    calibration_steps: int = DEFAULT_STEPS,
    input_size: int | tuple[int, int] | None = None,
    pixels: PreprocessSpec | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> LiteModel: ...


@overload
def convert(
    model: Any,
    quant_type: list[str] | tuple[str, ...],
    *,
    calibration: Iterable[np.ndarray] | None = None,
    calibration_steps: int = DEFAULT_STEPS,
    input_size: int | tuple[int, int] | None = None,
    pixels: PreprocessSpec | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, LiteModel]: ...


def convert(
    model: Any,
    quant_type: str | list[str] | tuple[str, ...] = "int8",
    *,
    calibration: Iterable[np.ndarray] | None = None,
    calibration_steps: int = DEFAULT_STEPS,
    input_size: int | tuple[int, int] | None = None,
    pixels: PreprocessSpec | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> LiteModel | dict[str, LiteModel]:
    """Convert a Keras model to .tflite; the model is not modified. The same model and images give the same bytes.

    The C++ converter writes a line or two to the process's stderr; a library does not redirect that, cxr_convert does.

    Args:
        model: tf_keras model that gives logits, or what `freeze` made of one.
        quant_type: one of QUANT_TYPES, or several, which share the freeze and the calibration.
            none: float32. fp16: float16 weights, half the size, float arithmetic. dynamic: int8 weights, float
            activations, a quarter of the size, no calibration. int8: everything in int8, ends included; what Coral and
            microcontrollers need. int8_float_io: the same inside, float32 at the ends.
        calibration: batches float32 (n, height, width, channels), preprocessed as the input; for the int8 types. With
            `pixels`, what the device will feed: uint8 (n, height, width, 1), or 3 channels for rgb.
        calibration_steps: images taken from `calibration` at most.
        input_size: where the model leaves its height and width open.
        pixels: the preprocessing the model was trained with; its normalisation becomes the first layer and the files
            take uint8 pixels, in all types ("int8_float_io" then is float at its output only). fp16 rounds the
            normalisation as all else, to 0.05 %.
        num_threads: for the calibration; all cores up to four by default. It does not change the result.
        progress: is told each stage and its seconds.

    Returns:
        A LiteModel, or for several quant types a dict of them in the order asked.

    Raises:
        CompressionError: an unknown quant type, no calibration, a model that gives probabilities, or an int8 result
            that computes in float somewhere.
        DataError: the calibration images are not what the model takes, or too few.
        UnsupportedLayerError: a layer has no TFLite operator, or the model is not one image in, one output out.
    """
    wanted = [quant_type] if isinstance(quant_type, str) else list(quant_type)
    check_quant_types(wanted, calibrated=calibration is not None)
    report = progress or (lambda line: None)
    frozen = _frozen(model, input_size, report)
    if pixels is not None:
        with _Stage("normalisation", report):
            frozen = take_pixels(frozen, pixels)
    images = None
    if calibration is not None and any(name in _CALIBRATED for name in wanted):
        with _Stage("calibration images", report):
            _, height, width, channels = frozen.input_shape
            dtype = np.float32 if pixels is None else np.uint8
            images = collect_images(calibration, (height, width, channels), calibration_steps, dtype=dtype)
    threads = num_threads or min(_MAX_THREADS, os.cpu_count() or 1)
    exporter = _Exporter(frozen, images, threads, report, pixels=pixels is not None)
    made = {name: exporter.make(name) for name in wanted}
    return made[quant_type] if isinstance(quant_type, str) else made


def _frozen(model: Any, input_size: int | tuple[int, int] | None, report: Progress) -> FrozenFunction:
    """Freeze a model that is not frozen yet, and refuse one that gives probabilities.

    Probabilities from inside a model lose their order: an int8 LOGISTIC has 256 codes, all 1/256 apart.
    """
    if not isinstance(model, FrozenFunction):
        with _Stage("freeze", report):
            model = freeze(model, input_size=input_size)
    if model.last_activation:
        raise CompressionError(
            f"expected logits, but the model ends in {model.last_activation}: give the model without its last "
            "activation; probabilities are computed from the logits on the device"
        )
    return model


class _Stage:
    """Times a stage and reports it when it has ended well."""

    def __init__(self, name: str, report: Progress) -> None:
        self._name, self._report = name, report

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._report(f"{self._name} {time.perf_counter() - self._start:.1f} s")


class _Exporter:
    """What the quant types of one conversion share: the lowered float graph, and the same graph with its ranges."""

    def __init__(
        self, frozen: FrozenFunction, images: np.ndarray | None, num_threads: int, report: Progress, *, pixels: bool
    ) -> None:
        self._frozen, self._images, self._threads, self._report = frozen, images, num_threads, report
        self._pixels = pixels

    def make(self, quant_type: str) -> LiteModel:
        """Convert to one quant type, name its ends and check it."""
        step = self._step(quant_type)
        with _Stage(quant_type, self._report):
            content = name_signature(step())
            found = audit(content)
        if quant_type in _CALIBRATED:
            require_integer(found, float_io=quant_type == _FLOAT_ENDS, pixels=self._pixels)
        return LiteModel(content, quant_type, found)

    def _step(self, quant_type: str) -> Callable[[], bytes]:
        """What is left to do for a quant type; what is shared is made, and reported, before."""
        if quant_type in _CALIBRATED:
            calibrated = self._calibrated
            return lambda: quantize(calibrated, float_io=quant_type == _FLOAT_ENDS, pixels=self._pixels)
        feed = feed_uint8 if self._pixels else bytes
        if quant_type == "none":
            graph = self._float_graph
            return lambda: feed(graph)
        return lambda: feed(lower(self._frozen, quant_type))

    @cached_property
    def _float_graph(self) -> bytes:
        with _Stage("float graph", self._report):
            return lower(self._frozen, "none")

    @cached_property
    def _calibrated(self) -> bytes:
        content, images = self._float_graph, self._images
        if images is None:
            raise AssertionError("an int8 type reached the exporter without images")
        with _Stage(f"calibration on {len(images)} images", self._report):
            floats = images.astype(np.float32, copy=False)
            ranges = measure_ranges(content, floats, num_threads=self._threads, progress=self._report)
            return write_ranges(content, pin_pixel_range(content, ranges) if self._pixels else ranges)


def quantize(content: bytes, *, float_io: bool = False, pixels: bool = False) -> bytes:
    """Quantise a float flatbuffer whose tensors carry their ranges to int8.

    Weights get a scale per output channel (zero point 0, so an exact zero stays code 0), activations one per tensor.

    Args:
        content: float flatbuffer with ranges (`ranges.write_ranges`).
        float_io: keep float32 at the ends.
        pixels: uint8 at the input, whose range is 0 to 255.
    """
    import tensorflow as tf

    # The step behind TFLiteConverter's int8 path. TensorFlow offers it to the public only together with its own
    # calibrator, whose faults are named in ranges.py.
    from tensorflow.lite.python.convert import mlir_quantize

    end = tf.float32 if float_io else tf.int8
    start = tf.uint8 if pixels else end
    return _run(lambda: mlir_quantize(content, input_data_type=start, output_data_type=end))


def lower(frozen: FrozenFunction, quant_type: str) -> bytes:
    """Frozen function -> flatbuffer of a type that needs no calibration.

    Raises:
        UnsupportedLayerError: a layer has no TFLite operator.
    """
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
    if quant_type != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quant_type == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if quant_type == "dynamic":
        # Per-channel FULLY_CONNECTED is version 12, which tflite-runtime 2.14 refuses.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    return _run(converter.convert)


def _run(step: Callable[[], bytes]) -> bytes:
    """Run a step of the converter; its pages of MLIR become one line."""
    from tensorflow.lite.python.convert import ConverterError

    try:
        return bytes(step())
    except (ConverterError, RuntimeError, ValueError) as error:
        missing = sorted(set(re.findall(r"\btf\.[A-Z]\w+", str(error))))
        reason = f"no TFLite operator for {', '.join(missing)}" if missing else str(error).strip().split("\n")[0]
        raise UnsupportedLayerError(
            f"the model cannot be converted: {reason}: replace those layers by ones that TFLite has"
        ) from error


def check_quant_types(quant_types: Sequence[str], *, calibrated: bool) -> None:
    """Check what is asked for before the slow part starts.

    Args:
        quant_types: wanted types.
        calibrated: there are calibration images.

    Raises:
        CompressionError: none, an unknown or a repeated type, or an int8 type without calibration images.
    """
    if not quant_types or len(set(quant_types)) != len(quant_types) or not set(quant_types) <= set(QUANT_TYPES):
        given = ", ".join(map(str, quant_types)) or "nothing"
        raise CompressionError(f"expected quant types among {', '.join(QUANT_TYPES)}, each once, got {given}")
    needy = [name for name in quant_types if name in _CALIBRATED]
    if needy and not calibrated:
        raise CompressionError(
            f"{' and '.join(needy)}: value ranges come from calibration images, got none: give about {DEFAULT_STEPS} "
            "training images (calibration=, --calibration_data or --dataset)"
        )

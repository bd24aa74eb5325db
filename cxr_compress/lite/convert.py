"""Keras model -> .tflite in any quant types: freeze once, lower once, calibrate once, then one quick step per type."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.lite.calibration import (
    MIN_IMAGES,
    CalibrationWarning,
    ExpectedInput,
    calibration_warnings,
    collect_images,
)
from cxr_compress.lite.exporter import Exporter, LiteModel, Stage
from cxr_compress.lite.freeze import FrozenFunction, freeze
from cxr_compress.lite.head import examine, headed
from cxr_compress.lite.inputs_outputs import take_pixels
from cxr_compress.lite.options import ConvertOptions, describe_options
from cxr_compress.lite.targets.edgetpu import check_edgetpu_batch, edgetpu_report, require_edgetpu
from cxr_compress.quant_types import TYPES

_MAX_THREADS = 4  # small graphs gain nothing from more

Progress = Callable[[str], None]


@overload
def convert(model: Any, quant_type: str = ..., **options: Any) -> LiteModel: ...


@overload
def convert(model: Any, quant_type: list[str] | tuple[str, ...], **options: Any) -> dict[str, LiteModel]: ...


def convert(
    model: Any,
    quant_type: str | list[str] | tuple[str, ...] = "int8",
    *,
    calibration: Iterable[np.ndarray] | None = None,
    pixels: PreprocessSpec | None = None,
    input_size: int | tuple[int, int] | None = None,
    expected_input: ExpectedInput | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LiteModel | dict[str, LiteModel]:
    """Convert a Keras model to .tflite; the model is not modified. The same model and images give the same bytes.

    The C++ converter writes a line or two to the process's stderr; a library does not redirect that, cxr_convert does.

    Args:
        model: tf_keras model that gives logits, or what `freeze` made of one.
        quant_type: one of QUANT_TYPES, or several, which share the freeze and the calibration;
            `quant_types.TYPES` says what each is for.
        calibration: batches float32 (n, height, width, channels), preprocessed as the input; for the integer types, and
            to compare the answers of every file with the model's. With `pixels`, what the device will feed: uint8 (n,
            height, width, 1), or 3 channels for rgb.
        pixels: the preprocessing the model was trained with; its normalization becomes the first layer and the files
            take uint8 pixels, in all types. fp16 rounds the normalization as all else, to 0.05 %.
        input_size: where the model leaves its height and width open.
        expected_input: what calibration images should look like; others are warned of (`CalibrationWarning`).
        progress: is told each stage and its seconds.
        options: the fields of `ConvertOptions`:
    OPTIONS

    Returns:
        A LiteModel, or for several quant types a dict of them in the order asked.

    Raises:
        CompressionError: an unknown quant type or option, no calibration, a model that gives probabilities, or an int8
            result that computes in float where it should not, an operator that the target runtime or the Edge TPU
            lacks, or a file that answers the same to everything.
        DataError: the calibration images are not what the model takes, or too few.
        UnsupportedLayerError: a layer has no TFLite operator, or the model is not one image in, one output out.
    """
    quant_types = [quant_type] if isinstance(quant_type, str) else list(quant_type)
    chosen = ConvertOptions(**options)
    chosen.check_types(quant_types, calibrated=calibration is not None, pixels=pixels is not None)
    report = progress or (lambda line: None)
    frozen = _frozen(headed(model, chosen.head), input_size, report)
    if chosen.edgetpu:
        check_edgetpu_batch(frozen.input_shape)
    if pixels is not None:
        with Stage("normalization", report):
            frozen = take_pixels(frozen, pixels)
    images = None
    if calibration is not None:
        with Stage("calibration images", report):
            _, height, width, channels = frozen.input_shape
            dtype = np.float32 if pixels is None else np.uint8
            # Types without ranges only compare their answers on them.
            least = MIN_IMAGES if any(TYPES[name].calibrated for name in quant_types) else 1
            shape, steps = (height, width, channels), chosen.calibration_steps
            images = collect_images(calibration, shape, steps, dtype=dtype, least=least)
        for line in calibration_warnings(images, expected_input) if expected_input else ():
            warnings.warn(line, CalibrationWarning, stacklevel=2)
    threads = chosen.num_threads or min(_MAX_THREADS, os.cpu_count() or 1)
    exporter = Exporter(frozen, images, threads, report, chosen, pixels is not None)
    files = {name: exporter.make(name) for name in quant_types}
    for file in files.values() if chosen.edgetpu else ():
        require_edgetpu(edgetpu_report(file.content))
    return files[quant_type] if isinstance(quant_type, str) else files


if convert.__doc__:  # not with python -OO
    convert.__doc__ = convert.__doc__.replace("OPTIONS", describe_options())


def _frozen(model: Any, input_size: int | tuple[int, int] | None, report: Progress) -> FrozenFunction:
    """Freeze a model that is not frozen yet, and refuse one that gives probabilities.

    Probabilities from inside a model lose their order: an int8 LOGISTIC has 256 codes, all 1/256 apart.
    """
    if not isinstance(model, FrozenFunction):
        with Stage("freeze", report):
            model = freeze(model, input_size=input_size)
    if model.gives:
        return model
    if model.last_activation:
        raise CompressionError(
            f"expected logits, but the model ends in {model.last_activation}: give the model without its last "
            "activation; probabilities are computed from the logits on the device"
        )
    if examine(model) in ("probabilities", "shares"):
        raise CompressionError(
            "expected logits, but the outputs of the model stay in [0, 1] for 64 random and extreme inputs, as "
            "probabilities do: give the model without what makes them, or freeze it and let read_frozen_head say so"
        )
    return model

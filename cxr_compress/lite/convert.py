"""Keras model -> .tflite in six quant types: freeze once, lower once, calibrate once, then one quick step per type."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.lite.calibration import (
    DEFAULT_STEPS,
    MIN_IMAGES,
    CalibrationWarning,
    ExpectedInput,
    calibration_warnings,
    collect_images,
)
from cxr_compress.lite.exporter import Exporter, LiteModel, Stage
from cxr_compress.lite.freeze import FrozenFunction, freeze
from cxr_compress.lite.graph.op_versions import check_target
from cxr_compress.lite.head import LOGITS, examine, headed
from cxr_compress.lite.inputs_outputs import check_ends, take_pixels
from cxr_compress.lite.int8.ptq import PtqOptions
from cxr_compress.lite.int8.ranges import DEFAULT_PERCENTILE
from cxr_compress.lite.lowering import lower, quantize
from cxr_compress.lite.targets.edgetpu import check_edgetpu_batch, check_edgetpu_types, edgetpu_report, require_edgetpu
from cxr_compress.quant_types import CALIBRATED, QUANT_TYPES

__all__ = ["QUANT_TYPES", "LiteModel", "check_quant_types", "convert", "lower", "quantize"]

_MAX_THREADS = 4  # small graphs gain nothing from more

Progress = Callable[[str], None]


@overload
def convert(
    model: Any,
    quant_type: str = "int8",
    *,
    calibration: Iterable[np.ndarray] | None = None,
    calibration_steps: int = DEFAULT_STEPS,
    calibration_method: str = "mse",
    percentile: float = DEFAULT_PERCENTILE,
    float_layers: Sequence[str] = (),
    auto_fallback: int = 0,
    layer_report: bool = False,
    denylisted_ops: Sequence[str] = (),
    inference_input_type: str | None = None,
    inference_output_type: str | None = None,
    target_runtime: str | None = None,
    compare: bool = True,
    force: bool = False,
    head: str = LOGITS,
    fold_scales: bool = True,
    edgetpu: bool = False,
    expected_input: ExpectedInput | None = None,
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
    calibration_method: str = "mse",
    percentile: float = DEFAULT_PERCENTILE,
    float_layers: Sequence[str] = (),
    auto_fallback: int = 0,
    layer_report: bool = False,
    denylisted_ops: Sequence[str] = (),
    inference_input_type: str | None = None,
    inference_output_type: str | None = None,
    target_runtime: str | None = None,
    compare: bool = True,
    force: bool = False,
    head: str = LOGITS,
    fold_scales: bool = True,
    edgetpu: bool = False,
    expected_input: ExpectedInput | None = None,
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
    calibration_method: str = "mse",
    percentile: float = DEFAULT_PERCENTILE,
    float_layers: Sequence[str] = (),
    auto_fallback: int = 0,
    layer_report: bool = False,
    denylisted_ops: Sequence[str] = (),
    inference_input_type: str | None = None,
    inference_output_type: str | None = None,
    target_runtime: str | None = None,
    compare: bool = True,
    force: bool = False,
    head: str = LOGITS,
    fold_scales: bool = True,
    edgetpu: bool = False,
    expected_input: ExpectedInput | None = None,
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
            microcontrollers need. int8_float_io: the same inside, float32 at the ends. int16x8: int16 activations, int8
            weights; as small as int8 and nearly as exact as float, but on reference kernels, about 30 times slower.
        calibration: batches float32 (n, height, width, channels), preprocessed as the input; for the integer types, and
            to compare the answers of every file with the model's. With `pixels`, what the device will feed: uint8 (n,
            height, width, 1), or 3 channels for rgb.
        calibration_steps: images taken from `calibration` at most.
        calibration_method: how the ranges of the int8 types follow from the images. "minmax": all that occurred.
            "percentile": all but the outermost; one wild value then no longer coarsens all others. "mse": what errs
            least, squared; takes four times as long to calibrate. On DenseNets pruned for X-rays mse is 6 to 21 %
            nearer to the float model than minmax, which is what TensorFlow's own converter does; on original ones
            either may be.
            Input and output keep what occurred in any case, and so does all of "int16x8".
        percentile: of the values that stay inside a range at either end, for "percentile".
        float_layers: layers that compute in float, by the name of the Keras layer or of a tensor; "int8_float_io" only.
            Coral and microcontrollers cannot run those.
        auto_fallback: so many more layers are left in float, those that gain most by it (`fallback`); likewise.
        layer_report: compare every layer with the float graph's on 16 of the images (`layer_snr`).
        denylisted_ops: kinds of operators that compute in float wherever they occur, as "MEAN"; like `float_layers`,
            which names single layers; both may be given. "int8_float_io" only.
        inference_input_type: what the input stores, where it is not to be the type's own: int8 or uint8 for "int8",
            int16 for "int16x8", float32 for both; other types have float32 ends. uint8 are codes with a scale here; for
            pixels give `pixels`.
        inference_output_type: likewise for the output.
        target_runtime: "litert" or "tflite-runtime-2.14": fail where that runtime has not all operators in the versions
            of the file (`op_versions`). By default the file is only run by the runtime that is installed here.
        compare: run every file beside the model (`LiteModel.parity`), and refuse one that answers the same to
            everything. False is for files that are only measured, as those of networks that were never trained.
        force: keep a file whose answers are unlike the model's: 0 decibels or less, or a rank correlation of 0 or less.
        head: what the files give: "logits", or "logits+cam" with the class activation map as a second output, float or
            int8 as the logits (`models.cam.with_cam`); needs a Keras model, or a frozen one that has the map.
        fold_scales: move the scale of each batch norm that stands in front of a convolution into it, for the integer
            types, where rounding allows it (`fold_choice`): in a DenseNet121 62 of 310 operators go, an int8 file is 11
            to 20 % faster and up to 8 % smaller; on average it is as exact, on single models 16 % more or 26 % less.
        edgetpu: fail where Coral's Edge TPU would not run the whole file (`edgetpu.edgetpu_report`); "int8" alone.
        expected_input: what calibration images should look like; others are warned of (`CalibrationWarning`).
        input_size: where the model leaves its height and width open.
        pixels: the preprocessing the model was trained with; its normalization becomes the first layer and the files
            take uint8 pixels, in all types ("int8_float_io" then is float at its output only). fp16 rounds the
            normalization as all else, to 0.05 %.
        num_threads: for the calibration; all cores up to four by default. It does not change the result.
        progress: is told each stage and its seconds.

    Returns:
        A LiteModel, or for several quant types a dict of them in the order asked.

    Raises:
        CompressionError: an unknown quant type or option, no calibration, a model that gives probabilities, or an int8
            result that computes in float where it should not, an operator that the target runtime or the Edge TPU
            lacks, or a file that answers the same to everything.
        DataError: the calibration images are not what the model takes, or too few.
        UnsupportedLayerError: a layer has no TFLite operator, or the model is not one image in, one output out.
    """
    wanted = [quant_type] if isinstance(quant_type, str) else list(quant_type)
    check_quant_types(wanted, calibrated=calibration is not None)
    check_ends(wanted, pixels=pixels is not None, input_type=inference_input_type, output_type=inference_output_type)
    check_target(target_runtime)
    if edgetpu:
        check_edgetpu_types(wanted)
    options = PtqOptions(
        calibration_method,
        percentile,
        tuple(float_layers),
        auto_fallback,
        layer_report,
        tuple(denylisted_ops),
        fold_scales,
    )
    options.check(wanted)
    report = progress or (lambda line: None)
    frozen = _frozen(headed(model, head), input_size, report)
    if edgetpu:
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
            least = MIN_IMAGES if any(name in CALIBRATED for name in wanted) else 1
            images = collect_images(calibration, (height, width, channels), calibration_steps, dtype=dtype, least=least)
        for line in calibration_warnings(images, expected_input) if expected_input else ():
            warnings.warn(line, CalibrationWarning, stacklevel=2)
    threads = num_threads or min(_MAX_THREADS, os.cpu_count() or 1)
    exporter = Exporter(
        frozen,
        images,
        threads,
        report,
        options,
        pixels is not None,
        inference_input_type,
        inference_output_type,
        target_runtime,
        compare,
        force,
    )
    made = {name: exporter.make(name) for name in wanted}
    for one in made.values() if edgetpu else ():
        require_edgetpu(edgetpu_report(one.content))
    return made[quant_type] if isinstance(quant_type, str) else made


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
    needy = [name for name in quant_types if name in CALIBRATED]
    if needy and not calibrated:
        raise CompressionError(
            f"{' and '.join(needy)}: value ranges come from calibration images, got none: give about {DEFAULT_STEPS} "
            "training images (calibration=, --calibration_data or --dataset)"
        )

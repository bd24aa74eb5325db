"""Flags of the int8 types: how they are calibrated, what is repaired, and what is left in float."""

from __future__ import annotations

from typing import Any

from absl import flags

from cxr_compress.cli.common import UsageError
from cxr_compress.lite import CALIBRATION_METHODS
from cxr_compress.lite.int8.aeq import CONVERTER, QUANTIZERS, check_quantizer
from cxr_compress.lite.int8.clipping import DEFAULT_PERCENTILE
from cxr_compress.lite.int8.ptq import PtqOptions
from cxr_compress.lite.quant_types import CALIBRATED

_OF_CONVERT = (
    "calibration_method", "percentile", "bias_correction", "float_layers", "auto_fallback", "layer_report",
    "quantizer", "fold_scales",
)  # fmt: skip
_NEED_INT8 = ("bias_correction", "float_layers", "auto_fallback")
_NEED_INTEGER = ("layer_report", "equalize")


def define_int8_flags(values: flags.FlagValues) -> None:
    """Define them."""
    text = "How the ranges of the int8 types follow from the calibration images; mse errs least, minmax is quickest."
    flags.DEFINE_enum("calibration_method", "mse", CALIBRATION_METHODS, text, flag_values=values)
    text = "Of the values that a range keeps at either end, for --calibration_method=percentile."
    flags.DEFINE_float("percentile", DEFAULT_PERCENTILE, text, flag_values=values)
    text = "Take back, in the biases, the shift that int8 brings into each channel's mean."
    flags.DEFINE_boolean("bias_correction", False, text, flag_values=values)
    text = "Even out the channels of consecutive layers first, where that changes no output; needs a Keras file."
    flags.DEFINE_boolean("equalize", False, text, flag_values=values)
    text = "Layers to leave in float, by name; int8_float_io only."
    flags.DEFINE_list("float_layers", [], text, flag_values=values)
    text = "How many layers more to leave in float, those that gain most by it; int8_float_io only."
    flags.DEFINE_integer("auto_fallback", 0, text, lower_bound=0, flag_values=values)
    text = "Print how far each layer of the integer files is from the float one, in decibels."
    flags.DEFINE_boolean("layer_report", False, text, flag_values=values)
    text = "Fold the scales of batch norms in front of convolutions into those: fewer operators, the same function."
    flags.DEFINE_boolean("fold_scales", True, text, flag_values=values)
    text = "What rounds the float graph: TensorFlow's converter, or ai-edge-quantizer (aeq), an extra to install."
    flags.DEFINE_enum("quantizer", CONVERTER, QUANTIZERS, text, flag_values=values)


def check_int8_flags(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        UsageError: a flag of the int8 types without such a type, or --equalize of a SavedModel.
        CompressionError: as `PtqOptions.check`.
        RuntimeUnavailableError: a quantiser that is not installed.
    """
    PtqOptions(**int8_options(values)).check(values.quant_type)
    given = next((name for name in _NEED_INT8 if values[name].value), None)
    given = given or ("quantizer" if values.quantizer != CONVERTER else None)
    if given and not any(name.startswith("int8") for name in values.quant_type):
        raise UsageError(f"--{given} is for int8 and int8_float_io, got --quant_type={','.join(values.quant_type)}")
    given = next((name for name in _NEED_INTEGER if values[name].value), None)
    if given and not set(CALIBRATED) & set(values.quant_type):
        raise UsageError(f"--{given} is for {', '.join(CALIBRATED)}, got --quant_type={','.join(values.quant_type)}")
    check_quantizer(values.quantizer, own_ends=values.input == "uint8")
    if values.equalize and values.keras_model_file is None:
        raise UsageError("--equalize rescales the layers of a Keras file: give --keras_model_file")


def int8_options(values: flags.FlagValues) -> dict[str, Any]:
    """The flags as `convert` and `PtqOptions` take them."""
    options = {name: values[name].value for name in _OF_CONVERT}
    return options | {"float_layers": tuple(options["float_layers"])}


def changed_options(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that are not at their defaults, JSON-ready, for the recipe that a file carries."""
    named = (*_OF_CONVERT, "equalize", "head")
    return {name: values[name].value for name in named if values[name].value != values[name].default}

"""Flags of what the file is to be: its two ends, the runtime that has to load it, operators left in float."""

from __future__ import annotations

from typing import Any

from absl import flags

from cxr_compress.cli.app import UsageError
from cxr_compress.cli.recipe_flags import define_recipe_flags
from cxr_compress.lite import CALIBRATION_METHODS, TARGETS
from cxr_compress.lite.inputs_outputs import END_TYPES, check_ends
from cxr_compress.lite.int8.ptq import PtqOptions
from cxr_compress.lite.int8.ranges import DEFAULT_PERCENTILE
from cxr_compress.quant_types import CALIBRATED

_NAMES = ("inference_input_type", "inference_output_type", "target_runtime", "denylisted_ops")
# As tflite_convert spells it.
_ALSO = {"float": "float32"}


def define_export_flags(values: flags.FlagValues) -> None:
    """Define them; the first two are tflite_convert's, spelled in upper or lower case."""
    types = [*END_TYPES, *_ALSO]
    text = "What the input stores: int8, uint8 or float32 for int8, int16 or float32 for int16x8; else float32."
    flags.DEFINE_enum("inference_input_type", None, types, text, case_sensitive=False, flag_values=values)
    text = "What the output stores; likewise."
    flags.DEFINE_enum("inference_output_type", None, types, text, case_sensitive=False, flag_values=values)
    text = "The runtime that has to run the file: fail where it has not all operators in the file's versions."
    flags.DEFINE_enum("target_runtime", None, TARGETS, text, flag_values=values)
    text = "Kinds of operators to leave in float, as MEAN; int8_float_io only. --float_layers names single layers."
    flags.DEFINE_list("denylisted_ops", [], text, flag_values=values)


def check_export_flags(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        CompressionError: a quant type without such an end, or without operators in float.
    """
    options = export_options(values)
    start, end = options["inference_input_type"], options["inference_output_type"]
    check_ends(values.quant_type, pixels=values.input == "uint8", input_type=start, output_type=end)
    PtqOptions(denylisted_ops=options["denylisted_ops"]).check(values.quant_type)


def export_options(values: flags.FlagValues) -> dict[str, Any]:
    """The flags as `convert` takes them."""
    options = {name: values[name].value for name in _NAMES}
    ends = {name: _ALSO.get(options[name], options[name]) for name in _NAMES[:2]}
    kinds = tuple(kind.upper() for kind in options["denylisted_ops"])
    return options | ends | {"denylisted_ops": kinds}


def changed_export_options(values: flags.FlagValues) -> dict[str, Any]:
    """Those that were given, JSON-ready, for the recipe that a file carries."""
    given = {name: value for name, value in export_options(values).items() if value}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


_OF_CONVERT = (
    "calibration_method", "percentile", "float_layers", "auto_fallback", "layer_report",
    "fold_scales",
)  # fmt: skip
_NEED_INT8 = ("float_layers", "auto_fallback")
_NEED_INTEGER = ("layer_report",)


def define_int8_flags(values: flags.FlagValues) -> None:
    """Define them."""
    text = "How the ranges of the int8 types follow from the calibration images; mse errs least, minmax is quickest."
    flags.DEFINE_enum("calibration_method", "mse", CALIBRATION_METHODS, text, flag_values=values)
    text = "Of the values that a range keeps at either end, for --calibration_method=percentile."
    flags.DEFINE_float("percentile", DEFAULT_PERCENTILE, text, flag_values=values)
    text = "Layers to leave in float, by name; int8_float_io only."
    flags.DEFINE_list("float_layers", [], text, flag_values=values)
    text = "How many layers more to leave in float, those that gain most by it; int8_float_io only."
    flags.DEFINE_integer("auto_fallback", 0, text, lower_bound=0, flag_values=values)
    text = "Print how far each layer of the integer files is from the float one, in decibels."
    flags.DEFINE_boolean("layer_report", False, text, flag_values=values)
    text = "Fold the scales of batch norms in front of convolutions into those: fewer operators, the same function."
    flags.DEFINE_boolean("fold_scales", True, text, flag_values=values)


def check_int8_flags(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        UsageError: a flag of the int8 types without such a type.
        CompressionError: as `PtqOptions.check`.
    """
    PtqOptions(**int8_options(values)).check(values.quant_type)
    given = next((name for name in _NEED_INT8 if values[name].value), None)
    if given and not any(name.startswith("int8") for name in values.quant_type):
        raise UsageError(f"--{given} is for int8 and int8_float_io, got --quant_type={','.join(values.quant_type)}")
    given = next((name for name in _NEED_INTEGER if values[name].value), None)
    if given and not set(CALIBRATED) & set(values.quant_type):
        raise UsageError(f"--{given} is for {', '.join(CALIBRATED)}, got --quant_type={','.join(values.quant_type)}")


def int8_options(values: flags.FlagValues) -> dict[str, Any]:
    """The flags as `convert` and `PtqOptions` take them."""
    options = {name: values[name].value for name in _OF_CONVERT}
    return options | {"float_layers": tuple(options["float_layers"])}


def changed_options(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that are not at their defaults, JSON-ready, for the recipe that a file carries."""
    named = (*_OF_CONVERT, "head")
    return {name: values[name].value for name in named if values[name].value != values[name].default}


_NEEDED = ["int8"]


def define_edgetpu_flag(values: flags.FlagValues) -> None:
    """Define it."""
    text = (
        "Fail where Coral's Edge TPU would not run the whole file, with the operator and its layer; --quant_type=int8 "
        "alone. cxr_inspect --target=edgetpu shows all operators."
    )
    flags.DEFINE_boolean("edgetpu", False, text, flag_values=values)


def check_edgetpu_flag(values: flags.FlagValues) -> None:
    """Find what contradicts it before the slow part starts.

    Raises:
        UsageError: another quant type, or ends that are not 8-bit.
    """
    if not values.edgetpu:
        return
    if list(values.quant_type) != _NEEDED:
        raise UsageError(f"--edgetpu needs --quant_type=int8, got {','.join(values.quant_type) or 'nothing'}")
    for name in ("inference_input_type", "inference_output_type"):
        if str(values[name].value or "").lower() in ("float", "float32"):
            raise UsageError(f"--edgetpu needs 8-bit ends, got --{name}={values[name].value}")


_MEANING = ("labels", "positive", "preset", "color", "match", "force")


def define_meaning_flags(values: flags.FlagValues, *, force: bool = True) -> None:
    """Define what a model from elsewhere means; --force only where a command checks something that it can overrule."""
    define_recipe_flags(values, _MEANING if force else _MEANING[:-1], with_defaults=True)

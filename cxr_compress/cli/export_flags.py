"""Flags of what the file is to be: its two ends, the runtime that has to load it, operators left in float."""

from __future__ import annotations

from typing import Any

from absl import flags

from cxr_compress.lite import TARGETS
from cxr_compress.lite.ends import END_TYPES, check_ends
from cxr_compress.lite.int8.ptq import PtqOptions

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

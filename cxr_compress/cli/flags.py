"""Flags that commands share: the options of `convert`, and what a model from elsewhere means."""

from __future__ import annotations

from typing import Any

from absl import flags

from cxr_compress.cli.recipe_flags import define_field, define_recipe_flags
from cxr_compress.lite import ConvertOptions
from cxr_compress.lite.inputs_outputs import STORED_TYPES
from cxr_compress.recipe.fields import Entry, entries_of

_GROUP = "convert: How a model becomes a .tflite file"
_STORED = ("inference_input_type", "inference_output_type")
_ALSO = {"float": "float32"}  # as tflite_convert spells it
_NO_FLAG = ("compare", "num_threads", "force")  # --force is a flag of the model's meaning, too
# Decide nothing that a file should say of itself.
_NOT_KEPT = ("calibration_steps", "edgetpu", "force")


def define_convert_flags(values: flags.FlagValues) -> None:
    """Define the flags of `ConvertOptions`; types may be spelled in upper case, as tflite_convert has them."""
    for entry in _entries():
        if entry.key in _STORED:
            types = [*STORED_TYPES, *_ALSO]
            shared = {"case_sensitive": False, "flag_values": values, "module_name": _GROUP}
            flags.DEFINE_enum(entry.key, None, types, entry.option.help, **shared)
        elif entry.key not in _NO_FLAG:
            define_field(values, entry, entry.default, group=_GROUP)


def convert_options(values: flags.FlagValues) -> ConvertOptions:
    """The options that were given.

    Raises:
        CompressionError: a value that an option cannot hold.
    """
    given = {entry.key: values[entry.key].value for entry in _entries() if entry.key in values}
    given |= {name: _ALSO.get(given[name], given[name]) for name in _STORED}
    return ConvertOptions(**given | {"denylisted_ops": [kind.upper() for kind in given["denylisted_ops"]]})


def changed_options(options: ConvertOptions) -> dict[str, Any]:
    """Those that are not at their defaults, JSON-ready, for the recipe that a file carries."""
    usual, chosen = ConvertOptions().to_dict(), options.to_dict()
    return {key: value for key, value in chosen.items() if value != usual[key] and key not in _NOT_KEPT}


def _entries() -> tuple[Entry, ...]:
    return entries_of(ConvertOptions)


_MEANING = ("labels", "positive", "preset", "color", "match", "force")


def define_meaning_flags(values: flags.FlagValues, *, force: bool = True) -> None:
    """Define what a model from elsewhere means; --force only where a command checks something that it can overrule."""
    define_recipe_flags(values, _MEANING if force else _MEANING[:-1], with_defaults=True)

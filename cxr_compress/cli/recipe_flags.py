"""The flags of a recipe: one for each field of its sections, and the values that were given on a command line.

Names, types, choices, defaults and help are those of the fields (`cxr_compress.recipe.fields`), a plug-in's too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import UsageError
from cxr_compress.errors import CompressionError
from cxr_compress.lite import ConvertOptions
from cxr_compress.lite.inputs_outputs import STORED_TYPES
from cxr_compress.models import architectures  # noqa: F401 - what --model may be
from cxr_compress.recipe import Recipe, is_labeled, make_recipe, without_labels
from cxr_compress.recipe.fields import SECTIONS, Entry, all_entries, entries_of, find_entry
from cxr_compress.structured import criteria  # noqa: F401 - what --criterion may be

# What a command wants to hear where no recipe file says it.
_ASKED = ("model", "dataset")
_BUDGET = ("target_macs", "target_params", "target_bytes", "target_latency_ms")


def define_recipe_flags(
    values: flags.FlagValues, names: Collection[str] | None = None, *, with_defaults: bool = False
) -> None:
    """Define the flags of the recipe's fields, grouped in the help by section.

    Args:
        values: where.
        names: flags of the fields that the command takes; None for all.
        with_defaults: whether a flag that is not given holds the field's default; otherwise it holds None, and the help
            says what the default is.

    Raises:
        CompressionError: a section of a plug-in has a flag that the command has already.
    """
    for entry in all_entries():
        if names is None or entry.flag in names:
            try:
                define_field(values, entry, entry.default if with_defaults else None)
            except flags.DuplicateFlagError:
                raise CompressionError(
                    f"{entry} of the recipe has the name of another flag of this command: give it another flag"
                ) from None


def given_values(values: flags.FlagValues, names: Collection[str] | None = None) -> dict[str, Any]:
    """The fields that were given on the command line, by flag; a recipe checks them.

    Args:
        values: parsed flags.
        names: flags to look at; None for all of the recipe.

    Raises:
        UsageError: a text that cannot be what the field holds.
    """
    entries = (entry for entry in all_entries() if entry.flag in values and (names is None or entry.flag in names))
    return {entry.flag: _parsed(entry, values[entry.flag].value) for entry in entries if values[entry.flag].present}


def make_recipe_of(values: flags.FlagValues) -> Recipe:
    """The recipe of the flags that were given: a recipe file or the model's preset, with those flags changed.

    Raises:
        CompressionError: flags that contradict one another or values out of range.
    """
    changes = given_values(values)
    if "weight_threshold" in changes:
        changes.setdefault("weight_sparsity", 0.0)
    if values.recipe:
        recipe = _read_recipe(values.recipe)
        settled = not is_labeled(recipe) and not {"dataset", "recovery_epochs"} & set(changes)
        return without_labels(recipe.with_values(**changes), changes, settled=settled)
    _check_start(values)
    if set(_BUDGET) & set(changes):
        changes.setdefault("target_macs", None)
    return make_recipe(values.model or Path(values.keras_model_file).stem, changes)


def common_flags() -> dict[str, list[str]]:
    """Section -> the flags of it that most people need."""
    common: dict[str, list[str]] = {}
    for entry in all_entries():
        if entry.option.common:
            common.setdefault(_section(entry), []).append(entry.flag)
    return common


def heading(section: str) -> str:
    """What stands above the flags of a section in the help."""
    first_line = (SECTIONS[section].__doc__ or section).strip().splitlines()[0]
    return f"{section}: {first_line.rstrip('.')}"


def default_text(entry: Entry) -> str:
    """The default of a field as one would type it; empty for nothing."""
    if isinstance(entry.default, tuple):
        return ",".join(map(str, entry.default))
    if isinstance(entry.default, Mapping):
        return ",".join(f"{name}={value}" for name, value in entry.default.items())
    if isinstance(entry.default, bool):
        return str(entry.default).lower()
    return "" if entry.default is None else str(entry.default)


def _section(entry: Entry) -> str:
    return entry.path.partition(".")[0]


def define_field(values: flags.FlagValues, entry: Entry, default: Any, *, group: str = "") -> None:
    """Define the flag of one field.

    Args:
        values: where.
        entry: the field.
        default: what the flag holds where it is not given.
        group: its heading in the help; that of the recipe's section unless given.
    """
    names, kind, text = entry.option.names, entry.type, entry.option.full_help
    shared: dict[str, Any] = {"flag_values": values, "module_name": group or heading(_section(entry))}
    if default is None and entry.flag not in _ASKED and (usual := default_text(entry)):
        text = f"{text} (default: {usual})"
    if names and not entry.option.open_choices:
        flags.DEFINE_enum(entry.flag, default or None, names, text, **shared)
    elif kind in _PLAIN:
        _PLAIN[kind](entry.flag, default, text, **shared)
    else:  # several in one text; a list on the command line is parsed once all are known
        flags.DEFINE_list(entry.flag, None if default is None else list(default), text, **shared)


_PLAIN: dict[Any, Callable[..., Any]] = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    int | float: flags.DEFINE_string,
    str: flags.DEFINE_string,
}


def _parsed(entry: Entry, value: Any) -> Any:
    """The value of a flag as the field takes it."""
    parse = _PARSERS.get(entry.type)
    return value if parse is None else parse(entry, value)


def _amount(entry: Entry, text: str) -> int | float | None:
    """Read 0.5 as a fraction, 1000000 as a number, 1MB as a number of bytes and none as no bound."""
    if text.lower() == "none":
        return None
    try:
        for ending, factor in entry.option.units.items():
            if text.upper().endswith(ending):
                return round(float(text[: -len(ending)]) * factor)
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise UsageError(f"expected --{entry.flag} as a fraction such as 0.5 or a whole number, got {text!r}") from None


def _pair(entry: Entry, sides: Sequence[str]) -> list[int]:
    if not all(side.isdigit() for side in sides):
        usual = default_text(entry)
        raise UsageError(f"expected --{entry.flag} as whole numbers, for example {usual}; got {','.join(sides)!r}")
    return [int(side) for side in sides]


def _numbers_by_name(entry: Entry, texts: Sequence[str]) -> dict[str, float]:
    """Read conv.*=0.5,...; a name may hold further equals signs."""
    found = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not name or not equals:
            raise UsageError(f"expected --{entry.flag} as NAME=NUMBER,..., for example stem.*=0.2; got {text!r}")
    return found


def _texts_by_name(entry: Entry, texts: Sequence[str]) -> dict[str, str]:
    """Read name=value,...; a value may hold further equals signs."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        if not name or not equals:
            raise UsageError(f"expected --{entry.flag} as name=value, got {text!r}")
    return {name: value for name, _, value in pairs}


_PARSERS: dict[Any, Callable[[Entry, Any], Any]] = {
    int | float: _amount,
    tuple[int, int]: _pair,
    Mapping[str, float]: _numbers_by_name,
    Mapping[str, str]: _texts_by_name,
}


def _read_recipe(name: str) -> Recipe:
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"expected --recipe to be a file, got {name!r}")
    # What is no text is no JSON either, which is then said.
    return Recipe.from_json(path.read_text(encoding="utf-8", errors="replace"))


def _check_start(values: flags.FlagValues) -> None:
    """What a recipe without a file cannot do without."""
    if values.model is None and values.keras_model_file is None:
        raise UsageError("expected --model=NAME to train one or --keras_model_file=FILE to start from; got neither")
    known = find_entry("model").option.names
    if values.model is not None and values.keras_model_file is None and values.model not in known:
        raise UsageError(
            f"expected a --model of {', '.join(known)}, got {values.model!r}; any other Keras model comes in "
            "as --keras_model_file"
        )
    if values.dataset is None:
        raise UsageError(f"expected --dataset, one of {', '.join(find_entry('dataset').option.names)}; got none")


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

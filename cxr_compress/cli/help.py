"""The help of a command: one screen with the flags that most people need, or its docstring and all flags by section."""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

# name -> (kind, default, help): "bool", "string", or the values of an enum joined by |.
SHARED_FLAGS: dict[str, tuple[str, str | bool, str]] = {
    "format": ("table|json|csv", "table", "How results are printed."),
    "debug": ("bool", False, "Show the traceback of an error."),
    "flagfile": ("string", "", "Read flags from this file, one a line; lines that start with # are comments."),
    "undefok": ("string", "", "Comma-separated names of flags that may be unknown, for shared flag files."),
}


class HelpKind(enum.Enum):
    """Which help was asked for."""

    NONE = enum.auto()
    USUAL = enum.auto()  # the common flags where the command names some; else the full help
    SHORT = enum.auto()  # the same; else the command's own flags
    FULL = enum.auto()  # all flags, the shared ones too


# Heading -> the flags of a command that most people need.
Common = Mapping[str, Sequence[str]]
_INTENDED_USE = "Research use only; not a medical device and not a diagnosis."


# Command -> what of it needs TensorFlow, which the base install leaves out.
_NEEDS = {
    **dict.fromkeys(("cxr_compress", "cxr_convert", "cxr_train", "cxr_import_weights"), ""),
    **dict.fromkeys(("cxr_evaluate", "cxr_inspect"), " for Keras models"),
}
_HELP_FLAGS = {
    "help": HelpKind.USUAL,
    "helpfull": HelpKind.FULL,
    "h": HelpKind.USUAL,
    "?": HelpKind.USUAL,
    "helpshort": HelpKind.SHORT,
}


def asked_help(arguments: Sequence[str]) -> HelpKind:
    """Tell whether the arguments ask for help, even where other flags are wrong or missing."""
    for argument in arguments:
        if argument == "--":
            break
        kind = _HELP_FLAGS.get(argument.lstrip("-")) if argument.startswith("-") else None
        if kind is not None:
            return kind
    return HelpKind.NONE


def help_text(name: str, doc: str, values: flags.FlagValues, kind: HelpKind, common: Common | None = None) -> str:
    """Give the help as text that ends with a line break.

    Args:
        name: of the command.
        doc: its docstring: what it does in a line, examples, and more.
        values: its flags, which need not be parsed.
        kind: which help.
        common: the flags that most people need, by heading; None where the command has few.
    """
    if common is not None and kind is not HelpKind.FULL:
        return _page(name, doc, values, common)
    lines = [f"{name}: {doc.strip()}", "", *_needs(name), *_sections(values)]
    if kind is not HelpKind.SHORT:
        lines += ["", "flags of every command:", *_flag_lines(values, list(SHARED_FLAGS))]
        lines += ["  --[help|helpshort|helpfull]: Show this help, or the first part of it."]
        lines += ["  --version: Show the version and stop."]
    else:
        lines += ["", f"{name} --helpfull shows {', '.join('--' + shared for shared in SHARED_FLAGS)} too."]
    return "\n".join(lines) + "\n"


def _page(name: str, doc: str, values: flags.FlagValues, common: Common) -> str:
    """One screen: what the command does, its examples, and some of its flags."""
    what, examples, *_ = doc.strip().split("\n\n")
    lines = [f"{name}: {what}", "", examples, ""]
    for heading, names in common.items():
        lines += [f"{heading}:", *_flag_lines(values, names)]
    return "\n".join([*lines, "", f"All flags, by section: {name} --helpfull", _INTENDED_USE]) + "\n"


def _sections(values: flags.FlagValues) -> list[str]:
    """All flags but the shared ones: first those of the command, then each section of the recipe under its heading."""
    # absl's module of a flag; recipe_flags puts the heading of its section there.
    modules = {module: [flag.name for flag in found] for module, found in values.flags_by_module_dict().items()}
    sections = {module: names for module, names in modules.items() if ": " in module}
    headed = {name for names in sections.values() for name in names}
    own = [name for name in values if name not in SHARED_FLAGS and name not in headed]
    lines = ["flags:", *_flag_lines(values, own)]
    for heading, names in sections.items():
        lines += ["", f"{heading}:", *_flag_lines(values, names)]
    return lines


def _needs(name: str) -> list[str]:
    """What to install beside the base for a command, as a line and an empty one; nothing where the base is enough."""
    need = _NEEDS.get(name)
    if need is None:
        return []
    here = "" if _installed("tensorflow") else "; it is not installed here"
    return [f"Needs TensorFlow{need}: pip install 'cxr-compress[train]'{here}.", ""]


def _flag_lines(values: flags.FlagValues, names: Sequence[str]) -> list[str]:
    """One or two wrapped lines a flag, in the order they were defined."""
    lines = []
    for name in names:
        flag = values[name]
        spelling = f"--[no]{name}" if flag.boolean else f"--{name}"
        choices, text = "|".join(getattr(flag.parser, "enum_values", ())), str(flag.help)
        if choices:  # which absl puts in front of the sentence
            spelling, text = f"{spelling}={choices}", text.removeprefix(f"<{choices}>: ")
        default = "" if flag.default in (None, "", []) else f" (default: {_default(flag)})"
        lines.append(
            flags.text_wrap(f"{spelling}: {text}{default}", length=100, indent="      ", firstline_indent="  ")
        )
    return lines


def _default(flag: flags.Flag[Any]) -> str:
    """The default of a flag without the quotes that absl puts around it."""
    return str(flag.default_as_str).strip("'")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # what blocks an import, or half of a package
        return False

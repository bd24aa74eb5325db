"""The help of a command: its docstring, then its flags with kind and default."""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Sequence
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
    SHORT = enum.auto()  # the command's own flags
    FULL = enum.auto()  # and the shared ones


# Command -> what of it needs TensorFlow, which the base install leaves out.
_NEEDS = {
    **dict.fromkeys(("cxr_compress", "cxr_convert", "cxr_train", "cxr_import_weights"), ""),
    **dict.fromkeys(("cxr_evaluate", "cxr_inspect"), " for Keras models"),
}
_HELP_FLAGS = {
    "help": HelpKind.FULL,
    "helpfull": HelpKind.FULL,
    "h": HelpKind.FULL,
    "?": HelpKind.FULL,
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


def help_text(name: str, doc: str, values: flags.FlagValues, kind: HelpKind) -> str:
    """Give the help as text that ends with a line break; `values` need not be parsed."""
    own = [flag_name for flag_name in values if flag_name not in SHARED_FLAGS]
    lines = [f"{name}: {doc.strip()}", "", *_needs(name), "flags:", *_flag_lines(values, own)]
    if kind is HelpKind.FULL:
        lines += ["", "flags of every command:", *_flag_lines(values, list(SHARED_FLAGS))]
        lines += ["  --[help|helpshort|helpfull]: Show this help, or the first part of it."]
        lines += ["  --version: Show the version and stop."]
    else:
        lines += ["", f"{name} --helpfull shows {', '.join('--' + shared for shared in SHARED_FLAGS)} too."]
    return "\n".join(lines) + "\n"


def _needs(name: str) -> list[str]:
    """What to install beside the base for a command, as a line and an empty one; nothing where the base is enough."""
    need = _NEEDS.get(name)
    if need is None:
        return []
    here = "" if _installed("tensorflow") else "; it is not installed here"
    return [f"Needs TensorFlow{need}: pip install 'cxr-compress[train]'{here}.", ""]


def _flag_lines(values: flags.FlagValues, names: list[str]) -> list[str]:
    """One or two wrapped lines a flag, in the order they were defined."""
    lines = []
    for name in names:
        flag = values[name]
        spelling = f"--[no]{name}" if flag.boolean else f"--{name}"
        default = "" if flag.default in (None, "") else f" (default: {_default(flag)})"
        lines.append(
            flags.text_wrap(f"{spelling}: {flag.help}{default}", length=100, indent="      ", firstline_indent="  ")
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

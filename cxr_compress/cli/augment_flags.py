"""The flags that say how far training films are changed: the same words wherever something trains."""

from __future__ import annotations

from typing import Any

from absl import flags

_RANGES = {
    "shift": (0.06, "Of the side, either way."),
    "rotation": (7.0, "Degrees, either way."),
    "scale": (0.08, "Of the size, either way."),
    "contrast": (0.15, "Either way."),
    "brightness": (15.0, "Gray levels of 255, either way."),
    "gamma": (0.0, "Logarithm of the exponent that bends gray values, either way."),
}
_MIRROR = "Mirror every other image: never for chests, it moves the heart."


def define_augment_flags(values: flags.FlagValues, *, with_defaults: bool) -> None:
    """Define --augment_shift and its like.

    Args:
        values: Where.
        with_defaults: Each has its usual range where it is not given; otherwise it then is None, and the usual range
            stands in the text alone.
    """
    for name, (default, text) in _RANGES.items():
        usual, words = (default, text) if with_defaults else (None, f"{text} {default:g} unless given.")
        flags.DEFINE_float(f"augment_{name}", usual, words, flag_values=values)
    flags.DEFINE_boolean("augment_mirror", False if with_defaults else None, _MIRROR, flag_values=values)


def augment_ranges(values: flags.FlagValues) -> dict[str, Any]:
    """The ranges that have a value, by the names that ``train.AugmentRanges`` has for them."""
    given = {name: values[f"augment_{name}"].value for name in (*_RANGES, "mirror")}
    return {name: value for name, value in given.items() if value is not None}

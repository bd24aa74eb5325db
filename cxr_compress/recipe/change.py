"""A recipe with some fields changed, as flags and files of people give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from cxr_compress.errors import CompressionError

if TYPE_CHECKING:
    from cxr_compress.recipe.recipe import Recipe

_NUMBERS_BY_NAME = ("overrides", "augment")


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A copy with other values, lists and tables as JSON has them taken for what the fields hold.

    Raises:
        CompressionError: an unknown field, a value of the wrong type or outside its range.
    """
    known = {field.name for field in fields(recipe)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise CompressionError(f"unknown in a recipe: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    values = dict(changes)
    try:
        for name in {"exclude", "sparsity_block"} & set(values):
            values[name] = tuple(values[name])
        for name in set(_NUMBERS_BY_NAME) & set(values):
            values[name] = {str(key): float(number) for key, number in values[name].items()}
        if "options" in values:
            values["options"] = {str(name): str(value) for name, value in values["options"].items()}
        return replace(recipe, **values)
    except (TypeError, ValueError, AttributeError) as error:
        raise CompressionError(f"a value in the recipe has the wrong type: {error}") from error

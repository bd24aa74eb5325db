"""One compression run as data: every choice that decides its result, and nothing that does not (no paths, no times)."""

from cxr_compress.recipe.fields import Section, option, provide_choices, register_section
from cxr_compress.recipe.recipe import PRESETS, Recipe, make_recipe
from cxr_compress.recipe.sections import DEFAULT_THREADS, AugmentRanges

__all__ = [
    "DEFAULT_THREADS",
    "PRESETS",
    "AugmentRanges",
    "Recipe",
    "Section",
    "make_recipe",
    "option",
    "provide_choices",
    "register_section",
]

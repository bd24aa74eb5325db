"""One compression run as data: every choice that decides its result, and nothing that does not (no paths, no times)."""

from cxr_compress.recipe.fields import Section, option, provide_choices, register_section
from cxr_compress.recipe.recipe import PRESETS, Recipe, is_labeled, make_recipe, without_labels
from cxr_compress.recipe.sections import DEFAULT_THREADS, AugmentRanges

__all__ = [
    "DEFAULT_THREADS",
    "PRESETS",
    "AugmentRanges",
    "Recipe",
    "Section",
    "is_labeled",
    "make_recipe",
    "option",
    "provide_choices",
    "register_section",
    "without_labels",
]

"""One compression run as data: every choice that decides its result, and nothing that does not (no paths, no times)."""

from cxr_compress.recipe.choices import (
    ALLOCATIONS,
    AUGMENT,
    CALIBRATION_METHODS,
    CRITERIA,
    NORMALIZERS,
    PATTERNS,
    QAT,
    QUANT_TYPES,
    REDUCTIONS,
    SCHEDULES,
    SCOPES,
    THRESHOLD_UNITS,
)
from cxr_compress.recipe.flat import DEFAULT_THREADS, Recipe
from cxr_compress.recipe.presets import PRESETS, make_recipe

__all__ = [
    "ALLOCATIONS",
    "AUGMENT",
    "CALIBRATION_METHODS",
    "CRITERIA",
    "DEFAULT_THREADS",
    "NORMALIZERS",
    "PATTERNS",
    "PRESETS",
    "QAT",
    "QUANT_TYPES",
    "REDUCTIONS",
    "SCHEDULES",
    "SCOPES",
    "THRESHOLD_UNITS",
    "Recipe",
    "make_recipe",
]

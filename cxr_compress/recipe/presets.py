"""What suits each architecture, and recipes made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cxr_compress.recipe.recipe import Recipe

# What suits each architecture on two cores. Narrow layers cannot be pruned in steps of 8.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny_chexnet": {"round_to": 4},
    "chexnet": {
        "input_size": 112,
        "batch_size": 16,
        "epochs": 5,
        "learning_rate": 1e-3,
        "recovery_epochs": 2,
        "recovery_learning_rate": 3e-4,
        "sparsity_epochs": 2,
        "sparsity_learning_rate": 2e-4,
    },
}


def make_recipe(model: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe that suits an architecture, with the given fields changed.

    Raises:
        CompressionError: an unknown field, or a value outside its range.
    """
    return replace(Recipe(model=model), **PRESETS.get(model, {})).changed(changes)

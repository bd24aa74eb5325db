"""The rows of ``unified.py``: what each of them asks for, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxr_compress.recipe import Recipe, make_recipe

UNIFIED, PRUNING, REMOVAL = "unified", "weight pruning + int8", "removal + int8"
INT8, RANDOM, SCRATCH = "int8 alone", "unified, random filters", "the same shape from scratch"


@dataclass(frozen=True)
class RowPlan:
    """One row before it is run.

    Attributes:
        method: what it shows; rows of one method are one series of the plot.
        changes: of the preset of the model's recipe.
    """

    method: str
    changes: Mapping[str, Any]


def _cut(target_bytes: int, target_macs: float | None, **changes: Any) -> dict[str, Any]:
    return {"target_bytes": target_bytes, "target_macs": target_macs, **changes}


# What no row differs in.
_SHARED: dict[str, Any] = {
    **{"scope": "local", "round_to": 4, "max_removed_fraction": 0.9},
    **{"distill_weight": 0.7, "feature_weight": 0.1, "ema_decay": 0.99, "recovery_learning_rate": 6e-4},
}
# As chexnet_kermany was trained (``baselines.py``); the usual augmentation is weaker, without decay and smoothing.
_AS_ORIGINAL: dict[str, Any] = {
    **{"augment_shift": 0.08, "augment_rotation": 10, "augment_scale": 0.1},
    **{"augment_contrast": 0.25, "augment_brightness": 25, "augment_gamma": 0.2},
    **{"weight_decay": 0.01, "label_smoothing": 0.05},
}
# Ways to train that a row may be run with, as changes of its recipe, and the factor of its epochs. "patient" follows
# the teacher alone, on the same changed images, for long: Beyer et al., "Knowledge distillation: A good teacher is
# patient and consistent" (arXiv 2106.05237).
USUAL = "usual"
TRAININGS: Mapping[str, tuple[Mapping[str, Any], int]] = {
    USUAL: ({}, 1),
    "as_original": (_AS_ORIGINAL, 1),
    "patient": ({**_AS_ORIGINAL, "distill_weight": 1.0}, 2),
}
_EPOCHS = ("recovery_epochs", "sparsity_epochs", "finetune_epochs")
# Eight epochs each, however they are spread.
_BOTH: dict[str, Any] = {"recovery_epochs": 5, "weight_sparsity": 0.5, "sparsity_epochs": 2, "finetune_epochs": 1}
_REMOVAL_ALONE: dict[str, Any] = {"recovery_epochs": 8, "weight_sparsity": 0.0, "finetune_epochs": 0}
_PRUNING_ALONE: dict[str, Any] = {"target_macs": None, "sparsity_epochs": 5, "finetune_epochs": 3}
# The size that matters most comes first.
_MACS = {1_000_000: 0.12, 2_000_000: 0.3, 640_000: None, 330_000: None}
# Where this set of images tells models apart: each pair is about as large as the other when deflated.
_EQUAL_DEFLATED = {400_000: 290_000, 640_000: 495_000}


def _rows() -> dict[str, RowPlan]:
    rows = {f"unified_{size // 1000}kB": RowPlan(UNIFIED, _cut(size, macs, **_BOTH)) for size, macs in _MACS.items()}
    rows["int8"] = RowPlan(INT8, {"target_macs": None, "weight_sparsity": 0.0, "qat": "never"})
    rows["unified_400kB"] = RowPlan(UNIFIED, _cut(400_000, None, **_BOTH))
    for size in (2_000_000, 1_000_000, 640_000, *_EQUAL_DEFLATED.values()):
        rows[f"removal_{size // 1000}kB"] = RowPlan(REMOVAL, _cut(size, _MACS.get(size), **_REMOVAL_ALONE))
    for sparsity in (0.7, 0.85, 0.92, 0.96, 0.99):
        rows[f"pruning_w{sparsity * 100:.0f}"] = RowPlan(PRUNING, {**_PRUNING_ALONE, "weight_sparsity": sparsity})
    one = _cut(1_000_000, _MACS[1_000_000], **_BOTH)
    rows["random_1000kB"] = RowPlan(RANDOM, {**one, "criterion": "random"})
    rows["scratch_1000kB"] = RowPlan(SCRATCH, {**one, "from_scratch": True})
    return rows


ROWS = _rows()
SMOKE_ROWS = {
    "unified": RowPlan(UNIFIED, {"recovery_epochs": 0, "sparsity_epochs": 1}),
    "removal": RowPlan(REMOVAL, {"recovery_epochs": 0, "weight_sparsity": 0.0}),
}
_SMOKE_RECIPE = {
    "input_size": 32,
    "batch_size": 16,
    **dict.fromkeys(("calibration_images", "recalibration_images", "reconstruction_images"), 16),
    "vary_images": False,
    "bootstrap_samples": 50,
    "qat": "never",
    "force": True,  # the network has random weights: no better than chance, which a run refuses
}


def recipe_of(plan: RowPlan, dataset: str, input_size: int | None, training: str) -> Recipe:
    """The recipe of a row; ``input_size`` in pixels, None for that of the preset; ``training`` one of TRAININGS."""
    size = {"input_size": input_size} if input_size else {}
    changes, factor = TRAININGS[training]
    epochs = {name: factor * plan.changes[name] for name in _EPOCHS if name in plan.changes}
    return make_recipe("chexnet", {"dataset": dataset, **size, **_SHARED, **changes, **plan.changes, **epochs})


def smoke_recipe_of(plan: RowPlan) -> Recipe:
    """The same for phantom images and a small network."""
    return make_recipe("tiny_chexnet", {"dataset": "phantom", **_SMOKE_RECIPE, **plan.changes})

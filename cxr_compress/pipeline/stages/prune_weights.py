"""Zeroing the smallest of the remaining weights while the others make up for it (TF-MOT)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_compress.models import load_model
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.recipe import Recipe
from cxr_compress.sparsity import SparsityTarget, allocate, layer_outcomes, measure_sparsity, prune_weights
from cxr_compress.train import fit

_FLAGS = (
    *("weight_sparsity", "weight_threshold", "threshold_unit", "sparsity_allocation", "sparsity_schedule"),
    *("sparsity_power", "initial_sparsity", "sparsity_pattern", "sparsity_block", "sparsity_epochs"),
    # Not all of what teaches elsewhere: while weights go, feature maps are not compared and weights not averaged.
    *("sparsity_learning_rate", "distill_weight", "distill_loss", "recovery_batch_norm", *OF_TRAINING),
)


class PruneWeights(Stage):
    """Set weights to zero, a growing share of them, in training."""

    name, section, results = "sparsify", "sparsity", ("sparse.keras",)
    trains = True

    def when(self, recipe: Recipe) -> bool:
        """Where a share or a threshold is given."""
        return recipe.sparsity.zeroes_weights

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what zeroes and trains; both models."""
        return run.inputs(_FLAGS, state.model, state.original)

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Train and zero."""
        sparsity, recovery = run.recipe.sparsity, run.recipe.recovery
        teacher = load_model(state.original.keras_file) if recovery.distill_weight else None
        model, target = load_model(state.model.keras_file), sparsity_target(run.recipe)
        asked = allocate(model, target)
        sparse = prune_weights(
            model,
            run.data.train.pair,
            run.data.dev.pair,
            run.data.spec,
            run.config(sparsity.epochs, sparsity.learning_rate, batch_norm=recovery.batch_norm, **run.following),
            work,
            fit=functools.partial(fit, teacher=teacher, pos_weight=run.pos_weight),
            findings=run.data.dataset.findings,
            target=target,
            progress=run.log,
        )
        run.save(sparse, *self.results)
        report = measure_sparsity(sparse)
        return {
            "zeros": report.zeros,
            "weights": report.weights,
            "sparsity": report.total,
            "notes": list(asked.notes()),
            "layers": [dataclasses.asdict(layer) for layer in layer_outcomes(sparse, asked)],
        }

    def seconds(self, pace: Pace) -> float:
        """A training."""
        return pace.training(pace.recipe.sparsity.epochs, pace.pruned, taught=True)


def sparsity_target(recipe: Recipe) -> SparsityTarget:
    """Which weights a recipe sets to zero.

    Raises:
        CompressionError: choices that do not go together.
    """
    sparsity = recipe.sparsity
    if sparsity.pattern == "2:4":
        return SparsityTarget(pattern="2:4", schedule="constant")
    return SparsityTarget.from_dict(
        {
            "sparsity": sparsity.fraction if sparsity.threshold is None else None,
            "threshold": sparsity.threshold,
            "threshold_unit": sparsity.threshold_unit,
            "allocation": sparsity.allocation,
            "schedule": sparsity.schedule,
            "power": sparsity.power,
            "initial_sparsity": sparsity.initial_sparsity,
            "pattern": sparsity.pattern,
            "block": sparsity.block,
        }
    )

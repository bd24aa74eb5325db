"""Training after a removal: recover what it cost, set weights to zero, and train on with the zeros held."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.models.zeros import check_zeros, zero_masks
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.sparsity import SparsityTarget, allocate, layer_outcomes, measure_sparsity, prune_weights
from cxr_compress.structured import ChannelPlan
from cxr_compress.train import FeatureMatch, FitConfig, fit, last_feature_map

_TAUGHT = ("distill_weight", "feature_weight", "ema_decay", *OF_TRAINING)
_SPARSITY = (
    *("weight_sparsity", "weight_threshold", "threshold_unit", "sparsity_allocation", "sparsity_schedule"),
    *("sparsity_power", "initial_sparsity", "sparsity_pattern", "sparsity_block", "sparsity_epochs"),
    "sparsity_learning_rate",
)


def recover(run: RunContext, pruned: Artifacts, base: Artifacts, plan: ChannelPlan) -> Artifacts:
    """Fine-tune the pruned model, pulled towards the labels and towards the original model."""
    fields = ("recovery_epochs", "recovery_learning_rate", "schedule_epochs", *_TAUGHT)

    def make(work: Path) -> Mapping[str, Any]:
        model = load_model(pruned.keras_file)
        config = _taught(
            run,
            run.recipe.recovery_epochs,
            run.recipe.recovery_learning_rate,
            schedule_epochs=run.recipe.schedule_epochs,
        )
        facts = _train_taught(run, model, base, config, work, plan)
        return {**facts, **run.save(model, "recovered.keras")}

    return run.store.run("recover", run.inputs(fields, pruned, base), ["recovered.keras"], make)


def sparsify(run: RunContext, dense: Artifacts, base: Artifacts) -> Artifacts:
    """Zero the smallest of the remaining weights with TF-MOT while the others make up for it."""
    recipe = run.recipe
    # Not all of what teaches elsewhere: while weights go, feature maps are not compared and weights not averaged.
    fields = (*_SPARSITY, "distill_weight", *OF_TRAINING)

    def make(work: Path) -> Mapping[str, Any]:
        teacher = load_model(base.keras_file) if recipe.distill_weight else None
        model, target = load_model(dense.keras_file), sparsity_target(recipe)
        asked = allocate(model, target)
        sparse = prune_weights(
            model,
            run.data.train.pair,
            run.data.dev.pair,
            run.data.spec,
            run.config(recipe.sparsity_epochs, recipe.sparsity_learning_rate, distill_weight=recipe.distill_weight),
            work,
            fit=functools.partial(fit, teacher=teacher, pos_weight=run.pos_weight),
            findings=run.data.dataset.findings,
            target=target,
            progress=run.log,
        )
        run.save(sparse, "sparse.keras")
        report = measure_sparsity(sparse)
        return {
            "zeros": report.zeros,
            "weights": report.weights,
            "sparsity": report.total,
            "notes": list(asked.notes()),
            "layers": [dataclasses.asdict(layer) for layer in layer_outcomes(sparse, asked)],
        }

    return run.store.run("sparsify", run.inputs(fields, dense, base), ["sparse.keras"], make)


def finetune(run: RunContext, sparse: Artifacts, base: Artifacts, plan: ChannelPlan | None) -> Artifacts:
    """Fine-tune once more after weights went to zero; what is zero stays zero."""
    fields = ("finetune_epochs", "finetune_learning_rate", *_TAUGHT)

    def make(work: Path) -> Mapping[str, Any]:
        model = load_model(sparse.keras_file)
        masks = zero_masks(model)
        config = _taught(run, run.recipe.finetune_epochs, run.recipe.finetune_learning_rate)
        facts = _train_taught(run, model, base, config, work, plan, masks)
        check_zeros(model, masks)
        return {**facts, **run.save(model, "finetuned.keras")}

    return run.store.run("finetune", run.inputs(fields, sparse, base), ["finetuned.keras"], make)


def sparsity_target(recipe: Recipe) -> SparsityTarget:
    """Which weights a recipe sets to zero.

    Raises:
        CompressionError: choices that do not go together.
    """
    if recipe.sparsity_pattern == "2:4":
        return SparsityTarget(pattern="2:4", schedule="constant")
    return SparsityTarget.from_dict(
        {
            "sparsity": recipe.weight_sparsity if recipe.weight_threshold is None else None,
            "threshold": recipe.weight_threshold,
            "threshold_unit": recipe.threshold_unit,
            "allocation": recipe.sparsity_allocation,
            "schedule": recipe.sparsity_schedule,
            "power": recipe.sparsity_power,
            "initial_sparsity": recipe.initial_sparsity,
            "pattern": recipe.sparsity_pattern,
            "block": recipe.sparsity_block,
        }
    )


def feature_match(student: keras.Model, teacher: keras.Model, plan: ChannelPlan | None) -> FeatureMatch:
    """The last feature maps of two models, one pruned from the other, channel by channel.

    Args:
        student: the pruned model.
        teacher: the original one.
        plan: from the original to the pruned one; None where no channel is gone.

    Raises:
        CompressionError: the classifier does not read the feature map channel by channel, as after a Flatten.
    """
    ends = last_feature_map(student), last_feature_map(teacher)
    channels = int(teacher.get_layer(ends[1]).output_shape[-1])
    keep = np.arange(channels) if plan is None else _kept_of_map(teacher, plan, channels)
    return FeatureMatch(student=ends[0], teacher=ends[1], keep=keep)


def _kept_of_map(teacher: keras.Model, plan: ChannelPlan, channels: int) -> np.ndarray:
    """The channels of the last feature map that stay: those that the last layer to sum over channels still reads."""
    analysis = plan.on(teacher)
    read = [axis.sets for layer in analysis.layers.values() for axis in layer.axes if axis.role == "consume"][-1]
    if len(read) != channels:
        raise CompressionError(
            f"feature_weight compares the last feature map, but the classifier reads {len(read)} values of its "
            f"{channels} channels: give --feature_weight=0, or a model that ends in global pooling"
        )
    return np.flatnonzero(plan.keep_vector(analysis)[read])


def _taught(run: RunContext, epochs: int, learning_rate: float, **changes: Any) -> FitConfig:
    recipe = run.recipe
    return run.config(
        epochs,
        learning_rate,
        distill_weight=recipe.distill_weight,
        feature_weight=recipe.feature_weight,
        ema_decay=recipe.ema_decay,
        **changes,
    )


def _train_taught(  # noqa: PLR0917 - what a training is made of
    run: RunContext,
    model: keras.Model,
    base: Artifacts,
    config: FitConfig,
    work: Path,
    plan: ChannelPlan | None,
    masks: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    teacher = run.teacher(base)
    match = feature_match(model, teacher, plan) if config.feature_weight and teacher is not None else None
    return run.train(model, config, work, teacher=teacher, match=match, masks=masks)

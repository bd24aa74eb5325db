"""Training after a removal: recover what it cost, and train on with the zeros of pruned weights held."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.models.zeros import check_zeros, zero_masks
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.recipe import Recipe
from cxr_compress.structured import ChannelPlan
from cxr_compress.train import FeatureMatch, FitConfig, last_feature_map

_TAUGHT = (
    *("distill_weight", "distill_loss", "feature_weight", "recovery_batch_norm", "ema_decay"),
    *OF_TRAINING,
)


class Recover(Stage):
    """Fine-tune the pruned model, pulled towards the labels and towards the original model."""

    name, section, results = "recover", "recovery", ("recovered.keras",)
    trains = True

    def when(self, recipe: Recipe) -> bool:
        """Where filters are gone and there are epochs."""
        return recipe.removal.removes_filters and recipe.recovery.epochs > 0

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what trains; both models."""
        flags = ("recovery_epochs", "recovery_learning_rate", "schedule_epochs", *_TAUGHT)
        return run.inputs(flags, state.model, state.original)

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Train."""
        recovery, model = run.recipe.recovery, load_model(state.model.keras_file)
        config = _taught(run, recovery.epochs, recovery.learning_rate, schedule_epochs=recovery.schedule_epochs)
        if recovery.from_scratch:  # whose statistics are those of no image
            config = dataclasses.replace(config, batch_norm="train")
        facts = _train_taught(run, state, model, config, work)
        return {**facts, **run.save(model, *self.results)}

    def seconds(self, pace: Pace) -> float:
        """A training."""
        return pace.training(pace.recipe.recovery.epochs, pace.pruned, taught=True)


class Finetune(Stage):
    """Fine-tune once more after weights went to zero; what is zero stays zero."""

    name, section, results = "finetune", "sparsity", ("finetuned.keras",)
    trains = True

    def when(self, recipe: Recipe) -> bool:
        """Where weights are zero and there are epochs."""
        return recipe.sparsity.zeroes_weights and recipe.sparsity.finetune_epochs > 0

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what trains; both models."""
        return run.inputs(("finetune_epochs", "finetune_learning_rate", *_TAUGHT), state.model, state.original)

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Train with masks."""
        sparsity, model = run.recipe.sparsity, load_model(state.model.keras_file)
        masks = zero_masks(model)
        config = _taught(run, sparsity.finetune_epochs, sparsity.finetune_learning_rate)
        facts = _train_taught(run, state, model, config, work, masks)
        check_zeros(model, masks)
        return {**facts, **run.save(model, *self.results)}

    def seconds(self, pace: Pace) -> float:
        """A training."""
        return pace.training(pace.recipe.sparsity.finetune_epochs, pace.pruned, taught=True)


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
    recovery = run.recipe.recovery
    return run.config(
        epochs,
        learning_rate,
        **run.following,
        feature_weight=recovery.feature_weight,
        batch_norm=recovery.batch_norm,
        ema_decay=recovery.ema_decay,
        **changes,
    )


def _train_taught(  # noqa: PLR0917 - what a training is made of
    run: RunContext,
    state: State,
    model: keras.Model,
    config: FitConfig,
    work: Path,
    masks: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Train, and keep the start where no epoch beats it; weights that were drawn anew are none to keep."""
    teacher = run.teacher(state.original)
    first = int(run.recipe.recovery.from_scratch and masks is None)
    match = feature_match(model, teacher, state.plan) if config.feature_weight and teacher is not None else None
    return run.train(model, config, work, teacher=teacher, match=match, masks=masks, best_from_epoch=first)

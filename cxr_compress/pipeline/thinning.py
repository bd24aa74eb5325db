"""Removing filters as a recipe says: score, select, rebuild, repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.keras2 import keras
from cxr_compress.pipeline.films import RunData
from cxr_compress.recipe import Recipe
from cxr_compress.structured import (
    Budget,
    ChannelAnalysis,
    ChannelPlan,
    Sensitivity,
    measure_sensitivity,
    recalibrate_batch_norm,
    reconstruct_consumers,
    remove_iteratively,
    score_channels,
)

FloatArray = npt.NDArray[np.float32]
Scores = dict[str, npt.NDArray[np.float64]]
_CRITERIA_ON_IMAGES = ("taylor", "apoz", "lasso")


@dataclass(frozen=True)
class Thinning:
    """The removal of filters in one run.

    Attributes:
        recipe: the choices.
        data: the films.
        folder: where measured sensitivity is kept.
        news: is told how far measurements are.
        loss: (labels, logits) -> loss, as in training, for the criterion that needs a gradient.
        cost_table: measured costs of the uncut model, for budgets on bytes and latency.
    """

    recipe: Recipe
    data: RunData
    folder: Path
    news: Callable[[str], None]
    loss: Callable[[Any, Any], Any] | None = None
    cost_table: CostTable | None = None

    def choose(self, model: keras.Model) -> tuple[ChannelPlan, dict[str, Any]]:
        """The plan that thins a model to the recipe's budget, and facts; `model` is left untouched.

        In several steps, batch norms are re-estimated after each, so that the next scores see a working model.

        Raises:
            BudgetError: the budget cannot be reached.
            CompressionError: options that do not fit the model.
        """
        removal = self.recipe.removal
        bounds: dict[str, Any] = removal.budget.bounds
        budget = Budget(**bounds)
        _, plan, plans = remove_iteratively(
            model,
            budget,
            self._score,
            steps=removal.steps,
            exclude=removal.exclude,
            allow_inexact=removal.allow_inexact,
            measure=self._measure if removal.scope == "sensitivity" else None,
            between=self._between,
            cost_table=self.cost_table,
            scope=removal.scope,
            round_to=removal.round_to,
            min_channels=removal.min_channels,
            max_removed_fraction=removal.max_removed_fraction,
            overrides=removal.overrides,
        )
        return plan, {
            "before": plan.before.to_dict(),
            "after": plan.after.to_dict(),
            "limits": budget.limits(plan.before),
            "steps": [step.after.to_dict() for step in plans],
        }

    def repair(self, thin: keras.Model, model: keras.Model, plan: ChannelPlan) -> dict[str, Any]:
        """Repair what `plan` made of `model`, in place and without labels; facts."""
        if self.recipe.recovery.reconstruct:
            return {"reconstruction": self._reconstruct(thin, model, plan)}
        # Not after a reconstruction: what it fitted holds under the statistics that it was fitted with.
        self._recalibrate(thin, uncut=model, plan=plan)
        return {
            "recalibration": {"images": min(self.recipe.recovery.recalibration_images, len(self.data.train.images))}
        }

    def _score(self, model: keras.Model, analysis: ChannelAnalysis) -> Scores:
        removal = self.recipe.removal
        return score_channels(
            model,
            analysis,
            criterion=removal.criterion,
            batches=self._labelled(removal.scoring_images) if scores_on_images(self.recipe) else None,
            loss=self.loss,
            group_reduction=removal.group_reduction,
            normalizer=removal.normalizer,
            seed=self.recipe.run.seed,
        )

    def _measure(self, model: keras.Model, analysis: ChannelAnalysis, scores: Any, step: int) -> Sensitivity:
        return measure_sensitivity(
            model,
            analysis,
            scores,
            self._images(self.recipe.removal.sensitivity_images),
            cache=self.folder / sensitivity_files(self.recipe)[step - 1],
            progress=self.news,
        )

    def _between(self, thin: keras.Model, step: int) -> None:
        if step < self.recipe.removal.steps:
            self._recalibrate(thin)

    def _recalibrate(self, thin: keras.Model, **reference: Any) -> None:
        recalibrate_batch_norm(thin, self._images(self.recipe.recovery.recalibration_images), **reference)

    def _reconstruct(self, thin: keras.Model, model: keras.Model, plan: ChannelPlan) -> dict[str, Any]:
        batches = self._images(self.recipe.recovery.reconstruction_images)
        report = reconstruct_consumers(thin, model, plan, batches, seed=self.recipe.run.seed)
        before, after = (sum(errors[place] for errors in report.errors.values()) for place in range(2))
        return {
            "images": report.images,
            "layers": len(report.errors),
            "error_before": before,
            "error_after": after,
            "left": dict(report.left),
        }

    def _images(self, count: int) -> Iterator[FloatArray]:
        return self.data.batches(self.data.sample(count, self.recipe.run.seed))

    def _labelled(self, count: int) -> Iterator[tuple[FloatArray, FloatArray]]:
        images, labels = self.data.sample_labelled(count, self.recipe.run.seed)
        start = 0
        for batch in self.data.batches(images):
            yield batch, labels[start : start + len(batch)]
            start += len(batch)


def scores_on_images(recipe: Recipe) -> bool:
    """Whether the criterion looks at images, and not at weights alone."""
    return recipe.removal.criterion in _CRITERIA_ON_IMAGES


def sensitivity_files(recipe: Recipe) -> tuple[str, ...]:
    """The files that measured sensitivity is kept in, one per step; none where the recipe does not ask for it."""
    if recipe.removal.scope != "sensitivity":
        return ()
    later = (f"sensitivity_step{step}.json" for step in range(2, recipe.removal.steps + 1))
    return ("sensitivity.json", *later)


def choosing_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides the plan, of the recipe's fields: those of things that it does not do are left out."""
    names = [
        *("criterion", "group_reduction", "normalizer", "scope", "round_to", "min_channels"),
        *("max_removed_fraction", "exclude", "allow_inexact", "removal_steps", "seed"),
    ]
    if recipe.removal.steps > 1:
        names.append("recalibration_images")
    if scores_on_images(recipe):
        names.append("scoring_images")
    if recipe.removal.scope == "sensitivity":
        names.append("sensitivity_images")
    # As pairs: the last match counts, and keys of a mapping are sorted before they are hashed.
    overrides = list(map(list, recipe.removal.overrides.items()))
    budget = recipe.removal.budget.bounds
    return {name: recipe.value(name) for name in names} | {"overrides": overrides, "budget": budget}


def repair_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides the repair."""
    names = ["from_scratch", "seed"]
    if not recipe.recovery.from_scratch:
        names += ["reconstruct", "reconstruction_images" if recipe.recovery.reconstruct else "recalibration_images"]
    return {name: recipe.value(name) for name in names}

"""The stages that take filters away: choose them, rebuild without them, repair what is left without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.files import write_text
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.models.variants import reinitialize
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.data import RunData
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.structured import (
    Budget,
    ChannelAnalysis,
    ChannelPlan,
    Sensitivity,
    measure_sensitivity,
    recalibrate_batch_norm,
    reconstruct_consumers,
    remove_channels,
    remove_iteratively,
    score_channels,
)
from cxr_compress.train import FitConfig
from cxr_compress.train.losses import make_loss

FloatArray = npt.NDArray[np.float32]
Scores = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Pruning:
    """The removal of filters in one run.

    Attributes:
        recipe: the choices.
        data: the images.
        folder: where measured sensitivity is kept.
        log: is told how far measurements are.
        loss: (labels, logits) -> loss, as in training, for the criterion that needs a gradient.
        cost_table: measured costs of the original model, for budgets on bytes and latency.
    """

    recipe: Recipe
    data: RunData
    folder: Path
    log: Callable[[str], None]
    loss: Callable[[Any, Any], Any] | None = None
    cost_table: CostTable | None = None

    def choose(self, model: keras.Model) -> tuple[ChannelPlan, dict[str, Any]]:
        """The plan that prunes a model to the recipe's budget, and facts; `model` is left untouched.

        In several steps, batch norms are re-estimated after each, so that the next scores see a working model.

        Raises:
            BudgetError: the budget cannot be reached.
            CompressionError: options that do not fit the model.
        """
        recipe, budget = self.recipe, _budget(self.recipe)
        _, plan, plans = remove_iteratively(
            model,
            budget,
            self._score,
            steps=recipe.removal_steps,
            exclude=recipe.exclude,
            allow_inexact=recipe.allow_inexact,
            measure=self._measure if recipe.scope == "sensitivity" else None,
            between=self._between,
            cost_table=self.cost_table,
            scope=recipe.scope,
            round_to=recipe.round_to,
            min_channels=recipe.min_channels,
            max_removed_fraction=recipe.max_removed_fraction,
            overrides=recipe.overrides,
        )
        return plan, {
            "before": plan.before.to_dict(),
            "after": plan.after.to_dict(),
            "limits": budget.limits(plan.before),
            "steps": [step.after.to_dict() for step in plans],
        }

    def repair(self, pruned: keras.Model, model: keras.Model, plan: ChannelPlan) -> dict[str, Any]:
        """Repair what `plan` made of `model`, in place and without labels; facts."""
        if self.recipe.reconstruct:
            return {"reconstruction": self._reconstruct(pruned, model, plan)}
        # Not after a reconstruction: what it fitted holds under the statistics that it was fitted with.
        self._recalibrate(pruned, original=model, plan=plan)
        return {"recalibration": {"images": min(self.recipe.recalibration_images, len(self.data.train.images))}}

    def _score(self, model: keras.Model, analysis: ChannelAnalysis) -> Scores:
        recipe = self.recipe
        return score_channels(
            model,
            analysis,
            criterion=recipe.criterion,
            batches=self._labeled(recipe.scoring_images) if recipe.scores_on_images else None,
            loss=self.loss,
            group_reduction=recipe.group_reduction,
            normalizer=recipe.normalizer,
            seed=recipe.seed,
        )

    def _measure(self, model: keras.Model, analysis: ChannelAnalysis, scores: Any, step: int) -> Sensitivity:
        return measure_sensitivity(
            model,
            analysis,
            scores,
            self._images(self.recipe.sensitivity_images),
            cache=self.folder / sensitivity_files(self.recipe)[step - 1],
            progress=self.log,
        )

    def _between(self, pruned: keras.Model, step: int) -> None:
        if step < self.recipe.removal_steps:
            self._recalibrate(pruned)

    def _recalibrate(self, pruned: keras.Model, **reference: Any) -> None:
        recalibrate_batch_norm(pruned, self._images(self.recipe.recalibration_images), **reference)

    def _reconstruct(self, pruned: keras.Model, model: keras.Model, plan: ChannelPlan) -> dict[str, Any]:
        recipe = self.recipe
        batches = self._images(recipe.reconstruction_images)
        report = reconstruct_consumers(pruned, model, plan, batches, seed=recipe.seed)
        before, after = (sum(errors[place] for errors in report.errors.values()) for place in range(2))
        return {
            "images": report.images,
            "layers": len(report.errors),
            "error_before": before,
            "error_after": after,
            "left": dict(report.left),
        }

    def _images(self, count: int) -> Iterator[FloatArray]:
        return self.data.batches(self.data.sample(count, self.recipe.seed))

    def _labeled(self, count: int) -> Iterator[tuple[FloatArray, FloatArray]]:
        images, labels = self.data.sample_labeled(count, self.recipe.seed)
        start = 0
        for batch in self.data.batches(images):
            yield batch, labels[start : start + len(batch)]
            start += len(batch)


def _budget(recipe: Recipe) -> Budget:
    bounds = recipe.budget
    return Budget(bounds.get("macs"), bounds.get("params"), bounds.get("tflite_bytes"), bounds.get("latency_ms"))


def sensitivity_files(recipe: Recipe) -> tuple[str, ...]:
    """The files that measured sensitivity is kept in, one per step; none where the recipe does not ask for it."""
    if recipe.scope != "sensitivity":
        return ()
    later = (f"sensitivity_step{step}.json" for step in range(2, recipe.removal_steps + 1))
    return ("sensitivity.json", *later)


def choosing_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides the plan, of the recipe's fields: those of things that it does not do are left out."""
    names = [
        *("criterion", "group_reduction", "normalizer", "scope", "round_to", "min_channels"),
        *("max_removed_fraction", "exclude", "allow_inexact", "removal_steps", "seed"),
    ]
    if recipe.removal_steps > 1:
        names.append("recalibration_images")
    if recipe.scores_on_images:
        names.append("scoring_images")
    if recipe.scope == "sensitivity":
        names.append("sensitivity_images")
    # As pairs: the last match counts, and keys of a mapping are sorted before they are hashed.
    overrides = list(map(list, recipe.overrides.items()))
    return {name: getattr(recipe, name) for name in names} | {"overrides": overrides, "budget": recipe.budget}


def repair_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides the repair."""
    names = ["from_scratch", "seed"]
    if not recipe.from_scratch:
        names += ["reconstruct", "reconstruction_images" if recipe.reconstruct else "recalibration_images"]
    return {name: getattr(recipe, name) for name in names}


def choose(run: RunContext, base: Artifacts, cost_table: CostTable | None) -> tuple[Artifacts, ChannelPlan]:
    """Analyze, score and select: the plan that meets the budget.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    table = None if cost_table is None else cost_table.to_json()
    inputs = {**run.inputs((), base), "recipe": choosing_fields(run.recipe), "costs": table}

    def make(_: Path) -> Mapping[str, Any]:
        plain = FitConfig(epochs=1, activation=run.activation)
        loss = make_loss(plain, run.pos_weight) if run.recipe.criterion == "taylor" else None
        pruning = Pruning(run.recipe, run.data, run.store.folder, run.log, loss, cost_table)
        plan, facts = pruning.choose(load_model(base.keras_file))
        write_text(run.store.folder / "plan.json", plan.to_json())
        return facts

    made = run.store.run("select", inputs, ["plan.json", *sensitivity_files(run.recipe)], make)
    return made, ChannelPlan.from_json(made.paths["plan.json"].read_text(encoding="utf-8"))


def remove(run: RunContext, base: Artifacts, chosen: Artifacts, plan: ChannelPlan) -> Artifacts:
    """Rebuild the original model without what the plan takes away."""
    inputs = run.inputs((), base) | {"plan": chosen.sha256["plan.json"]}

    def make(_: Path) -> Mapping[str, Any]:
        return run.save(remove_channels(load_model(base.keras_file), plan), "pruned.keras")

    return run.store.run("remove", inputs, ["pruned.keras"], make)


def repair(run: RunContext, base: Artifacts, chosen: Artifacts, plan: ChannelPlan, pruned: Artifacts) -> Artifacts:
    """Refit the layers that lost inputs, or re-estimate batch norms, or, as a baseline, draw all weights anew."""
    inputs = run.inputs((), base, pruned) | {"plan": chosen.sha256["plan.json"], "recipe": repair_fields(run.recipe)}

    def make(_: Path) -> Mapping[str, Any]:
        model = load_model(pruned.keras_file)
        if run.recipe.from_scratch:
            model, facts = reinitialize(model, run.recipe.seed), {"weights": "drawn anew"}
        else:
            pruning = Pruning(run.recipe, run.data, run.store.folder, run.log)
            facts = pruning.repair(model, load_model(base.keras_file), plan)
        return {**facts, **run.save(model, "repaired.keras")}

    return run.store.run("repair", inputs, ["repaired.keras"], make)

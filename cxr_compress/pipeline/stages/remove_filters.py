"""Taking filters away: choose them, rebuild the model without them, repair what is left without labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.files import write_text
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.models.variants import reinitialize
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.data import RunData
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.structured import (
    Budget,
    ChannelAnalysis,
    ChannelPlan,
    Sensitivity,
    images_that_fit,
    measure_sensitivity,
    recalibrate_batch_norm,
    reconstruct_consumers,
    remove_channels,
    remove_iteratively,
    score_channels,
    vary_images,
)
from cxr_compress.structured.criteria.base import CRITERIA
from cxr_compress.structured.sensitivity import SENSITIVITY_FRACTIONS
from cxr_compress.train import FitConfig
from cxr_compress.train.losses import make_loss
from cxr_compress.train.observe import observe

FloatArray = npt.NDArray[np.float32]
Scores = dict[str, npt.NDArray[np.float64]]
_PLAN = "plan.json"


class SelectFilters(Stage):
    """Analyze, score and select: the plan that meets the budget.

    Raises:
        BudgetError: the budget cannot be reached.
    """

    name, section, results = "select", "removal", (_PLAN, "sensitivity*.json")

    def when(self, recipe: Recipe) -> bool:
        """Where there is a budget."""
        return recipe.removal.removes_filters

    def plans(self, recipe: Recipe) -> bool:
        """It is the plan."""
        return True

    def files(self, run: RunContext, state: State) -> Sequence[str]:
        """The plan, and what was measured for it."""
        return [_PLAN, *sensitivity_files(run.recipe)]

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what it uses; and what layers cost."""
        table = None if state.costs is None else state.costs.to_json()
        return {**run.inputs((), state.original), "recipe": choosing_fields(run.recipe), "costs": table}

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Write the plan."""
        plain = FitConfig(epochs=1, activation=run.activation)
        labels = CRITERIA[run.recipe.removal.criterion].needs_labels
        # Labels that are drawn from the model's own probabilities have those of the plain loss.
        weights = run.pos_weight if run.labeled else np.ones_like(run.pos_weight)
        loss = make_loss(plain, weights) if labels else None
        pruning = Pruning(run.recipe, run.data, run.store.folder, run.log, loss, state.costs, run.activation)
        plan, facts = pruning.choose(load_model(state.original.keras_file))
        write_text(run.store.folder / _PLAN, plan.to_json())
        return facts

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """Rebuilding, training and scoring read the plan."""
        plan = ChannelPlan.from_json(made.paths[_PLAN].read_text(encoding="utf-8"))
        return replace(state, plan=plan, plan_hash=made.sha256[_PLAN], limits=made.facts["limits"])

    def seconds(self, pace: Pace) -> float:
        """By weights; measuring takes longer."""
        return 1.0


class RemoveFilters(Stage):
    """Rebuild the original model without what the plan takes away."""

    name, section, results = "remove", "removal", ("pruned.keras",)

    def when(self, recipe: Recipe) -> bool:
        """Where there is a budget."""
        return recipe.removal.removes_filters

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The original model and the plan."""
        return run.inputs((), state.original) | {"plan": state.plan_hash}

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Rebuild."""
        return run.save(remove_channels(load_model(state.original.keras_file), _plan(state)), *self.results)

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """The line of a delivered file names the repaired model alone."""
        return replace(state, model=made)

    def seconds(self, pace: Pace) -> float:
        """Rebuilding is quick."""
        return 0.05 * pace.layers


class RepairPruned(Stage):
    """Refit the layers that lost inputs, or re-estimate batch norms, or, as a baseline, draw all weights anew."""

    name, section, results = "repair", "recovery", ("repaired.keras",)

    def when(self, recipe: Recipe) -> bool:
        """Where there is a budget."""
        return recipe.removal.removes_filters

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what it uses; the plan and both models."""
        parents = run.inputs((), state.original, state.model)
        return parents | {"plan": state.plan_hash, "recipe": repair_fields(run.recipe)}

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Repair."""
        model = load_model(state.model.keras_file)
        facts: Mapping[str, Any] = {"weights": "drawn anew"}
        if run.recipe.recovery.from_scratch:
            model = reinitialize(model, run.recipe.run.seed)
        else:
            pruning = Pruning(run.recipe, run.data, run.store.folder, run.log)
            facts = pruning.repair(model, load_model(state.original.keras_file), _plan(state))
        return {**facts, **run.save(model, *self.results)}

    def seconds(self, pace: Pace) -> float:
        """Mostly a few passes of the images."""
        images = min(pace.recipe.recovery.reconstruction_images, pace.train)
        return images * 4 * pace.original + 0.2 * pace.layers


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
        activation: "sigmoid", or "softmax" for classes that exclude one another: what labels are drawn from.
    """

    recipe: Recipe
    data: RunData
    folder: Path
    log: Callable[[str], None]
    loss: Callable[[Any, Any], Any] | None = None
    cost_table: CostTable | None = None
    activation: str = "sigmoid"

    def choose(self, model: keras.Model) -> tuple[ChannelPlan, dict[str, Any]]:
        """The plan that prunes a model to the recipe's budget, and facts; `model` is left untouched.

        In several steps, batch norms are re-estimated after each, so that the next scores see a working model.

        Raises:
            BudgetError: the budget cannot be reached.
            CompressionError: options that do not fit the model.
        """
        removal, drawn = self.recipe.removal, None
        if CRITERIA[removal.criterion].needs_labels and not self.data.dataset.labeled:
            images = self.data.sample(removal.scoring_images, self.recipe.run.seed)
            drawn = draw_labels(observe(model, images, self.data.spec)[0], self.activation, self.recipe.run.seed)
        bounds: dict[str, Any] = removal.budget.bounds
        budget = Budget(**bounds)
        _, plan, plans = remove_iteratively(
            model,
            budget,
            functools.partial(self._score, drawn),
            steps=removal.steps,
            exclude=removal.exclude,
            allow_inexact=removal.allow_inexact,
            measure=self._measure if removal.measures else None,
            between=self._between,
            cost_table=self.cost_table,
            scope=removal.scope,
            round_to=removal.round_to,
            min_channels=removal.min_channels,
            max_removed_fraction=removal.max_removed_fraction,
            overrides=removal.overrides,
            layers=removal.remove_layers,
        )
        return plan, {
            "before": plan.before.to_dict(),
            "after": plan.after.to_dict(),
            "limits": budget.limits(plan.before),
            "steps": [step.after.to_dict() for step in plans],
        }

    def repair(self, pruned: keras.Model, model: keras.Model, plan: ChannelPlan) -> dict[str, Any]:
        """Repair what `plan` made of `model`, in place and without labels; facts."""
        if self.recipe.recovery.reconstruct:
            return {"reconstruction": self._reconstruct(pruned, model, plan)}
        # Not after a reconstruction: what it fitted holds under the statistics that it was fitted with.
        self._recalibrate(pruned, original=model, plan=plan)
        return {
            "recalibration": {"images": min(self.recipe.recovery.recalibration_images, len(self.data.train.images))}
        }

    def _score(self, drawn: FloatArray | None, model: keras.Model, analysis: ChannelAnalysis) -> Scores:
        removal = self.recipe.removal
        return score_channels(
            model,
            analysis,
            criterion=removal.criterion,
            batches=self._labeled(removal.scoring_images, drawn) if _scores_on_images(self.recipe) else None,
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
            fractions=SENSITIVITY_FRACTIONS if self.recipe.removal.measures_groups else (),
            layers=self.recipe.removal.remove_layers,
            cache=self.folder / sensitivity_files(self.recipe)[step - 1],
            progress=self.log,
        )

    def _between(self, pruned: keras.Model, step: int) -> None:
        if step < self.recipe.removal.steps:
            self._recalibrate(pruned)

    def _recalibrate(self, pruned: keras.Model, **reference: Any) -> None:
        recalibrate_batch_norm(pruned, self._images(self.recipe.recovery.recalibration_images), **reference)

    def _reconstruct(self, pruned: keras.Model, model: keras.Model, plan: ChannelPlan) -> dict[str, Any]:
        recovery, seed = self.recipe.recovery, self.recipe.run.seed
        sample = images = self.data.sample(recovery.reconstruction_images, seed)
        if recovery.vary_images:
            images = vary_images(images, most=images_that_fit(pruned, model, plan), seed=seed)
        report = reconstruct_consumers(pruned, model, plan, self.data.batches(images), seed=seed)
        before, after = (sum(errors[place] for errors in report.errors.values()) for place in range(2))
        return {
            "images": min(len(sample), report.images),
            "images_with_copies": report.images,
            "layers": len(report.errors),
            "error_before": before,
            "error_after": after,
            "left": dict(report.left),
        }

    def _images(self, count: int) -> Iterator[FloatArray]:
        return self.data.batches(self.data.sample(count, self.recipe.run.seed))

    def _labeled(self, count: int, drawn: FloatArray | None) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Batches of images with their labels, or with those that were drawn for them."""
        images, labels = self.data.sample_labeled(count, self.recipe.run.seed)
        labels = labels if drawn is None else drawn
        start = 0
        for batch in self.data.batches(images):
            yield batch, labels[start : start + len(batch)]
            start += len(batch)


def draw_labels(logits: FloatArray, activation: str, seed: int) -> FloatArray:
    """Labels (n, k) of 0 and 1 that the original model finds as likely as it says, for criteria that need a gradient.

    The loss against its own probabilities has no gradient at the model itself; against labels drawn from them the
    squared gradient is, in the mean, the Fisher information: what a change of a weight does to the answers.

    Source: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning" (arXiv 1801.05787),
    section 2.1.

    Args:
        logits: (n, k) of the original model.
        activation: "sigmoid", each finding drawn by itself, or "softmax", one class an image.
        seed: of the draw.
    """
    probabilities = probabilities_of(np.asarray(logits, np.float64), activation)
    random = np.random.default_rng(seed).random(len(probabilities) if activation == "softmax" else probabilities.shape)
    if activation != "softmax":
        return (random < probabilities).astype(np.float32)
    classes = (np.cumsum(probabilities, axis=1) < random[:, None]).sum(axis=1)
    return np.eye(probabilities.shape[1], dtype=np.float32)[np.minimum(classes, probabilities.shape[1] - 1)]


def _scores_on_images(recipe: Recipe) -> bool:
    """Whether the criterion looks at images, and not at weights alone."""
    return CRITERIA[recipe.removal.criterion].needs_images


def sensitivity_files(recipe: Recipe) -> tuple[str, ...]:
    """The files that measured sensitivity is kept in, one per step; none where the recipe does not ask for it."""
    if not recipe.removal.measures:
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
    if _scores_on_images(recipe):
        names.append("scoring_images")
    if recipe.removal.measures:
        names.append("sensitivity_images")
    if recipe.removal.remove_layers:
        names.append("remove_layers")
    # As pairs: the last match counts, and keys of a mapping are sorted before they are hashed.
    overrides = list(map(list, recipe.removal.overrides.items()))
    budget = recipe.removal.budget.bounds
    return {name: recipe.value(name) for name in names} | {"overrides": overrides, "budget": budget}


def repair_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides the repair."""
    names = ["from_scratch", "seed"]
    if not recipe.recovery.from_scratch:
        of_images = (
            ("reconstruction_images", "vary_images") if recipe.recovery.reconstruct else ("recalibration_images",)
        )
        names += ["reconstruct", *of_images]
    return {name: recipe.value(name) for name in names}


def _plan(state: State) -> ChannelPlan:
    assert state.plan is not None, "filters are selected before they are removed"
    return state.plan

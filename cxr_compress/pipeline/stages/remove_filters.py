"""Taking filters away: choose them, rebuild the model without them, repair what is left without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cxr_compress.device.atomic import write_text
from cxr_compress.models import load_model
from cxr_compress.models.reinitialize import reinitialize
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artefacts
from cxr_compress.pipeline.thinning import Thinning, choosing_fields, repair_fields, sensitivity_files
from cxr_compress.recipe import Recipe
from cxr_compress.structured import ChannelPlan, remove_channels
from cxr_compress.train import FitConfig
from cxr_compress.train.losses import make_loss

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
        loss = make_loss(plain, run.pos_weight) if run.recipe.removal.criterion == "taylor" else None
        thinning = Thinning(run.recipe, run.data, run.store.folder, run.news, loss, state.costs)
        plan, facts = thinning.choose(load_model(state.original.keras_file))
        write_text(run.store.folder / _PLAN, plan.to_json())
        return facts

    def after(self, run: RunContext, state: State, made: Artefacts) -> State:
        """Rebuilding, training and scoring read the plan."""
        plan = ChannelPlan.from_json(made.paths[_PLAN].read_text(encoding="utf-8"))
        return replace(state, plan=plan, plan_hash=made.sha256[_PLAN], limits=made.facts["limits"])

    def seconds(self, pace: Pace) -> float:
        """By weights; measuring takes longer."""
        return 1.0


class RemoveFilters(Stage):
    """Rebuild the original model without what the plan takes away."""

    name, section, results = "remove", "removal", ("thin.keras",)

    def when(self, recipe: Recipe) -> bool:
        """Where there is a budget."""
        return recipe.removal.removes_filters

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The original model and the plan."""
        return run.inputs((), state.original) | {"plan": state.plan_hash}

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Rebuild."""
        return run.save(remove_channels(load_model(state.original.keras_file), _plan(state)), *self.results)

    def after(self, run: RunContext, state: State, made: Artefacts) -> State:
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
            thinning = Thinning(run.recipe, run.data, run.store.folder, run.news)
            facts = thinning.repair(model, load_model(state.original.keras_file), _plan(state))
        return {**facts, **run.save(model, *self.results)}

    def seconds(self, pace: Pace) -> float:
        """Mostly a few passes of the images."""
        return pace.recipe.recovery.reconstruction_images * 4 * pace.original + 0.2 * pace.layers


def _plan(state: State) -> ChannelPlan:
    assert state.plan is not None, "filters are selected before they are removed"
    return state.plan

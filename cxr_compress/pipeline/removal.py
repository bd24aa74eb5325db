"""The stages that take filters away: choose them, rebuild without them, repair what is left without labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_compress.device.atomic import write_text
from cxr_compress.device.cost_table import CostTable
from cxr_compress.models import load_model
from cxr_compress.models.reinitialize import reinitialize
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.store import Artefacts
from cxr_compress.pipeline.thinning import Thinning, choosing_fields, repair_fields, sensitivity_files
from cxr_compress.structured import ChannelPlan, remove_channels
from cxr_compress.train import FitConfig
from cxr_compress.train.losses import make_loss


def choose(run: RunContext, base: Artefacts, cost_table: CostTable | None) -> tuple[Artefacts, ChannelPlan]:
    """Analyse, score and select: the plan that meets the budget.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    table = None if cost_table is None else cost_table.to_json()
    inputs = {**run.inputs((), base), "recipe": choosing_fields(run.recipe), "costs": table}

    def make(_: Path) -> Mapping[str, Any]:
        plain = FitConfig(epochs=1, activation=run.activation)
        loss = make_loss(plain, run.pos_weight) if run.recipe.criterion == "taylor" else None
        thinning = Thinning(run.recipe, run.data, run.store.folder, run.news, loss, cost_table)
        plan, facts = thinning.choose(load_model(base.keras_file))
        write_text(run.store.folder / "plan.json", plan.to_json())
        return facts

    made = run.store.run("select", inputs, ["plan.json", *sensitivity_files(run.recipe)], make)
    return made, ChannelPlan.from_json(made.paths["plan.json"].read_text(encoding="utf-8"))


def remove(run: RunContext, base: Artefacts, chosen: Artefacts, plan: ChannelPlan) -> Artefacts:
    """Rebuild the uncut model without what the plan takes away."""
    inputs = run.inputs((), base) | {"plan": chosen.sha256["plan.json"]}

    def make(_: Path) -> Mapping[str, Any]:
        return run.save(remove_channels(load_model(base.keras_file), plan), "thin.keras")

    return run.store.run("remove", inputs, ["thin.keras"], make)


def repair(run: RunContext, base: Artefacts, chosen: Artefacts, plan: ChannelPlan, thin: Artefacts) -> Artefacts:
    """Refit the layers that lost inputs, or re-estimate batch norms, or, as a baseline, draw all weights anew."""
    inputs = run.inputs((), base, thin) | {"plan": chosen.sha256["plan.json"], "recipe": repair_fields(run.recipe)}

    def make(_: Path) -> Mapping[str, Any]:
        model = load_model(thin.keras_file)
        if run.recipe.from_scratch:
            model, facts = reinitialize(model, run.recipe.seed), {"weights": "drawn anew"}
        else:
            thinning = Thinning(run.recipe, run.data, run.store.folder, run.news)
            facts = thinning.repair(model, load_model(base.keras_file), plan)
        return {**facts, **run.save(model, "repaired.keras")}

    return run.store.run("repair", inputs, ["repaired.keras"], make)

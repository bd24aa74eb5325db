"""What a run will give and about how long it will take, before it is started."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxr_compress.device.cost_table import CostTable
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.pipeline.announce import expected_seconds
from cxr_compress.pipeline.context import PREFLIGHT, RunContext
from cxr_compress.pipeline.data import Decoding
from cxr_compress.pipeline.run import open_run, results, run_stages, take_folder
from cxr_compress.pipeline.stage import Stage, State
from cxr_compress.pipeline.stages import STAGES
from cxr_compress.pipeline.stages.original import MakeOriginal, build_untrained
from cxr_compress.pipeline.stages.remove_filters import Pruning
from cxr_compress.pipeline.store import Log, StageStore, copy_for_forecast, refuse_foreign
from cxr_compress.recipe import Recipe
from cxr_compress.structured import ChannelPlan, measure_cost

_BOUNDS = {"tflite_bytes": "bytes", "latency_ms": "milliseconds"}
_LEAST_SECONDS = 0.1  # of a stage that is still to be done: 0 says that it stands


@dataclass(frozen=True)
class Forecast:
    """What is to be expected.

    Attributes:
        before: the cost of the original model: params, MACs, activation bytes, and bytes or milliseconds where bounded.
        after: of the compressed one; exact but for bytes and milliseconds. Empty where a budget of these is to be met
            by a model that is still to be trained: nothing is known of the plan then.
        certain: False where the plan was made on random weights, because the original model is still to be trained:
            with `scope="global"` the layers then come out with other widths.
        stages: stage -> about how many seconds, in order; stages that stand already count 0.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    certain: bool
    stages: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the sum."""
        return {**asdict(self), "seconds": round(sum(self.stages.values()))}


def forecast_run(
    recipe: Recipe,
    *,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None = None,
    latency_table: CostTable | None = None,
    log: Log = lambda line: None,
    decoding: Decoding = lambda split, done, total: None,
    overwrite: bool = False,
) -> Forecast:
    """Make the plan of a run, but nothing of what takes long, and say what follows from it.

    With a model from a file, or in the folder of a run whose original model is trained, the plan is the one that the
    run will use. It is made in a folder that is gone afterwards: `output_dir` is read where a run is there, and never
    written to or made. The times come from one batch through the original model and are good to about a factor of 1.5.

    Args:
        recipe: the choices.
        data_dir: where the data set lies; only read.
        output_dir: the folder of the run.
        keras_model_file: an original model to start from; None trains `recipe.model`.
        latency_table: layer times that a device measured; None measures them here.
        log: is told of stages and epochs, one line each.
        decoding: is told (split, images done, images in all) while images are read.
        overwrite: replace a run that started from another model or other data.

    Raises:
        BudgetError: the budget cannot be reached.
        CompressionError: and its other subclasses, also where the run itself would be refused.
    """
    refuse_foreign(output_dir, recipe, results(), overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="cxr_dry_run_") as scratch:
        copy_for_forecast(output_dir, Path(scratch), (PREFLIGHT, *(stage.name for stage in _planning(recipe))))
        run = open_run(recipe, data_dir, Path(scratch), keras_model_file, log, decoding, overwrite=overwrite)
        return _forecast(dataclasses.replace(run, latency_table=latency_table), StageStore(output_dir, log))


def _forecast(run: RunContext, kept: StageStore) -> Forecast:
    """The forecast, in a run of its own that may be written to; `kept` is the folder of the real one."""
    recipe, state = run.recipe, State()
    trained = run.original is not None or _is_trained(run)
    take_folder(run)
    if trained:
        state = run_stages(run, _planning(recipe))
        model, plan = load_model(state.original.keras_file), state.plan
    else:
        model = build_untrained(run)
        plan = _plan_untrained(run, model)
    before = after = measure_cost(model).to_dict()
    if plan is not None:
        before, after = plan.before.to_dict(), plan.after.to_dict()
    elif recipe.removal.removes_filters:
        after = {}
    # Parameters stand in where the MACs are not known: they too fall with the square of the widths.
    measure = "macs" if "macs" in before and "macs" in after else "params"
    stages = expected_seconds(run, model, after[measure] / before[measure] if after else 1.0)
    # What was made just now says how long it takes; what the real folder holds from before takes no time.
    made = {name: run.store.manifest(name) for name in stages}
    stages |= {name: max(_LEAST_SECONDS, manifest["seconds"]) for name, manifest in made.items() if manifest}
    stages |= dict.fromkeys(_kept(stages, recipe, kept, made), 0.0)
    return Forecast(before, after, trained, stages)


def _planning(recipe: Recipe) -> Iterator[Stage]:
    """The stages that the plan of a run comes from."""
    return (stage for stage in STAGES if stage.plans(recipe))


def _is_trained(run: RunContext) -> bool:
    """Whether the run has trained its original model before."""
    stage = next(stage for stage in STAGES if isinstance(stage, MakeOriginal))
    return run.store.stands(stage.name, stage.inputs(run, State()), stage.results)


def _plan_untrained(run: RunContext, model: keras.Model) -> ChannelPlan | None:
    """The plan on random weights, where it follows from the network alone; None where nothing is planned."""
    bounds = run.recipe.removal.budget.bounds
    if unplanned := [bound for bound in bounds if bound not in {"macs", "params"}]:
        words = " and ".join(_BOUNDS[name] for name in unplanned)
        run.log(
            f"a budget of {words} can only be planned once the original model is trained: what is left by it, and the "
            "times that follow from that, are not known yet"
        )
        return None
    return Pruning(run.recipe, run.data, run.store.folder, run.log).choose(model)[0] if bounds else None


def _kept(
    stages: Iterable[str], recipe: Recipe, kept: StageStore, made: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """The stages of the real folder that still hold: made by this recipe, and from what still holds."""
    now, changed = json.loads(json.dumps(recipe.by_flag())), False
    del now["options"]  # of reading: other ones give other images, and a run of other images is refused
    of_original = {stage.name for stage in STAGES if stage.of_original}
    for stage in stages:
        known = kept.manifest(stage)
        inputs = known.get("inputs", {})
        decided = {**inputs, **inputs.get("recipe", {})}
        if made[stage]:
            holds = made[stage]["key"] == known.get("key")
        else:
            holds = bool(known) and all(now.get(name, value) == value for name, value in decided.items())
        # What is made of the original model alone holds whatever becomes of the other stages.
        changed = changed or (not holds and stage not in of_original)
        if holds and (not changed or stage in of_original):
            yield stage

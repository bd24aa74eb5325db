"""What a run will give and about how long it will take, before it is started."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.cost_table import CostTable
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.data import Decoding
from cxr_compress.pipeline.ownership import copy_for_forecast, refuse_foreign
from cxr_compress.pipeline.run import open_run, price
from cxr_compress.pipeline.stages.base import BASE_FILES, base_inputs, build_untrained, make_base
from cxr_compress.pipeline.stages.deliver import export_original
from cxr_compress.pipeline.stages.remove_filters import Pruning, choose
from cxr_compress.pipeline.store import Log, StageStore
from cxr_compress.recipe import Recipe
from cxr_compress.structured import measure_cost

# Measured with DenseNet121 at 64 to 224 px on two cores; other networks and machines are near enough for a forecast.
_TRAINING_PER_INFERENCE = 3.5
_SECONDS_PER_TRAINED_LAYER = 0.2  # to trace and compile a training step
_SECONDS_PER_CONVERTED_LAYER = 0.03
_FIXED_SHARE = 0.12  # of the time of a layer that does not fall with its MACs
_BATCH = 16
# Made from the original model alone, whatever becomes of the other stages.
_OF_THE_ORIGINAL = ("export_original",)
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
            with ``scope="global"`` the layers then come out with other widths.
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
        recipe: as `run_recipe`, like all that is not named here.
        data_dir: see there.
        output_dir: see there.
        keras_model_file: see there.
        latency_table: see there.
        log: see there.
        decoding: see there.
        overwrite: see there.

    Raises:
        BudgetError: the budget cannot be reached.
        CompressionError: and its other subclasses, also where the run itself would be refused.
    """
    refuse_foreign(output_dir, recipe, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="cxr_dry_run_") as scratch:
        copy_for_forecast(output_dir, Path(scratch))
        run = open_run(recipe, data_dir, Path(scratch), keras_model_file, log, decoding, overwrite=overwrite)
        return _forecast(run, keras_model_file, latency_table, StageStore(output_dir, log))


def _forecast(
    run: RunContext, keras_model_file: Path | None, latency_table: CostTable | None, kept: StageStore
) -> Forecast:
    """The forecast, in a run of its own that may be written to; `kept` is the folder of the real one."""
    recipe = run.recipe
    trained = keras_model_file is not None or run.store.stands("base", base_inputs(run), BASE_FILES)
    if trained:
        base = make_base(run, keras_model_file)
        model = load_model(base.keras_file)
        before = after = measure_cost(model).to_dict()
        if recipe.removes_filters:
            _, plan = choose(run, base, price(run, base, lambda: export_original(run, base), latency_table))
            before, after = plan.before.to_dict(), plan.after.to_dict()
    else:
        model = build_untrained(run)
        before = after = measure_cost(model).to_dict()
        run.claim({"source": "a training", "training": base_inputs(run)["recipe"]})
        if unplanned := [bound for bound in recipe.budget if bound not in {"macs", "params"}]:
            bounds = " and ".join(_BOUNDS[name] for name in unplanned)
            run.log(
                f"a budget of {bounds} can only be planned once the original model is trained: what is left by "
                "it, and the times that follow from that, are not known yet"
            )
            after = {}
        elif recipe.removes_filters:
            plan, _ = Pruning(recipe, run.data, run.store.folder, run.log).choose(model)
            before, after = plan.before.to_dict(), plan.after.to_dict()
    # Parameters stand in where the MACs are not known: they too fall with the square of the widths.
    measure = "macs" if "macs" in before and "macs" in after else "params"
    stages = _seconds(run, model, after[measure] / before[measure] if after else 1.0)
    # What was made just now says how long it takes; what the real folder holds from before takes no time.
    made = {name: run.store.manifest(name) for name in stages}
    stages |= {name: max(_LEAST_SECONDS, manifest["seconds"]) for name, manifest in made.items() if manifest}
    stages |= dict.fromkeys(_kept(stages, recipe, kept, made), 0.0)
    return Forecast(before, after, trained, stages)


def _kept(
    stages: Iterable[str], recipe: Recipe, kept: StageStore, made: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """The stages of the real folder that still hold: made by this recipe, and from what still holds."""
    now, changed = json.loads(recipe.to_json()), False
    del now["options"]  # of reading: other ones give other images, and a run of other images is refused
    for stage in stages:
        known = kept.manifest(stage)
        inputs = known.get("inputs", {})
        decided = {**inputs, **inputs.get("recipe", {})}
        if made[stage]:
            holds = made[stage]["key"] == known.get("key")
        else:
            holds = bool(known) and all(now.get(name, value) == value for name, value in decided.items())
        if stage in _OF_THE_ORIGINAL:
            if holds:
                yield stage
            continue
        changed = changed or not holds
        if not changed:
            yield stage


def _seconds(run: RunContext, model: keras.Model, work_left: float) -> dict[str, float]:
    """Stage -> seconds, each as if nothing stood."""
    recipe, images = run.recipe, run.data
    image = _seconds_per_image(model)
    pruned = image * (_FIXED_SHARE + (1 - _FIXED_SHARE) * work_left)
    layers = len(list(model._flatten_layers(include_self=False)))
    teacher = image if recipe.distill_weight or recipe.feature_weight else 0.0

    def training(epochs: int, per_image: float, taught: float = teacher) -> float:
        step = per_image * _TRAINING_PER_INFERENCE + taught
        per_epoch = len(images.train.split) * step + len(images.dev.split) * per_image
        return epochs * per_epoch + _SECONDS_PER_TRAINED_LAYER * layers if epochs else 0.0

    conversion = _SECONDS_PER_CONVERTED_LAYER * layers + recipe.calibration_images * image
    scoring = (2 * image + pruned) * (len(images.dataset.test) + len(images.dev.split))
    stages: Mapping[str, tuple[bool, Callable[[], float]]] = {
        "base": (True, lambda: training(recipe.epochs, image, 0.0)),
        "select": (recipe.removes_filters, lambda: 1.0),
        "remove": (recipe.removes_filters, lambda: 0.05 * layers),
        "repair": (recipe.removes_filters, lambda: recipe.reconstruction_images * 4 * image + 0.2 * layers),
        "recover": (
            recipe.removes_filters and recipe.recovery_epochs > 0,
            lambda: training(recipe.recovery_epochs, pruned),
        ),
        "sparsify": (recipe.zeroes_weights, lambda: training(recipe.sparsity_epochs, pruned)),
        "finetune": (
            recipe.zeroes_weights and recipe.finetune_epochs > 0,
            lambda: training(recipe.finetune_epochs, pruned),
        ),
        "quantize": (True, lambda: conversion),
        "qat": (recipe.qat == "always", lambda: training(recipe.qat_epochs, 2 * pruned)),
        "export_original": (True, lambda: 2 * conversion),
        "export_compressed": (True, lambda: 2 * len(images.dev.split) * pruned),
        "score": (True, lambda: scoring),
    }
    return {name: max(_LEAST_SECONDS, round(seconds(), 1)) for name, (wanted, seconds) in stages.items() if wanted}


def _seconds_per_image(model: keras.Model) -> float:
    """Inference, from the second of two batches: the first one traces."""
    batch = np.zeros((_BATCH, *model.input_shape[1:]), np.float32)
    model.predict_on_batch(batch)
    started = time.perf_counter()
    model.predict_on_batch(batch)
    return (time.perf_counter() - started) / _BATCH

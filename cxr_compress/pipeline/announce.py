"""What is said before a run begins: whether it trains, why, and about how long it takes."""

from __future__ import annotations

import time

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.stage import Pace
from cxr_compress.pipeline.stages import STAGES
from cxr_compress.pipeline.stages.original import MakeOriginal, build_untrained
from cxr_compress.recipe import Recipe, is_labeled
from cxr_compress.structured import measure_cost

_FIXED_SHARE = 0.12  # of the time of a layer that does not fall with its MACs
_BATCH = 8
_LEAST_SECONDS = 0.1
_NAMED_SHARE = 0.15  # of the whole, from which on a stage is named
_MINUTE = 60


def tell_way(recipe: Recipe, *, trains_original: bool) -> str:
    """One line: whether anything is trained, what it follows, and which flags decide that.

    Args:
        recipe: the choices.
        trains_original: no model is given.
    """
    stages = [stage for stage in STAGES if stage.trains and stage.when(recipe)]
    named = [stage.name for stage in stages if trains_original or not isinstance(stage, MakeOriginal)]
    maybe = recipe.export.qat.when == "auto"
    sure = [name for name in named if not (maybe and name == "qat")]
    labeled = is_labeled(recipe)
    if not sure:
        also = "; int8 is trained only where int8 without training misses what it must keep" if "qat" in named else ""
        return (
            "way: no training, as nothing asks for it (--recovery_epochs=0, no weights to zero): filters go, and what "
            f"is left is refitted by least squares, without gradients{also}"
        )
    weight = recipe.recovery.distill_weight
    follows = "the original model alone, as there are no labels"
    if labeled:
        follows = "the labels" if not weight else f"the labels and, by {weight:g}, the original model"
    fast = "" if labeled else "; --recovery_epochs=0 goes without any"
    return f"way: training in {', '.join(sure)}, which follows {follows}{fast}"


def tell_time(run: RunContext) -> str:
    """One line: about how many minutes from here, and what takes most of them."""
    model = run.original.model if run.original is not None else build_untrained(run)
    stages = expected_seconds(run, model, _work_left(run.recipe, model))
    total = sum(stages.values())
    longest = sorted(stages.items(), key=lambda item: -item[1])
    named = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in longest if seconds > _NAMED_SHARE * total)
    return f"about {_minutes(total)} from here on this machine ({named}); what stands already takes none"


def _minutes(seconds: float) -> str:
    return f"{seconds / _MINUTE:.0f} min" if seconds >= 2 * _MINUTE else f"{max(seconds, 1):.0f} s"


def _work_left(recipe: Recipe, model: keras.Model) -> float:
    """About which share of the work the pruned model has; what a budget of bytes or milliseconds leaves is a guess."""
    bounds = recipe.removal.budget.bounds
    macs = bounds.get("macs", 0.5 if bounds else 1.0)
    return macs if macs <= 1 else min(1.0, macs / (measure_cost(model).macs or macs))


def expected_seconds(run: RunContext, model: keras.Model, work_left: float) -> dict[str, float]:
    """Stage -> seconds, each as if nothing stood.

    Args:
        run: the run, its images read.
        model: the original, or an untrained one of its kind.
        work_left: share of the multiply-accumulates that the pruned model has.
    """
    original, data = _seconds_per_image(model), run.data
    pace = Pace(
        recipe=run.recipe,
        layers=len(list(model._flatten_layers(include_self=False))),
        original=original,
        pruned=original * (_FIXED_SHARE + (1 - _FIXED_SHARE) * work_left),
        train=len(data.train.split),
        dev=len(data.dev.split),
        test=len(data.dataset.test),
    )
    expected = {stage.name: stage.seconds(pace) for stage in STAGES if stage.when(run.recipe)}
    if run.original is not None:
        expected[MakeOriginal.name] = _LEAST_SECONDS  # it is there already
    return {name: max(_LEAST_SECONDS, round(seconds, 1)) for name, seconds in expected.items() if seconds}


def _seconds_per_image(model: keras.Model) -> float:
    """Inference, from the second of two batches: the first one sets up what the second has."""
    batch = np.zeros((_BATCH, *model.input_shape[1:]), np.float32)
    model(batch, training=False)
    started = time.perf_counter()
    model(batch, training=False)
    return (time.perf_counter() - started) / _BATCH

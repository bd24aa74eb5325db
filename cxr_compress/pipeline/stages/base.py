"""The original model of a run: trained or taken from a file, looked at on dev, priced where bytes or time count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cxr_compress.device.atomic import write_text
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.spec import preset_name
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate.first_look import Answer, FirstLook, take_first_look
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet, load_model, read_about, tiny_chexnet
from cxr_compress.models.original import rising_scores
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.costing import make_probe_pack, measure_costs
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artefacts
from cxr_compress.recipe import Recipe
from cxr_compress.structured.sensitivity_cache import model_hash

_IMAGE_RANK = 4  # images, height, width, channels
ARCHITECTURES = {"chexnet": chexnet, "tiny_chexnet": tiny_chexnet}
# Ranges hardly change the size of a file or the time of a kernel: a few films do.
_PRICING_IMAGES = 16
_SECONDS_PER_PRICED_LAYER = 0.1


class MakeOriginal(Stage):
    """Train the original model, or take it from a file, brought to logits."""

    name, section, results = "base", "training", ("base.keras",)
    of_original = True

    def plans(self, recipe: Recipe) -> bool:
        """A plan is made of its weights."""
        return True

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The training, or the weights of the given model and what they mean."""
        if run.original is None:
            return run.inputs(("model", "input_size", "epochs", "learning_rate", *OF_TRAINING))
        return {
            "weights": model_hash(run.original.model),
            "findings": list(run.data.dataset.findings),
            "preprocess": run.data.spec.to_dict(),
            "activation": run.activation,
        }

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Train or take it."""
        if run.original is None:
            training = run.recipe.training
            keras.utils.set_random_seed(run.recipe.run.seed)
            model = build_untrained(run)
            facts = run.train(model, run.config(training.epochs, training.learning_rate), work)
            return {**facts, **run.save(model, *self.results)}
        change = run.original.change
        if not change.activation and run.original.about is None and run.activation == "softmax":
            run.news("base: its outputs are taken for logits of the set's classes, which exclude one another (softmax)")
        return {**run.save(run.original.model, *self.results), "head": asdict(change)}

    def after(self, run: RunContext, state: State, made: Artefacts) -> State:
        """Everything starts from it."""
        return replace(state.with_model(made), original=made)

    def seconds(self, pace: Pace) -> float:
        """A training without a teacher."""
        return pace.training(pace.recipe.training.epochs, pace.original, taught=False)


class LookAtOriginal(Stage):
    """Score the original model on dev, once a run, and refuse to build on one that is no better than chance."""

    name, section, results = "look", "run", ("original.json",)
    of_original = True

    def plans(self, recipe: Recipe) -> bool:
        """A forecast of a run that will be refused helps nobody."""
        return True

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The model, and what is taken for granted about it."""
        said = {"preprocess": run.data.spec.to_dict(), "assumed": _assumed(run)}
        return {**run.inputs(("seed",), state.original), **said}

    def make(self, run: RunContext, state: State, work: Path) -> None:
        """Score it."""
        look = take_first_look(
            _answer(run, state.original),
            run.data.dev.images,
            run.data.dev.split.labels,
            run.data.dev.split.patients,
            run.data.dataset.findings,
            spec=run.data.spec,
            assumed=_assumed(run),
            seed=run.recipe.run.seed,
            unsaid=run.original is not None and run.original.unsaid and run.activation == "sigmoid",
        )
        write_text(run.store.folder / self.results[0], json.dumps(look.to_dict(), indent=2) + "\n")

    def after(self, run: RunContext, state: State, made: Artefacts) -> State:
        """Say what came out.

        Raises:
            CompressionError: it is no better than chance, and the recipe does not force it.
        """
        found = json.loads(made.paths[self.results[0]].read_text(encoding="utf-8"))
        look = FirstLook.from_dict(found)
        run.news(look.line())
        if look.problem and not run.recipe.run.force:
            raise CompressionError(f"{look.problem}: correct that, or go on with --force")
        if look.problem:
            run.news(f"warning: {look.problem}; going on (--force)")
        return replace(state, look=found)


class PriceLayers(Stage):
    """What bytes and milliseconds are spent on, where the recipe bounds them; times are measured only once."""

    name, section, results = "price", "removal", ("costs.json",)
    of_original = True

    def when(self, recipe: Recipe) -> bool:
        """Where bytes or milliseconds are bounded."""
        return any(_wanted(recipe).values())

    def plans(self, recipe: Recipe) -> bool:
        """A plan that keeps such a bound needs it."""
        return True

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The original model, what is bounded, and the times that were given."""
        want, given = _wanted(run.recipe), _given_times(run)
        table = given.to_json() if given is not None else None
        return {**run.inputs(("quant_type", "seed"), state.original), "want": want, "table": table}

    def make(self, run: RunContext, state: State, work: Path) -> None:
        """Measure."""
        want = _wanted(run.recipe)
        table = measure_costs(
            load_model(state.original.keras_file),
            run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.run.seed)),
            run.recipe.export.quant_type,
            want_bytes=want["tflite_bytes"],
            want_latency=want["latency_ms"],
            latency_table=_given_times(run),
            int8_file=state.references["int8"].read_bytes() if want["tflite_bytes"] else None,
            progress=run.news,
        )
        write_text(run.store.folder / self.results[0], table.to_json())

    def after(self, run: RunContext, state: State, made: Artefacts) -> State:
        """Selecting filters reads it."""
        return replace(state, costs=CostTable.from_json(made.paths[self.results[0]].read_text(encoding="utf-8")))

    def seconds(self, pace: Pace) -> float:
        """Timing the layers, where no device did."""
        return _SECONDS_PER_PRICED_LAYER * pace.layers


def write_probes(run: RunContext, original: Artefacts, path: Path) -> None:
    """What a device needs to time the layers of the original model, as one file."""
    images = run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.run.seed))
    quant_type = run.recipe.export.quant_type
    make_probe_pack(load_model(original.keras_file), path, quant_type, calibration=images, progress=run.news)


def architecture(name: str) -> Any:
    """The builder of a named architecture.

    Raises:
        CompressionError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise CompressionError(f"expected a model of {', '.join(sorted(ARCHITECTURES))}, got {name!r}")
    return ARCHITECTURES[name]


def build_untrained(run: RunContext) -> keras.Model:
    """The architecture of the recipe, with random weights."""
    size = run.recipe.model.input_size
    return architecture(run.recipe.model.name)(
        num_classes=len(run.data.dataset.findings), input_shape=(size, size, run.data.spec.channels)
    )


def image_size(keras_model_file: Path) -> int | None:
    """Height and width in pixels of the images that a model takes; None where `read_original` refuses it.

    Raises:
        CompressionError: the images are not square, or the model leaves their size open and says nothing of it.
        ModelFileError: the file cannot be read.
    """
    about = read_about(keras_model_file) if keras_model_file.is_file() else None
    if about is not None:
        sides: tuple[int | None, ...] = about.preprocess.height, about.preprocess.width
    else:
        model = load_model(keras_model_file)
        if len(model.inputs) != 1 or len(model.input_shape) != _IMAGE_RANK:
            return None
        sides = tuple(model.input_shape[1:3])
    if None in sides:
        raise CompressionError(
            f"{keras_model_file.name} leaves the size of its images open: save it with a fixed input size"
        )
    if sides[0] != sides[1]:
        raise CompressionError(
            f"{keras_model_file.name} takes images of {sides[0]} x {sides[1]}, a run makes square ones"
        )
    return sides[0]


def _wanted(recipe: Recipe) -> dict[str, bool]:
    """Which costs have to be known by layer."""
    return {name: name in recipe.removal.budget.bounds for name in ("tflite_bytes", "latency_ms")}


def _given_times(run: RunContext) -> CostTable | None:
    """The layer times of a device, where they are of use."""
    return run.latency_table if _wanted(run.recipe)["latency_ms"] else None


def _assumed(run: RunContext) -> str:
    """What is taken for granted about the original model, in one line."""
    findings, spec = run.data.dataset.findings, run.data.spec
    if run.original is not None:
        where = run.original.pixels.source if run.original.pixels.spec is not None else "the clear best on dev"
        return run.original.assumed(findings, spec, where, activation=run.activation)
    kind = "classes that exclude one another" if run.activation == "softmax" else "findings"
    size = f"{spec.height} x {spec.width} px"
    return f"{kind} {', '.join(findings)}; preprocessing {preset_name(spec)} at {size} (trained so here)"


def _answer(run: RunContext, original: Artefacts) -> Answer:
    """Scores of the original model as the run keeps it."""
    model = load_model(original.keras_file)
    return lambda images: rising_scores(model(images, training=False), run.activation)

"""The original model of a run, trained here or read from a file, and its look: how it scores on dev before all else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cxr_compress.data import Dataset
from cxr_compress.device.spec import PreprocessSpec, preset_name
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.evaluate import match_findings
from cxr_compress.evaluate.first_look import Answer, FirstLook, settle_on_dev, take_first_look
from cxr_compress.evaluate.variety import Variety
from cxr_compress.files import write_text
from cxr_compress.keras2 import keras
from cxr_compress.metrics.answers import AnswerStatistics
from cxr_compress.models import build, load_model, read_about
from cxr_compress.models.meaning import ask_for_preset, possible_presets
from cxr_compress.models.original import Original, read_original, rising_scores
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.data import RunData
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.structured.sensitivity import model_hash
from cxr_compress.train.observe import remember, statistics_of

_LOOKED_AT = 128  # images without labels: enough to miss a side that a tenth of them has once in a million times
_IMAGE_RANK = 4  # images, height, width, channels


class MakeOriginal(Stage):
    """Train the original model, or take it from a file, brought to logits."""

    name, section, results = "base", "training", ("base.keras",)
    trains = True
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
            options: dict[str, Any] = {
                "pos_weight": run.pos_weight,
                "activation": run.activation,
                "seed": run.recipe.run.seed,
            }
            remembered = remember(model, run.data.train.images, run.data.dev.pair, run.data.spec, **options)
            return {**facts, **run.save(model, *self.results, **remembered)}
        change = run.original.change
        if not change.activation and run.original.about is None and run.activation == "softmax":
            run.log("base: its outputs are taken for logits of the set's classes, which exclude one another (softmax)")
        remembered = {"answers": _remembered(run), "thresholds": _remembered_thresholds(run)}
        return {**run.save(run.original.model, *self.results, **remembered), "head": asdict(change)}

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """Everything starts from it."""
        return replace(state.with_model(made), original=made)

    def seconds(self, pace: Pace) -> float:
        """A training without a teacher."""
        return pace.training(pace.recipe.training.epochs, pace.original, taught=False)


def _remembered(run: RunContext) -> AnswerStatistics | None:
    """What the file of the given model records of its training images; None of other findings, or where it does not."""
    about = run.original.about if run.original is not None else None
    known = about.answers if about is not None else None
    return known if known is not None and len(known.mean) == len(run.data.dataset.findings) else None


def _remembered_thresholds(run: RunContext) -> tuple[float, ...] | None:
    about = run.original.about if run.original is not None else None
    return run.thresholds if about is not None and about.thresholds == run.thresholds else None


def build_untrained(run: RunContext) -> keras.Model:
    """The architecture of the recipe, with random weights."""
    size = run.recipe.model.input_size
    return build(run.recipe.model.name, len(run.data.dataset.findings), (size, size, run.data.spec.channels))


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


def open_original(recipe: Recipe, keras_model_file: Path, log: Callable[[str], None]) -> Original:
    """Load the model to start from and find out what it means.

    Raises:
        UnsupportedLayerError: it ends in probabilities of which no logits can be had, which training needs.
        CompressionError: something has to be said about it; the message names the flag.
    """
    original = read_original(
        keras_model_file,
        labels=recipe.model.labels,
        positive=recipe.model.positive,
        preset=recipe.model.preset or None,
        color=recipe.model.color or None,
        input_size=recipe.model.input_size,
        force=recipe.run.force,
    )
    _check_size(original, recipe.model.input_size)
    for note in original.notes():
        log(f"original model: {note}")
    if original.change.gives != "logits":
        raise UnsupportedLayerError(
            f"expected a model of which logits can be had, which fine-tuning needs, but {original.change.note}: give "
            "the model a Dense layer of logits as its head; cxr_convert exports it as it is"
        )
    return original


def _check_size(original: Original, size: int) -> None:
    height, width, channels = original.image_shape
    if (height or size, width or size) != (size, size):
        raise CompressionError(
            f"the model takes images of {(height, width, channels)}, the run makes {(size, size, channels)}: give the "
            "size of the model as --input_size"
        )


def match_data(recipe: Recipe, dataset: Dataset, original: Original, log: Callable[[str], None]) -> Dataset:
    """The data set with the findings of the model, in the order of its outputs.

    Raises:
        DataError: outputs and findings do not belong together by name, or not all do.
    """
    by_position, count = recipe.model.match == "position", original.change.outputs
    if not dataset.labeled:
        if original.names.findings is None:
            raise CompressionError(
                f"{original.path.name} does not name its {count} outputs, and images without labels name none: name "
                "them in their order with --labels"
            )
        return dataset.with_unknown(original.names.findings)
    match = match_findings(original.names.findings, dataset.findings, logits=count, by_position=by_position)
    if match.only_model:
        raise CompressionError(
            f"the model also answers {', '.join(match.only_model)}, which {dataset.name} says nothing about: give a "
            "data set with labels for every output, or a model of the findings alone"
        )
    if match.only_dataset:
        log(f"note: the model does not answer {', '.join(match.only_dataset)}, which {dataset.name} has: left out")
    order = sorted(range(count), key=lambda place: match.logits[place])
    return dataset.with_columns([match.labels[place] for place in order])


def any_preset(original: Original, recipe: Recipe) -> PreprocessSpec:
    """Some preprocessing that the model may have been trained with: images are decoded alike for all of them."""
    size = recipe.model.input_size
    specs = possible_presets((size, size, original.image_shape[2]), color=recipe.model.color or None)
    return next(iter(specs.values()))


def settle_data(
    recipe: Recipe, data: RunData, original: Original, log: Callable[[str], None]
) -> tuple[RunData, Original]:
    """The data with the preprocessing that the model was trained with, and the model with what --force overrules.

    What its file says counts. What the user or its own layers say is held against dev, and dev decides where nobody
    says anything.

    Raises:
        DataError: dev cannot tell, or shows that another preset is better than the user's.
    """
    size = (data.spec.height, data.spec.width)
    pixels, own = original.pixels, original.pixels.spec
    if own is not None:
        own = dataclasses.replace(own, height=size[0], width=size[1])
        if not pixels.preset:
            return dataclasses.replace(data, spec=own), original
    specs = possible_presets((*size, data.spec.channels), color=recipe.model.color or None)
    images, labels = data.dev.pair
    spec, against = settle_on_dev(
        original.answer(),
        images,
        labels,
        data.dev.split.patients,
        specs,
        preset=pixels.preset,
        own=own,
        ask=ask_for_preset(original.path.name),
        tell=lambda line: log(f"original model: {line}"),
        doubt=pixels.doubt,
        force=recipe.run.force,
        seed=recipe.run.seed,
    )
    if against:
        log(f"warning: {against}; going on (--force)")
        pixels = dataclasses.replace(pixels, source=f"{pixels.source}, forced: {against}")
        original = dataclasses.replace(original, pixels=pixels)
    return dataclasses.replace(data, spec=spec), original


class LookAtOriginal(Stage):
    """Score the original model on dev, once a run, and refuse to build on one that is no better than chance."""

    name, section, results = "look", "run", ("original.json",)
    of_original = True

    def plans(self, recipe: Recipe) -> bool:
        """A forecast of a run that will be refused helps nobody."""
        return True

    def seconds(self, pace: Pace) -> float:
        """Some images through the original model."""
        return _LOOKED_AT * pace.original

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The model, and what is taken for granted about it."""
        said = {"preprocess": run.data.spec.to_dict(), "assumed": _assumed(run)}
        return {**run.inputs(("seed",), state.original), **said}

    def make(self, run: RunContext, state: State, work: Path) -> None:
        """Score it, or without labels see what it says of the images."""
        look = self._labeled_look(run, state) if run.labeled else self._unlabeled_look(run, state)
        write_text(run.store.folder / self.results[0], json.dumps(look.to_dict(), indent=2) + "\n")

    def _labeled_look(self, run: RunContext, state: State) -> FirstLook:
        return take_first_look(
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

    def _unlabeled_look(self, run: RunContext, state: State) -> Variety:
        found = statistics_of(
            load_model(state.original.keras_file),
            run.data.train.images,
            run.data.spec,
            pos_weight=run.pos_weight,
            thresholds=run.thresholds,
            activation=run.activation,
            seed=run.recipe.run.seed,
            most=_LOOKED_AT,
        )
        return Variety(run.data.dataset.findings, found, _remembered(run), _assumed(run))

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """Say what came out.

        Raises:
            CompressionError: it is no better than chance, and the recipe does not force it.
        """
        found = json.loads(made.paths[self.results[0]].read_text(encoding="utf-8"))
        look = FirstLook.from_dict(found) if run.labeled else Variety.from_dict(found)
        run.log(look.line())
        for warning in found.get("warnings", ()):
            run.log(f"warning: {warning}")
        if look.problem and not run.recipe.run.force:
            raise CompressionError(f"{look.problem}: correct that, or go on with --force")
        if look.problem:
            run.log(f"warning: {look.problem}; going on (--force)")
        return dataclasses.replace(state, look=found)


def _assumed(run: RunContext) -> str:
    """What is taken for granted about the original model, in one line."""
    findings, spec = run.data.dataset.findings, run.data.spec
    if run.original is not None:
        where = run.original.pixels.source if run.original.pixels.spec is not None else "the clear best on dev"
        return run.original.assumed(findings, spec, where, activation=run.activation)
    kind = "classes that exclude one another" if run.activation == "softmax" else "findings"
    size = f"{spec.height} x {spec.width} px"
    return f"{kind} {', '.join(findings)}; preprocessing {preset_name(spec)} at {size} (trained so here)"


def _answer(run: RunContext, original: Artifacts) -> Answer:
    """Scores of the original model as the run keeps it."""
    model = load_model(original.keras_file)
    return lambda images: rising_scores(model(images, training=False), run.activation)

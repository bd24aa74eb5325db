"""The original model of a run, trained here or read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import build, load_model, read_about
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.structured.sensitivity import model_hash

_IMAGE_RANK = 4  # images, height, width, channels


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
            run.log("base: its outputs are taken for logits of the set's classes, which exclude one another (softmax)")
        return {**run.save(run.original.model, *self.results), "head": asdict(change)}

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """Everything starts from it."""
        return replace(state.with_model(made), original=made)

    def seconds(self, pace: Pace) -> float:
        """A training without a teacher."""
        return pace.training(pace.recipe.training.epochs, pace.original, taught=False)


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

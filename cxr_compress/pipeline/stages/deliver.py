"""The files of a run: those of the original model, to compare with, and those of the compressed one, which ship."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.files import write_bytes
from cxr_compress.lite import LiteModel, audit, convert
from cxr_compress.lite.parity import Reference, compare_answers, require_answers
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import (
    RunContext,
    check_sparsity,
    dev_logits,
    original_dev_logits,
    pack,
    recipe_in_file,
)
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.sparsity import measure_sparsity


class DeliverOriginal(Stage):
    """The original model as float32 and, where it has that form, int8: what every compressed file is compared with."""

    name, section, results = "export_original", "export", ("{model}_fp32.tflite", "{model}_int8.tflite")
    of_original = True

    def plans(self, recipe: Recipe) -> bool:
        """A budget of bytes is counted in its int8 file."""
        return "tflite_bytes" in recipe.removal.budget.bounds

    def files(self, run: RunContext, state: State) -> Sequence[str]:
        """One a quant type."""
        return _files(_original_names(run))

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what fixes ranges; what a file says about itself."""
        said = ("model", "dataset", "input_size", "dev_fraction", "seed")
        ranges = (*run.calibration_flags, "calibration_method", "percentile")
        return run.inputs((*said, *ranges), state.original)

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Convert and pack."""
        export, names = run.recipe.export, _original_names(run)
        images = run.calibration_sample()
        made = convert(
            load_model(state.original.keras_file),
            list(names),
            calibration=run.data.batches(images),
            calibration_steps=max(len(images), export.calibration_images),
            calibration_method=export.calibration_method,
            percentile=export.percentile,
            force=run.recipe.run.force,
            progress=run.log,
        )
        recipe = self.inputs(run, state)["recipe"]
        float_logits = None if run.labeled else dev_logits(run, made["none"].content)
        for quant_type, lite in made.items():
            follow = float_logits if quant_type != "none" else None
            packed = pack(run, lite, names[quant_type], state.original.sha256, recipe, original=True, follow=follow)
            write_bytes(run.store.folder / f"{names[quant_type]}.tflite", packed)
        return {names[quant_type]: lite.audit.to_dict() for quant_type, lite in made.items()}

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """The rows of the report beside which the compressed file stands."""
        names = _original_names(run)
        return replace(state, references={kind: made.paths[f"{name}.tflite"] for kind, name in names.items()})

    def seconds(self, pace: Pace) -> float:
        """Two conversions."""
        return 2 * pace.conversion()


class DeliverCompressed(Stage):
    """The compressed files with all that they say about themselves.

    Raises:
        CompressionError: a file has lost zeros, or answers unlike the network that it was made from.
    """

    name, section, results = "export_compressed", "export", ("{model}_*.tflite",)

    def files(self, run: RunContext, state: State) -> Sequence[str]:
        """The file that ships, and its float twin."""
        return _files(compressed_names(run.recipe))

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The flatbuffers, and all that is written into them."""
        names = compressed_names(run.recipe)
        raw = {kind: hashlib.sha256(state.flatbuffers[kind].read_bytes()).hexdigest() for kind in names}
        more = {"recipe": _recipe(run, state), "names": names, "raw": raw, "line": dict(state.line)}
        return run.inputs((), state.model) | more

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Check and pack."""
        zeroes = run.recipe.sparsity.zeroes_weights
        sparsity = measure_sparsity(load_model(state.model.keras_file)).total if zeroes else 0.0
        facts, recipe, raw = {}, _recipe(run, state), {}
        follow = None if run.labeled else original_dev_logits(run, state.references)
        for quant_type, name in compressed_names(run.recipe).items():
            raw[quant_type] = state.flatbuffers[quant_type].read_bytes()
            lite = LiteModel(raw[quant_type], quant_type, audit(raw[quant_type]))
            check_sparsity(lite, sparsity)
            write_bytes(run.store.folder / f"{name}.tflite", pack(run, lite, name, state.line, recipe, follow=follow))
            facts[name] = lite.audit.to_dict()
        return facts | ({"answers": _answers(run, raw)} if len(raw) > 1 else {})

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """What ships."""
        return replace(state, delivered=made.paths[f"{run.recipe.name}.tflite"], answers=made.facts.get("answers"))

    def seconds(self, pace: Pace) -> float:
        """Thresholds and calibration look at dev."""
        return 2 * pace.dev * pace.pruned


def compressed_names(recipe: Recipe) -> dict[str, str]:
    """Quant type -> file name; the float twin comes along, because there zeros can be counted exactly."""
    quant_type = recipe.export.quant_type
    names = {quant_type: recipe.name}
    if quant_type != "none":
        names["none"] = f"{recipe.name.removesuffix(f'_{quant_type}')}_fp32"
    return names


def _original_names(run: RunContext) -> dict[str, str]:
    """Quant type -> file name, without its ending, of the references."""
    model = run.recipe.model.name
    return {"none": f"{model}_fp32", **({} if run.preflight.int8 else {"int8": f"{model}_int8"})}


def _recipe(run: RunContext, state: State) -> dict[str, Any]:
    return recipe_in_file(run.recipe) | {"quantized": state.quantization.get("used", "")}


def _answers(run: RunContext, raw: Mapping[str, bytes]) -> dict[str, Any]:
    """The answers of the compressed file on dev beside those of its float twin, JSON-ready.

    Raises:
        CompressionError: it answers the same to everything, or unlike its twin, and the recipe does not force it.
    """
    exact, logits = (dev_logits(run, raw[quant_type]) for quant_type in ("none", run.recipe.export.quant_type))
    reference = Reference(run.data.dev.images, np.asarray(exact, np.float64), "dev images")
    found = compare_answers(logits, exact, reference.source, "")
    require_answers(found, reference, run.recipe.name, force=run.recipe.run.force)
    text = found.to_text(run.data.dataset.findings).replace("against the model", "against its float twin", 1)
    run.log(f"{run.recipe.name}: {text}")
    return {**found.to_dict(), "text": text, "constant": [run.data.dataset.findings[k] for k in found.constant]}


def _files(names: Mapping[str, str]) -> list[str]:
    return [f"{name}.tflite" for name in names.values()]

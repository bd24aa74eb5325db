"""From the compressed float model to integers: after training where that is enough, in training where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import measure_agreement, measure_degradation, undo_class_weights
from cxr_compress.evaluate.degradation import training_loss
from cxr_compress.files import write_bytes
from cxr_compress.lite import convert
from cxr_compress.lite.qat import convert_qat, prepare_qat
from cxr_compress.models import load_model
from cxr_compress.models.zeros import zero_masks
from cxr_compress.pipeline.context import OF_TRAINING, RunContext, answers_of, dev_logits, original_dev_logits
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe

_FLOAT = "quantized/float.tflite"
_AFTER_TRAINING = "quantized/after_training.tflite"
_IN_TRAINING = "quantized/in_training.tflite"
_LARGEST_LABELS = 16_000  # bytes that findings, thresholds, recipe and reference outputs add to a file
_FLAGS = ("quant_type", "calibration_method", "percentile", "auto_fallback")


class Quantize(Stage):
    """Convert; of an int8 file say what it did on dev."""

    name, section, results = "quantize", "export", (_FLOAT, _AFTER_TRAINING)

    def files(self, run: RunContext, state: State) -> Sequence[str]:
        """The float file and, where the recipe asks for one, its twin."""
        return list(_names(run.recipe).values())

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what the quant type uses."""
        export = run.recipe.export
        flags: tuple[str, ...] = ("quant_type", *((*run.calibration_flags, "seed") if export.calibrates else ()))
        if export.quantizes:
            flags = (*_FLAGS, *run.calibration_flags, _limit(run), "seed")
        return run.inputs(flags, state.model)

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Convert and judge."""
        export, names = run.recipe.export, _names(run.recipe)
        images = run.calibration_sample()
        made = convert(
            load_model(state.model.keras_file),
            list(names),
            calibration=run.data.batches(images),
            calibration_steps=max(len(images), export.calibration_images),
            calibration_method=export.calibration_method,
            percentile=export.percentile,
            auto_fallback=export.auto_fallback,
            compare=False,  # a file that rounding has made dumb is judged on dev, where training may still mend it
            progress=run.log,
        )
        for quant_type, lite in made.items():
            write_bytes(run.store.folder / names[quant_type], lite.content)
        facts: dict[str, Any] = {"audit": made[export.quant_type].audit.to_dict()}
        if not export.quantizes:
            return facts
        return facts | _judged(run, state, made[export.quant_type].content, made["none"].content)

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """Both files, and why no training will follow where it would have to."""
        export = run.recipe.export
        files = {quant_type: made.paths[name] for quant_type, name in _names(run.recipe).items()}
        facts = dict(made.facts) if export.quant_type != "none" else {}
        if export.quantizes:
            facts["used"] = "after training"
            if run.preflight.qat and _wants_training(run, facts):
                facts["qat_not_taken"] = run.preflight.qat
                run.log(f"qat: {run.preflight.qat}; int8 after training is kept")
        return replace(state, flatbuffers=files, quantization=facts)

    def seconds(self, pace: Pace) -> float:
        """A conversion."""
        return pace.conversion()


class TrainQuantized(Stage):
    """Train on with the rounding of int8 in the loop, then convert."""

    name, section, results = "qat", "export", (_IN_TRAINING,)
    trains = True

    def when(self, recipe: Recipe) -> bool:
        """Where the file computes in int8 and the recipe leaves it open or asks for it."""
        return recipe.export.quantizes and recipe.export.qat.when != "never"

    def needed(self, run: RunContext, state: State) -> bool:
        """Where int8 after training misses what it must keep, or the recipe asks for it in any case."""
        return not run.preflight.qat and _wants_training(run, state.quantization)

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """Of the section, what trains; both models."""
        flags = (
            *("quant_type", *run.calibration_flags, "qat", "qat_epochs", "qat_learning_rate", _limit(run)),
            *("distill_weight", "distill_loss", *OF_TRAINING),
        )
        return run.inputs(flags, state.model, state.original)

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        """Train; with qat=auto a network that cannot be trained so is a fact, not the end of the run."""
        try:
            return self._train(run, state, work)
        except CompressionError as error:
            if run.recipe.export.qat.when != "auto":
                raise
            (run.store.folder / _IN_TRAINING).unlink(missing_ok=True)
            return {"refused": str(error)}

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """The file that ships, of the two."""
        if why := made.facts.get("refused"):
            run.log(f"qat: {why}; int8 after training is kept")
            return replace(state, quantization={**state.quantization, "qat_not_taken": why})
        facts = {**state.quantization, "qat": dict(made.facts)}
        if why := _not_taken(run, state, made):
            return replace(state, quantization={**facts, "qat_not_taken": why})
        files = {**state.flatbuffers, run.recipe.export.quant_type: made.paths[_IN_TRAINING]}
        return replace(state, flatbuffers=files, quantization={**facts, "used": "in training"})

    def seconds(self, pace: Pace) -> float:
        """A training of a network of twice as many layers; only where it is sure to come."""
        qat = pace.recipe.export.qat
        return pace.training(qat.epochs, 2 * pace.pruned, taught=True) if qat.when == "always" else 0.0

    def _train(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any]:
        export = run.recipe.export
        if missed := state.quantization["broken"]:
            run.log(f"qat: int8 after training misses what it must keep on dev ({'; '.join(missed)})")
        plain = load_model(state.model.keras_file)
        qat = prepare_qat(plain, run.data.batches(run.calibration_sample()), masks=zero_masks(plain), progress=run.log)
        teacher = load_model(state.original.keras_file) if run.following["distill_weight"] else None
        config = run.config(export.qat.epochs, export.qat.learning_rate, **run.following)
        facts = run.train(qat.model, config, work, teacher=teacher)
        lite = convert_qat(qat, export.quant_type)
        write_bytes(run.store.folder / _IN_TRAINING, lite.content)
        exact = state.flatbuffers["none"].read_bytes()
        return {**facts, **_judged(run, state, lite.content, exact), "audit": lite.audit.to_dict()}


def _names(recipe: Recipe) -> dict[str, str]:
    """Quant type -> file."""
    quant_type = recipe.export.quant_type
    return {"none": _FLOAT, **({quant_type: _AFTER_TRAINING} if quant_type != "none" else {})}


def _not_taken(run: RunContext, state: State, made: Artifacts) -> str:
    """Why the file that trained with rounding is not the one to ship; empty where it is."""
    export, limit = run.recipe.export, state.limits.get("tflite_bytes")
    trained, plain = (path.stat().st_size for path in (made.paths[_IN_TRAINING], state.flatbuffers[export.quant_type]))
    if limit is not None and trained > plain and trained + _LARGEST_LABELS > limit:
        return f"its {trained:,} bytes do not fit into {limit:,}"
    if export.qat.when == "auto" and made.facts["loss"] > state.quantization["loss"]:
        return "its loss on dev is no lower"
    return ""


def _wants_training(run: RunContext, facts: Mapping[str, Any]) -> bool:
    when = run.recipe.export.qat.when
    return bool(facts["broken"]) if when == "auto" else when == "always"


def _limit(run: RunContext) -> str:
    """The flag of what rounding may cost on dev."""
    return "max_auroc_drop" if run.labeled else "max_flips"


def _judged(run: RunContext, state: State, content: bytes, reference: bytes) -> dict[str, Any]:
    """What rounding did on dev, against the float file of the same network; without labels what agreement it left.

    "loss" is what training minimizes: of the labels, or where there are none of the original's probabilities.
    """
    dev, logits, exact = run.data.dev.split, dev_logits(run, content), dev_logits(run, reference)
    if run.labeled:
        options: dict[str, Any] = {"pos_weight": run.pos_weight, "activation": run.activation}
        degradation = measure_degradation(dev.labels, logits, exact, dev.patients, **options)
        broken = degradation.broken(run.recipe.gate.max_auroc_drop)
        return {"degradation": degradation.to_dict(), "loss": degradation.loss, "broken": broken}
    ours, theirs = answers_of(run, logits), answers_of(run, exact)
    agreement = measure_agreement(ours, theirs, dev.patients, run.data.dataset.findings)
    target = undo_class_weights(original_dev_logits(run, state.references), run.pos_weight, run.activation)
    loss = training_loss(target, logits - np.log(run.pos_weight), activation=run.activation)
    return {"agreement": agreement.to_dict(), "loss": loss, "broken": agreement.broken(run.recipe.gate.max_flips)}

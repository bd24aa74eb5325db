"""From the compressed float model to int8: after training where that is enough, in training where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.evaluate.degradation import measure_degradation
from cxr_compress.files import write_bytes
from cxr_compress.lite import LiteModel, convert
from cxr_compress.lite.qat import convert_qat, prepare_qat
from cxr_compress.models import load_model
from cxr_compress.models.zeros import zero_masks
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.packing import dev_logits
from cxr_compress.pipeline.store import Artifacts

FLOAT = "quantized/float.tflite"
AFTER_TRAINING = "quantized/after_training.tflite"
IN_TRAINING = "quantized/in_training.tflite"
_LARGEST_LABELS = 16_000  # bytes that findings, thresholds, recipe and reference outputs add to a file
_FIELDS = (
    *("quant_type", "calibration_images", "calibration_method", "percentile"),
    "auto_fallback",
)


@dataclass(frozen=True)
class Quantized:
    """The flatbuffers of the compressed model, nothing attached yet.

    Attributes:
        files: by quant type.
        facts: which way was taken and why, and what it did on dev.
    """

    files: dict[str, Path]
    facts: dict[str, Any]


def quantize(run: RunContext, model: Artifacts, base: Artifacts) -> Quantized:
    """The float file and, where the recipe asks for one, its int8 twin by the way that keeps what it must."""
    recipe = run.recipe
    after = _after_training(run, model)
    files = {"none": after.paths[FLOAT]}
    if recipe.quant_type == "none":
        return Quantized(files, {})
    files[recipe.quant_type] = after.paths[AFTER_TRAINING]
    facts = run.store.facts("quantize")
    if not recipe.quantizes:
        return Quantized(files, facts)
    if not _wants_training(run, facts):
        return Quantized(files, facts | {"used": "after training"})
    why = run.preflight.qat
    if not why:
        try:
            trained = _in_training(run, model, base, after)
        except CompressionError as error:
            if recipe.qat != "auto":
                raise
            why = str(error)
    if why:
        run.log(f"qat: {why}; int8 after training is kept")
        return Quantized(files, {**facts, "used": "after training", "qat_not_taken": why})
    found = run.store.facts("qat")
    why = _not_taken(run, found, facts, trained.paths[IN_TRAINING], after.paths[AFTER_TRAINING])
    if why:
        return Quantized(files, {**facts, "qat": found, "used": "after training", "qat_not_taken": why})
    files[recipe.quant_type] = trained.paths[IN_TRAINING]
    return Quantized(files, {**facts, "qat": found, "used": "in training"})


def _not_taken(
    run: RunContext, trained: Mapping[str, Any], after: Mapping[str, Any], trained_file: Path, after_file: Path
) -> str:
    """Why the file that trained with rounding is not the one to ship; empty where it is."""
    limit = run.store.facts("select").get("limits", {}).get("tflite_bytes") if run.recipe.removes_filters else None
    size, other = trained_file.stat().st_size, after_file.stat().st_size
    if limit is not None and size > other and size + _LARGEST_LABELS > limit:
        return f"its {size:,} bytes do not fit into {limit:,}"
    if run.recipe.qat == "auto" and trained["degradation"]["loss"] > after["degradation"]["loss"]:
        return "its loss on dev is no lower"
    return ""


def _wants_training(run: RunContext, facts: Mapping[str, Any]) -> bool:
    return bool(facts["broken"]) if run.recipe.qat == "auto" else run.recipe.qat == "always"


def _after_training(run: RunContext, model: Artifacts) -> Artifacts:
    """Convert; of an int8 file say what it did on dev."""
    recipe = run.recipe
    fields: tuple[str, ...] = ("quant_type", *(("calibration_images", "seed") if recipe.calibrates else ()))
    if recipe.quantizes:
        fields = (*_FIELDS, "max_auroc_drop", "seed")
    names = {"none": FLOAT, **({recipe.quant_type: AFTER_TRAINING} if recipe.quant_type != "none" else {})}

    def make(_: Path) -> Mapping[str, Any]:
        made = _convert(run, model, list(names))
        for quant_type, lite in made.items():
            write_bytes(run.store.folder / names[quant_type], lite.content)
        facts: dict[str, Any] = {"audit": made[recipe.quant_type].audit.to_dict()}
        return facts | (_judged(run, made[recipe.quant_type].content, made["none"].content) if recipe.quantizes else {})

    return run.store.run("quantize", run.inputs(fields, model), list(names.values()), make)


def _in_training(run: RunContext, model: Artifacts, base: Artifacts, after: Artifacts) -> Artifacts:
    """Train on with the rounding of int8 in the loop, then convert."""
    recipe = run.recipe
    missed = run.store.facts("quantize")["broken"]
    fields = (
        *("quant_type", "calibration_images", "qat_epochs", "qat_learning_rate", "max_auroc_drop"),
        *("distill_weight", *OF_TRAINING),
    )

    def make(work: Path) -> Mapping[str, Any]:
        if missed:
            run.log(f"qat: int8 after training misses what it must keep on dev ({'; '.join(missed)})")
        plain = load_model(model.keras_file)
        qat = prepare_qat(plain, _calibration(run), masks=zero_masks(plain), progress=run.log)
        teacher = load_model(base.keras_file) if recipe.distill_weight else None
        config = run.config(recipe.qat_epochs, recipe.qat_learning_rate, distill_weight=recipe.distill_weight)
        facts = run.train(qat.model, config, work, teacher=teacher)
        lite = convert_qat(qat, recipe.quant_type)
        write_bytes(run.store.folder / IN_TRAINING, lite.content)
        return {**facts, **_judged(run, lite.content, after.paths[FLOAT].read_bytes()), "audit": lite.audit.to_dict()}

    return run.store.run("qat", run.inputs(fields, model, base), [IN_TRAINING], make)


def _convert(run: RunContext, model: Artifacts, names: list[str]) -> dict[str, LiteModel]:
    recipe, plain = run.recipe, load_model(model.keras_file)
    return convert(
        plain,
        names,
        calibration=_calibration(run),
        calibration_steps=recipe.calibration_images,
        calibration_method=recipe.calibration_method,
        percentile=recipe.percentile,
        auto_fallback=recipe.auto_fallback,
        compare=False,  # a file that rounding has made dumb is judged on dev, where training may still mend it
        progress=run.log,
    )


def _judged(run: RunContext, content: bytes, reference: bytes) -> dict[str, Any]:
    """What rounding did on dev, against the float file of the same network."""
    dev = run.data.dev.split
    degradation = measure_degradation(
        dev.labels,
        dev_logits(run, content),
        dev_logits(run, reference),
        dev.patients,
        pos_weight=run.pos_weight,
        activation=run.activation,
    )
    return {"degradation": degradation.to_dict(), "broken": degradation.broken(run.recipe.max_auroc_drop)}


def _calibration(run: RunContext) -> Iterator[np.ndarray]:
    return run.data.batches(run.data.sample(run.recipe.calibration_images, run.recipe.seed + 1))

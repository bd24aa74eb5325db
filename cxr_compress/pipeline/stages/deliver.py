"""The files of a run: the original references and the compressed model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.files import write_bytes
from cxr_compress.lite import LiteModel, audit, convert
from cxr_compress.lite.parity import Reference, compare_answers, require_answers
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.packing import check_sparsity, dev_logits, pack, recipe_in_file
from cxr_compress.pipeline.stages.quantize import Quantized
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.sparsity import measure_sparsity


def export_original(run: RunContext, base: Artifacts) -> Artifacts:
    """The original model as float32 and, where it has that form, int8: what every compressed file is compared with."""
    names = original_names(run.recipe, with_int8=not run.preflight.int8)
    fields = (
        *("model", "dataset", "input_size", "dev_fraction", "seed"),
        *("calibration_images", "calibration_method", "percentile"),
    )
    inputs = run.inputs(fields, base)

    def make(_: Path) -> Mapping[str, Any]:
        images = run.data.sample(run.recipe.calibration_images, run.recipe.seed + 1)
        made = convert(
            load_model(base.keras_file),
            list(names),
            calibration=run.data.batches(images),
            calibration_steps=run.recipe.calibration_images,
            calibration_method=run.recipe.calibration_method,
            percentile=run.recipe.percentile,
            force=run.recipe.force,
            progress=run.log,
        )
        for quant_type, lite in made.items():
            path = run.store.folder / f"{names[quant_type]}.tflite"
            packed = pack(run, lite, names[quant_type], base.sha256, inputs["recipe"], original=True)
            write_bytes(path, packed)
        return {names[quant_type]: lite.audit.to_dict() for quant_type, lite in made.items()}

    return run.store.run("export_original", inputs, _files(names), make)


def deliver(run: RunContext, final: Artifacts, quantized: Quantized, line: Mapping[str, str]) -> Artifacts:
    """The compressed files with all that they say about themselves.

    Args:
        run: the run.
        final: the compressed Keras model.
        quantized: what was made of it.
        line: the Keras files that it came from, the original model first and itself last -> sha256.

    Raises:
        CompressionError: a file has lost zeros, or answers unlike the network that it was made from.
    """
    names = compressed_names(run.recipe)
    recipe = recipe_in_file(run.recipe) | {"quantized": quantized.facts.get("used", "")}
    raw = {quant_type: quantized.files[quant_type].read_bytes() for quant_type in names}

    def make(_: Path) -> Mapping[str, Any]:
        sparsity = measure_sparsity(load_model(final.keras_file)).total if run.recipe.zeroes_weights else 0.0
        facts = {}
        for quant_type, name in names.items():
            lite = LiteModel(raw[quant_type], quant_type, audit(raw[quant_type]))
            check_sparsity(lite, sparsity)
            write_bytes(run.store.folder / f"{name}.tflite", pack(run, lite, name, line, recipe))
            facts[name] = lite.audit.to_dict()
        return facts | ({"answers": _answers(run, raw)} if run.recipe.quant_type != "none" else {})

    hashes = {quant_type: hashlib.sha256(content).hexdigest() for quant_type, content in raw.items()}
    inputs = run.inputs((), final) | {"recipe": recipe, "names": names, "raw": hashes, "line": dict(line)}
    return run.store.run("export_compressed", inputs, _files(names), make)


def _answers(run: RunContext, raw: Mapping[str, bytes]) -> dict[str, Any]:
    """The answers of the compressed file on dev beside those of its float twin, JSON-ready.

    Raises:
        CompressionError: it answers the same to everything, or unlike its twin, and the recipe does not force it.
    """
    exact, logits = (dev_logits(run, raw[quant_type]) for quant_type in ("none", run.recipe.quant_type))
    reference = Reference(run.data.dev.images, np.asarray(exact, np.float64), "dev images")
    found = compare_answers(logits, exact, reference.source, "")
    require_answers(found, reference, run.recipe.name, force=run.recipe.force)
    text = found.to_text(run.data.dataset.findings).replace("against the model", "against its float twin", 1)
    run.log(f"{run.recipe.name}: {text}")
    return {**found.to_dict(), "text": text, "constant": [run.data.dataset.findings[k] for k in found.constant]}


def original_names(recipe: Recipe, *, with_int8: bool = True) -> dict[str, str]:
    """Quant type -> file name, without its ending, of the references."""
    return {"none": f"{recipe.model}_fp32", **({"int8": f"{recipe.model}_int8"} if with_int8 else {})}


def compressed_names(recipe: Recipe) -> dict[str, str]:
    """Quant type -> file name; the float twin comes along, because there zeros can be counted exactly."""
    names = {recipe.quant_type: recipe.name}
    if recipe.quant_type != "none":
        stem = recipe.name.removesuffix(f"_{recipe.quant_type}")
        names["none"] = f"{stem}_fp32"
    return names


def _files(names: Mapping[str, str]) -> list[str]:
    return [f"{name}.tflite" for name in names.values()]

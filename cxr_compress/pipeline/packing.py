"""From a flatbuffer to a file that ships: labels, preprocessing, thresholds of its own, and a check of its zeros."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.modelfile import ModelInfo
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import NO_THRESHOLDS, file_logits, fit_info
from cxr_compress.lite import LiteModel, audit, pack_file
from cxr_compress.pipeline.context import RunContext
from cxr_compress.quant_types import TYPES
from cxr_compress.recipe import Recipe

# A float file has the zeros of its Keras model; converters may drop a constant or two on the way.
SPARSITY_TOLERANCE = 0.005


def pack(
    run: RunContext,
    lite: LiteModel,
    name: str,
    parents: Mapping[str, str],
    recipe: Mapping[str, Any],
    *,
    original: bool = False,
) -> bytes:
    """The file that ships; its calibration and thresholds are chosen on dev, from this very file's logits.

    Args:
        run: the run.
        lite: the flatbuffer.
        name: what the file is called, without its ending.
        parents: hashes of what it was made from, the original model first.
        recipe: the choices that made it.
        original: nothing was compressed. Of a given model of exclusive classes the probabilities are then its own, not
            fitted anew: a reader compares this file with the model that was given.
    """
    plain = _info(run, lite.quant_type, name, parents, recipe)
    if original and plain.exclusive and run.original is not None:
        return pack_file(lite.content, plain)
    dev = run.data.dev
    logits = file_logits(lite.content, plain, dev.images)
    images, force = _dev_images(run), run.recipe.run.force
    info = fit_info(plain, dev.split.labels, logits, run.pos_weight, images=images, force=force)
    return pack_file(lite.content, info)


def dev_logits(run: RunContext, content: bytes) -> np.ndarray:
    """(dev images, findings) of a flatbuffer, whatever its quant type, through the device's own code."""
    return file_logits(content, _info(run, "none", "unnamed", {}, {}), run.data.dev.images)


def _dev_images(run: RunContext) -> str:
    return f"{len(run.data.dev.split)} dev images of {run.data.dataset.name}"


def recipe_in_file(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a delivered file carries it: a reader's options may name folders, so their names alone."""
    values = recipe.to_dict()
    return {**values, "data": {**values["data"], "options": sorted(recipe.data.options)}}


def _info(
    run: RunContext, quant_type: str, name: str, parents: Mapping[str, str], recipe: Mapping[str, Any]
) -> ModelInfo:
    """What a file says before anything is fitted on dev."""
    dataset, count = run.data.dataset, len(run.data.dataset.findings)
    exclusive = run.activation == "softmax"
    undone = exclusive and bool((run.pos_weight != 1).any())
    said = "class weights of the training loss undone" if undone else "the model's own softmax, as it was given"
    return ModelInfo(
        model_name=name,
        labels=tuple(dataset.findings),
        preprocess=run.data.spec,
        logit_slope=(1.0,) * count,
        logit_offset=tuple(-math.log(weight) for weight in run.pos_weight) if undone else (0.0,) * count,
        thresholds=(0.5,) * count,
        threshold_source=NO_THRESHOLDS if exclusive else "",
        calibration_source=said if exclusive else "",
        quant_type=quant_type,
        parents=dict(parents),
        training_data=dataset.name,
        attribution=dataset.attribution,
        synthetic=dataset.synthetic,
        recipe=dict(recipe),
        activation=run.activation,
    )


def check_sparsity(lite: LiteModel, wanted: float) -> None:
    """Fail when a file has fewer zeros among its kernels than its Keras model, or a float file more.

    Raises:
        CompressionError: says both numbers.
    """
    found = lite.audit.sparsity.fraction
    # Rounding to int8 adds zeros, never removes one; a float file must be what was asked, not more.
    exact = TYPES[lite.quant_type].exact_zeros
    if wanted and (found < wanted - SPARSITY_TOLERANCE or (exact and found > wanted + SPARSITY_TOLERANCE)):
        raise CompressionError(
            f"the {lite.quant_type} file has {found:.2%} zeros among its kernels, {wanted:.2%} were asked for: "
            "the masks did not survive; please report this"
        )


def file_facts(path: Path, flatbuffer: bytes) -> dict[str, Any]:
    """Size, deflated size and kernel sparsity of a model file."""
    content = path.read_bytes()
    return {
        "tflite_bytes": len(content),
        "deflated_bytes": len(zlib.compress(content, 9)),
        "weight_sparsity": audit(flatbuffer).sparsity.fraction,
    }

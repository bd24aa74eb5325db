"""From a flatbuffer to a file that ships: labels, preprocessing, thresholds of its own, and a check of its zeros."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, ModelInfo
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import Calibration, choose_calibration
from cxr_compress.lite import LiteModel, audit, pack_file
from cxr_compress.pipeline.context import RunContext
from cxr_compress.recipe import Recipe

# A float file has the zeros of its Keras model; converters may drop a constant or two on the way.
SPARSITY_TOLERANCE = 0.005


def pack(run: RunContext, lite: LiteModel, name: str, parents: Mapping[str, str], recipe: Mapping[str, Any]) -> bytes:
    """The file that ships; its calibration and thresholds are chosen on dev, from this very file's logits.

    Args:
        run: the run.
        lite: the flatbuffer.
        name: what the file is called, without its ending.
        parents: hashes of what it was made from, the uncut model first.
        recipe: the choices that made it.
    """
    chosen = choose_calibration(run.data.dev.split.labels, dev_logits(run, lite.content), run.pos_weight)
    return pack_file(lite.content, _info(run, lite.quant_type, name, chosen, parents, recipe))


def dev_logits(run: RunContext, content: bytes) -> np.ndarray:
    """(dev films, findings) of a flatbuffer, whatever its quant type, through the device's own code."""
    count = len(run.data.dataset.findings)
    nothing = Calibration((1.0,) * count, (0.0,) * count, (0.5,) * count, (False,) * count)
    plain = _info(run, "none", "unnamed", nothing, {}, {})
    classifier = Classifier(ModelFile(Path("unnamed"), content, plain, len(content), ""))
    return np.concatenate([classifier.logits(batch) for batch in run.data.batches(run.data.dev.images)])


def recipe_in_file(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a delivered file carries it: a reader's options may name folders, so their names alone."""
    values = recipe.to_dict()
    return {**values, "options": sorted(values["options"])}


def _info(  # noqa: PLR0917 - what a file says
    run: RunContext,
    quant_type: str,
    name: str,
    chosen: Calibration,
    parents: Mapping[str, str],
    recipe: Mapping[str, Any],
) -> ModelInfo:
    dataset = run.data.dataset
    films = f"{len(run.data.dev.split)} dev films of {dataset.name}"
    return ModelInfo(
        model_name=name,
        labels=tuple(dataset.findings),
        preprocess=run.data.spec,
        logit_slope=chosen.slope,
        logit_offset=chosen.offset,
        thresholds=chosen.thresholds,
        threshold_source=(
            f"largest sensitivity + specificity on {films}, patients held out of training; "
            "choose your own before any use"
        ),
        calibration_source=chosen.source(films, dataset.findings),
        quant_type=quant_type,
        parents=dict(parents),
        training_data=dataset.name,
        attribution=dataset.attribution,
        synthetic=dataset.synthetic,
        recipe=dict(recipe),
    )


def check_sparsity(lite: LiteModel, wanted: float) -> None:
    """Fail when a file has fewer zeros among its kernels than its Keras model, or a float file more.

    Raises:
        CompressionError: says both numbers.
    """
    found = lite.audit.sparsity.fraction
    # Rounding to int8 adds zeros, never removes one; a float file must be what was asked, not more.
    exact = lite.quant_type in ("none", "fp16")
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

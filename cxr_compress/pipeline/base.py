"""The uncut model of a run: trained here or taken from a file, and what its layers cost where bytes or time count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cxr_compress.device.atomic import write_text
from cxr_compress.device.cost_table import CostTable
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet, load_model, read_about, tiny_chexnet
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.costing import make_probe_pack, measure_costs
from cxr_compress.pipeline.original import look_at_original
from cxr_compress.pipeline.ownership import refuse_own_source
from cxr_compress.pipeline.store import Artefacts
from cxr_compress.structured.sensitivity_cache import model_hash

BASE_FILES = ("base.keras",)
_IMAGE_RANK = 4  # images, height, width, channels
ARCHITECTURES = {"chexnet": chexnet, "tiny_chexnet": tiny_chexnet}
# Ranges hardly change the size of a file or the time of a kernel: a few films do.
_PRICING_IMAGES = 16


def make_base(run: RunContext, keras_model_file: Path | None) -> Artefacts:
    """The uncut model: trained here, or taken from a file, brought to logits and checked against the data.

    Raises:
        CompressionError: the file's model does not fit the films or the findings, or the folder holds another run.
    """
    if keras_model_file is None:
        inputs = base_inputs(run)
        run.claim({"source": "a training", "training": inputs["recipe"]})
        made = run.store.run("base", inputs, BASE_FILES, lambda work: _train(run, work))
        look_at_original(run, made)
        return made
    original = run.original
    if original is None:
        raise CompressionError(f"the run was opened without {keras_model_file.name}: open it with that model")
    model = original.model
    meaning = {
        "findings": list(run.data.dataset.findings),
        "preprocess": run.data.spec.to_dict(),
        "activation": run.activation,
    }
    inputs = {"weights": model_hash(model), **meaning}
    if not run.store.stands("base", inputs, BASE_FILES):
        refuse_own_source(run.store.folder, keras_model_file)
    run.claim({"source": "a model file", **inputs})

    def make(_: Path) -> Mapping[str, Any]:
        if not original.change.activation and original.about is None and run.activation == "softmax":
            run.news("base: its outputs are taken for logits of the set's classes, which exclude one another (softmax)")
        return {**run.save(model, "base.keras"), "head": asdict(original.change)}

    made = run.store.run("base", inputs, BASE_FILES, make)
    look_at_original(run, made)
    return made


def base_inputs(run: RunContext) -> dict[str, Any]:
    """What decides an original model that is trained here."""
    return run.inputs(("model", "input_size", "epochs", "learning_rate", *OF_TRAINING))


def price_layers(
    run: RunContext, base: Artefacts, int8_file: Callable[[], Path], latency_table: CostTable | None
) -> CostTable | None:
    """What bytes and milliseconds are spent on, where the recipe bounds them; times are measured only once."""
    want = {name: name in run.recipe.budget for name in ("tflite_bytes", "latency_ms")}
    if not any(want.values()):
        return None
    given = latency_table.to_json() if latency_table is not None and want["latency_ms"] else None
    inputs = {**run.inputs(("quant_type", "seed"), base), "want": want, "table": given}
    content = int8_file().read_bytes() if want["tflite_bytes"] else None

    def make(_: Path) -> None:
        table = measure_costs(
            load_model(base.keras_file),
            run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.seed)),
            run.recipe.quant_type,
            want_bytes=want["tflite_bytes"],
            want_latency=want["latency_ms"],
            latency_table=latency_table if want["latency_ms"] else None,
            int8_file=content,
            progress=run.news,
        )
        write_text(run.store.folder / "costs.json", table.to_json())

    made = run.store.run("price", inputs, ["costs.json"], make)
    return CostTable.from_json(made.paths["costs.json"].read_text(encoding="utf-8"))


def write_probes(run: RunContext, base: Artefacts, path: Path) -> None:
    """What a device needs to time the layers of the uncut model, as one file."""
    images = run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.seed))
    make_probe_pack(load_model(base.keras_file), path, run.recipe.quant_type, calibration=images, progress=run.news)


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
    size = run.recipe.input_size
    return architecture(run.recipe.model)(
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


def _train(run: RunContext, work: Path) -> Mapping[str, Any]:
    keras.utils.set_random_seed(run.recipe.seed)
    model = build_untrained(run)
    facts = run.train(model, run.config(run.recipe.epochs, run.recipe.learning_rate), work)
    return {**facts, **run.save(model, "base.keras")}

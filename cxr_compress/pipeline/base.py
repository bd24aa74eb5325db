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
from cxr_compress.models import chexnet, load_model, tiny_chexnet
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.costing import make_probe_pack, measure_costs
from cxr_compress.pipeline.store import Artefacts
from cxr_compress.structured.sensitivity_cache import model_hash

ARCHITECTURES = {"chexnet": chexnet, "tiny_chexnet": tiny_chexnet}
# Ranges hardly change the size of a file or the time of a kernel: a few films do.
_PRICING_IMAGES = 16


def make_base(run: RunContext, keras_model_file: Path | None) -> Artefacts:
    """The uncut model: trained here, or taken from a file, brought to logits and checked against the data.

    Raises:
        CompressionError: the file's model does not fit the films or the findings.
    """
    if keras_model_file is None:
        fields = ("model", "input_size", "epochs", "learning_rate", *OF_TRAINING)
        return run.store.run("base", run.inputs(fields), ["base.keras"], lambda work: _train(run, work))
    if run.original is None:
        raise CompressionError(f"the run was opened without {keras_model_file.name}: open it with that model")
    model, head = run.original
    check_fit(run, model)
    kind = {} if run.activation == "sigmoid" else {"activation": run.activation}

    def make(_: Path) -> Mapping[str, Any]:
        if head.note:
            run.news(f"base: {head.note}")
        if not head.activation and run.about is None and run.activation == "softmax":
            run.news("base: its outputs are taken for logits of the set's classes, which exclude one another (softmax)")
        return {**run.save(model, "base.keras"), "head": asdict(head)}

    return run.store.run("base", {"weights": model_hash(model), **kind}, ["base.keras"], make)


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


def check_fit(run: RunContext, model: keras.Model) -> None:
    """The model from a file must take these films and answer these findings with logits.

    Raises:
        CompressionError: it does not.
    """
    spec, findings = run.data.spec, run.data.dataset.findings
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise CompressionError(
            f"expected a model with one image in and one row of logits out, got {len(model.inputs)} inputs and "
            f"{len(model.outputs)} outputs"
        )
    if tuple(model.input_shape[1:]) != spec.input_shape:
        raise CompressionError(
            f"the model takes images of {model.input_shape[1:]}, the run makes {spec.input_shape}: give the size "
            "of the model as --input_size"
        )
    if tuple(model.output_shape[1:]) != (len(findings),):
        raise CompressionError(
            f"the model gives {model.output_shape[1:]} outputs, the data set has {len(findings)} findings "
            f"({', '.join(findings)}): give a model with one logit per finding"
        )


def _train(run: RunContext, work: Path) -> Mapping[str, Any]:
    keras.utils.set_random_seed(run.recipe.seed)
    model = build_untrained(run)
    facts = run.train(model, run.config(run.recipe.epochs, run.recipe.learning_rate), work)
    return {**facts, **run.save(model, "base.keras")}

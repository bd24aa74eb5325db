"""The stages in their order, and the one scoring at the end."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_compress.device.atomic import make_folder, write_text
from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.modelfile import read_model
from cxr_compress.evaluate import Evaluation, auroc_difference, score_file
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_file import load_model, read_about
from cxr_compress.pipeline.delivery import Delivery, file_facts
from cxr_compress.pipeline.films import Decoding, RunData, load_run_data
from cxr_compress.pipeline.stages import Stages
from cxr_compress.pipeline.store import Artefacts, News, StageStore
from cxr_compress.recipe import Recipe
from cxr_compress.report import Row, build_report, read_report, write_report
from cxr_compress.structured import measure_cost

_LATENCY_RUNS = 100


def run_recipe(
    recipe: Recipe,
    *,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None = None,
    latency_table: CostTable | None = None,
    news: News = lambda line: None,
    decoding: Decoding = lambda split, done, total: None,
) -> dict[str, Any]:
    """Compress a model as a recipe says and report what it did to every finding.

    The same recipe, data and seed give the same plan and the same .tflite bytes on one machine; a bound on latency
    does so for the same layer times, which are measured once and kept in costs.json. A second call with the same
    `output_dir` keeps what stands and redoes exactly what depends on a change.

    Args:
        recipe: the choices.
        data_dir: where the recipe's data set lies; only read.
        output_dir: gets recipe.json, every stage's artefact and manifest, the .tflite files and report.json.
        keras_model_file: an uncut model to start from; None trains `recipe.model`.
        latency_table: layer times that a device measured, for a bound on latency; None measures them here.
        news: is told of stages and epochs, one line each.
        decoding: is told (split, films done, films in all) while images are read.

    Returns:
        The report, as in report.json.

    Raises:
        CompressionError: and its subclasses; whatever was finished stays in `output_dir`.
    """
    stages = _open(recipe, data_dir, output_dir, keras_model_file, news, decoding)
    base = stages.base(keras_model_file)
    delivery = Delivery(recipe, stages.data, stages.digest, stages.store, stages.pos_weight, news)
    uncut_names = {"none": f"{recipe.model}_fp32", "int8": f"{recipe.model}_int8"}
    # When asked for: a budget that cannot be reached should not wait for it.
    uncut = functools.cache(lambda: delivery.export("export_uncut", base, uncut_names).paths)
    int8_name = f"{uncut_names['int8']}.tflite"
    final = _compress(stages, base, stages.price(base, lambda: uncut()[int8_name], latency_table))
    compressed = delivery.export("export_compressed", final, _compressed_names(recipe), recipe.weight_sparsity)
    files = {
        "fp32": (uncut()[f"{uncut_names['none']}.tflite"], base.keras_file),
        "int8": (uncut()[int8_name], base.keras_file),
        "compressed": (compressed.paths[f"{recipe.name}.tflite"], final.keras_file),
    }
    return _score(recipe, stages.data, stages.store, files)


def write_probe_pack(
    recipe: Recipe,
    path: Path,
    *,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None = None,
    news: News = lambda line: None,
    decoding: Decoding = lambda split, done, total: None,
) -> None:
    """Go as far as the uncut model and write what a device needs to time its layers; `run_recipe` goes on from there.

    Args:
        recipe: as `run_recipe`, like all that is not named here.
        path: of the ZIP; `cxr_benchmark --layers=PATH` on the device turns it into a latency table.
        data_dir: see there.
        output_dir: see there.
        keras_model_file: see there.
        news: see there.
        decoding: see there.

    Raises:
        CompressionError: and its subclasses.
    """
    stages = _open(recipe, data_dir, output_dir, keras_model_file, news, decoding)
    stages.probes(stages.base(keras_model_file), path)


def _open(  # noqa: PLR0917 - what a run is made of
    recipe: Recipe, data_dir: Path, output_dir: Path, keras_model_file: Path | None, news: News, decoding: Decoding
) -> Stages:
    """The stages of a run, with its films read and its folder made."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(recipe.seed)
    make_folder(output_dir)
    about = read_about(keras_model_file) if keras_model_file is not None else None
    data = load_run_data(recipe, data_dir, decoding, about.preprocess if about is not None else None)
    write_text(output_dir / "recipe.json", recipe.to_json())
    digest = data.train.digest() + data.dev.digest()
    return Stages(recipe, data, digest, StageStore(output_dir, news), news, about)


def _compress(stages: Stages, base: Artefacts, cost_table: CostTable | None) -> Artefacts:
    """The compressed Keras model, through every stage that the recipe asks for."""
    recipe, final = stages.recipe, base
    if recipe.removes_filters:
        final = stages.thin(base, cost_table)
        if recipe.recovery_epochs:
            final = stages.recover(final, base)
    if recipe.weight_sparsity:
        final = stages.sparsify(final, base)
    return final


def _compressed_names(recipe: Recipe) -> dict[str, str]:
    """Quant type -> file name; the float twin comes along, because there zeros can be counted exactly."""
    names = {recipe.quant_type: recipe.name}
    if recipe.quant_type != "none":
        stem = recipe.name.removesuffix(f"_{recipe.quant_type}")
        names["none"] = f"{stem}_fp32"
    return names


def _score(recipe: Recipe, data: RunData, store: StageStore, files: Mapping[str, tuple[Path, Path]]) -> dict[str, Any]:
    """Score every file once on test, time them turn by turn, and write the report.

    Args:
        recipe: the choices.
        data: its test films are scored.
        store: where the report goes.
        files: by name, the .tflite file and the Keras file that it came from.
    """
    models = {name: read_model(path) for name, (path, _) in files.items()}
    test = data.test
    inputs = {
        "files": {name: model.sha256 for name, model in models.items()},
        "films": test.digest(),
        "samples": recipe.bootstrap_samples,
        "seed": recipe.seed,
    }

    def make(_: Path) -> None:
        scored: dict[str, Evaluation] = {}
        for name, model in models.items():
            scored[name] = score_file(
                model,
                test.images,
                test.split.labels,
                test.split.patients,
                data.dataset.findings,
                samples=recipe.bootstrap_samples,
                seed=recipe.seed,
            )
        latency = measure_together({name: model.content for name, model in models.items()}, runs=_LATENCY_RUNS)
        # Here and not before: a run that is done already should not load its models to say so.
        costs = {source: measure_cost(load_model(source)) for _, source in files.values()}
        rows = [
            Row(
                name=models[name].info.model_name,
                file=path.name,
                params=costs[source].params,
                macs=costs[source].macs,
                latency=latency[name].to_dict(),
                evaluation=scored[name].to_dict(),
                difference=None if name == "fp32" else auroc_difference(scored[name], scored["fp32"]).to_dict(),
                **file_facts(path, models[name].content),
            )
            for name, (path, source) in files.items()
        ]
        facts = {"recipe": recipe.to_dict(), "counts": data.counts(), "sha256": inputs["files"]}
        facts["budgets"] = _budgets(store.facts("thin"), rows[-1]) if recipe.removes_filters else {}
        write_report(store.folder / "report.json", build_report(rows, data.dataset, facts=facts))

    store.run("score", inputs, ["report.json"], make)
    return read_report(store.folder / "report.json")


def _budgets(thinned: Mapping[str, Any], row: Row) -> dict[str, dict[str, float | None]]:
    """By cost: its limit, what the plan predicted, and what the finished file has; milliseconds are those of here."""
    measured = {
        "macs": row.macs,
        "params": row.params,
        "tflite_bytes": row.tflite_bytes,
        "latency_ms": (row.latency or {}).get("p50_ms"),
    }
    return {
        name: {"limit": limit, "predicted": thinned["after"][name], "measured": measured[name]}
        for name, limit in thinned["limits"].items()
    }

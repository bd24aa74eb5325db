"""The end of a run: every file scored once on test, timed side by side, compared, and reported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.evaluate import Degradation, Evaluation, check_gate, compare, score_file
from cxr_compress.lite import audit
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.packing import file_facts
from cxr_compress.pipeline.stages.original import FIRST_LOOK
from cxr_compress.report import SCHEMA_VERSION, Row, build_report, read_report, write_report
from cxr_compress.sparsity import size_statement
from cxr_compress.structured import measure_cost
from cxr_compress.structured.cost import ModelCost

_LATENCY_RUNS = 100
_REFERENCE = "fp32"


def score(run: RunContext, files: Mapping[str, tuple[Path, Path]], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Score every file once on test, time them turn by turn, and write the report.

    Args:
        run: the run.
        files: by name, the .tflite file and the Keras file that it came from: the reference, others, the compressed.
        quantization: how the compressed file came to int8.
    """
    models = {name: read_model(path) for name, (path, _) in files.items()}
    inputs = {
        "files": {name: model.sha256 for name, model in models.items()},
        "images": run.data.test.digest(),
        "schema": SCHEMA_VERSION,
        **{name: getattr(run.recipe, name) for name in ("bootstrap_samples", "max_auroc_drop", "margin", "seed")},
    }

    def make(_: Path) -> None:
        scored = {name: _scored(run, model) for name, model in models.items()}
        degradations = {name: compare(scored[name], scored[_REFERENCE]) for name in list(models)[1:]}
        # Here and not before: a run that is done already should not load its models to say so.
        sources = {source: load_model(source) for source in dict.fromkeys(source for _, source in files.values())}
        costs = {source: measure_cost(model) for source, model in sources.items()}
        rows = _rows(files, models, scored, degradations, costs)
        last = list(models)[-1]
        facts = {
            "recipe": run.recipe.to_dict(),
            "counts": run.data.counts(),
            "sha256": inputs["files"],
            "budgets": _budgets(run.store.facts("select"), rows[-1]) if run.recipe.removes_filters else {},
            "gate": check_gate(
                degradations[last],
                max_loss=run.recipe.max_auroc_drop,
                margin=run.recipe.margin,
                reference=scored[_REFERENCE].mean_auroc,
            ),
            "quantization": dict(quantization),
            "original": _original(run),
            "answers": run.store.facts("export_compressed").get("answers"),
            "sizes": _sizes(models[last]),
        }
        write_report(run.store.folder / "report.json", build_report(rows, run.data.dataset, facts=facts))

    run.store.run("score", inputs, ["report.json"], make)
    return read_report(run.store.folder / "report.json")


def _original(run: RunContext) -> dict[str, Any] | None:
    """What the first look at the original model found; a search keeps it in its own folder."""
    path = run.store.folder / FIRST_LOOK
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _scored(run: RunContext, model: ModelFile) -> Evaluation:
    test = run.data.test
    return score_file(
        model,
        test.images,
        test.split.labels,
        test.split.patients,
        run.data.dataset.findings,
        samples=run.recipe.bootstrap_samples,
        seed=run.recipe.seed,
    )


def _rows(
    files: Mapping[str, tuple[Path, Path]],
    models: Mapping[str, ModelFile],
    scored: Mapping[str, Evaluation],
    degradations: Mapping[str, Degradation],
    costs: Mapping[Path, ModelCost],
) -> list[Row]:
    latency = measure_together({name: model.content for name, model in models.items()}, runs=_LATENCY_RUNS)
    return [
        Row(
            name=models[name].info.model_name,
            file=path.name,
            params=costs[source].params,
            macs=costs[source].macs,
            latency=latency[name].to_dict(),
            evaluation=scored[name].to_dict(),
            degradation=degradations[name].to_dict() if name in degradations else None,
            **file_facts(path, models[name].content),
        )
        for name, (path, source) in files.items()
    ]


def _sizes(model: ModelFile) -> dict[str, str]:
    """What zeros do to the compressed file, in words."""
    counted = audit(model.content).sparsity
    bytes_per_weight = {"none": 4, "fp16": 2}.get(model.info.quant_type, 1)
    size = size_statement(
        model.content, weights=counted.weights, zeros=counted.zeros, bytes_per_weight=bytes_per_weight
    )
    return {"disk": size.sentence}


def _budgets(selected: Mapping[str, Any], row: Row) -> dict[str, dict[str, float | None]]:
    """By cost: its limit, what the plan predicted, and what the finished file has; milliseconds are those of here."""
    measured = {
        "macs": row.macs,
        "params": row.params,
        "tflite_bytes": row.tflite_bytes,
        "latency_ms": (row.latency or {}).get("p50_ms"),
    }
    return {
        name: {"limit": limit, "predicted": selected["after"][name], "measured": measured[name]}
        for name, limit in selected["limits"].items()
    }

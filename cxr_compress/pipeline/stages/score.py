"""The end of a run: every file scored once on test, timed side by side, compared, and reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.evaluate import Degradation, Evaluation, check_gate, compare, score_file
from cxr_compress.files import write_bytes, write_text
from cxr_compress.lite import audit
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import RunContext, file_facts
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.quant_types import TYPES
from cxr_compress.report import SCHEMA_VERSION, Row, build_report, read_report, write_report
from cxr_compress.report.cards import render_delivered_card
from cxr_compress.report.run_folder import draw_report, render_readme
from cxr_compress.sparsity import size_statement
from cxr_compress.structured import measure_cost
from cxr_compress.structured.cost import ModelCost

_LATENCY_RUNS = 100
_REFERENCE, _COMPRESSED = "fp32", "compressed"
_SHOWN = {"none": _REFERENCE, "int8": "int8"}
_REPORT, _README, _PICTURE = "report.json", "README.md", "report.png"


class Score(Stage):
    """Score every file once on test, time them turn by turn, and write the report."""

    name, section, results = "score", "gate", (_REPORT, _README, _PICTURE, "{model}_*.md")
    looks_at_test = True

    def files(self, run: RunContext, state: State) -> Sequence[str]:
        """The report, its picture, the card of the compressed file, and what to do with them."""
        return [_REPORT, _README, _PICTURE, _card_name(state)]

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The files, the test images, and what a file may lose."""
        flags = ("bootstrap_samples", "max_auroc_drop", "margin", "seed")
        return {
            "files": {name: model.sha256 for name, model in _models(state).items()},
            "images": run.data.test.digest(),
            "schema": SCHEMA_VERSION,
            **{flag: run.recipe.value(flag) for flag in flags},
        }

    def make(self, run: RunContext, state: State, work: Path) -> None:
        """Score, time, judge, write."""
        models, files = _models(state), _files(state)
        scored = {name: _scored(run, model) for name, model in models.items()}
        degradations = {name: compare(scored[name], scored[_REFERENCE]) for name in list(models)[1:]}
        # Here and not before: a run that is done already should not load its models to say so.
        sources = {source: load_model(source) for source in dict.fromkeys(source for _, source in files.values())}
        costs = {source: measure_cost(model) for source, model in sources.items()}
        rows = _rows(files, models, scored, degradations, costs)
        gate = run.recipe.gate
        facts = {
            "recipe": run.recipe.to_dict(),
            "counts": run.data.counts(),
            "sha256": {name: model.sha256 for name, model in models.items()},
            "budgets": _budgets(state, rows[-1]),
            "gate": check_gate(
                degradations[_COMPRESSED],
                max_loss=gate.max_auroc_drop,
                margin=gate.margin,
                reference=scored[_REFERENCE].mean_auroc,
            ),
            "quantization": dict(state.quantization),
            "original": dict(state.look),
            "answers": state.answers,
            "sizes": _sizes(models[_COMPRESSED]),
            "seconds": dict(state.seconds),
        }
        folder, report = run.store.folder, build_report(rows, run.data.dataset, facts=facts)
        write_report(folder / _REPORT, report)
        report, model = read_report(folder / _REPORT), models[_COMPRESSED]
        write_text(folder / _card_name(state), render_delivered_card(report, model, file_name=state.delivered.name))
        readme = render_readme(report, model, card=_card_name(state), picture=_draw(folder, report))
        write_text(folder / _README, readme)

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """What the run returns."""
        return replace(state, report=read_report(made.paths[_REPORT]))

    def seconds(self, pace: Pace) -> float:
        """Every file on test."""
        return (2 * pace.original + pace.pruned) * (pace.test + pace.dev)


def _draw(folder: Path, report: Mapping[str, Any]) -> str:
    """Draw the report; the name of the picture, "" without matplotlib."""
    try:
        write_bytes(folder / _PICTURE, draw_report(report))
    except ModuleNotFoundError:
        return ""
    return _PICTURE


def _card_name(state: State) -> str:
    return state.delivered.with_suffix(".md").name


def _files(state: State) -> dict[str, tuple[Path, Path]]:
    """By name, the .tflite file and the Keras file that it came from: the reference, others, the compressed."""
    files = {_SHOWN[kind]: (path, state.original.keras_file) for kind, path in state.references.items()}
    return {**files, _COMPRESSED: (state.delivered, state.model.keras_file)}


def _models(state: State) -> dict[str, ModelFile]:
    return {name: read_model(path) for name, (path, _) in _files(state).items()}


def _scored(run: RunContext, model: ModelFile) -> Evaluation:
    test = run.data.test
    return score_file(
        model,
        test.images,
        test.split.labels,
        test.split.patients,
        run.data.dataset.findings,
        samples=run.recipe.gate.bootstrap_samples,
        seed=run.recipe.run.seed,
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
    bytes_per_weight = TYPES[model.info.quant_type].bytes_per_weight
    size = size_statement(
        model.content, weights=counted.weights, zeros=counted.zeros, bytes_per_weight=bytes_per_weight
    )
    return {"disk": size.sentence}


def _budgets(state: State, row: Row) -> dict[str, dict[str, float | None]]:
    """By cost: its limit, what the plan predicted, and what the finished file has; milliseconds are those of here."""
    measured = {
        "macs": row.macs,
        "params": row.params,
        "tflite_bytes": row.tflite_bytes,
        "latency_ms": (row.latency or {}).get("p50_ms"),
    }
    predicted = {} if state.plan is None else state.plan.after.to_dict()
    return {
        name: {"limit": limit, "predicted": predicted[name], "measured": measured[name]}
        for name, limit in state.limits.items()
    }

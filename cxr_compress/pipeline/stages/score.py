"""The end of a run: every file scored once on test, timed side by side, compared, and reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.evaluate import (
    Evaluation,
    answer_file,
    check_agreement,
    check_gate,
    compare,
    compare_groups,
    compare_models,
    groups_of,
    measure_agreement,
    score_file,
)
from cxr_compress.keras2 import keras
from cxr_compress.lite import audit
from cxr_compress.models import load_model
from cxr_compress.models.ends import with_cam
from cxr_compress.pipeline.context import RunContext, file_facts
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.quant_types import TYPES
from cxr_compress.report import SCHEMA_VERSION, Row, build_report, read_report, write_report
from cxr_compress.report.run_folder import PAGE, PICTURE, README, REPORT, card_name, write_run_folder
from cxr_compress.sparsity import size_statement
from cxr_compress.structured import measure_cost
from cxr_compress.structured.cost import ModelCost

_LATENCY_RUNS = 100
_REFERENCE, _COMPRESSED = "fp32", "compressed"
_SHOWN = {"none": _REFERENCE, "int8": "int8"}


class Score(Stage):
    """Score every file once on test, time them turn by turn, and write the report."""

    name, section, results = "score", "gate", (REPORT, README, PICTURE, PAGE, "{model}_*.md")
    looks_at_test = True

    def files(self, run: RunContext, state: State) -> Sequence[str]:
        """The report, its picture and page, the card of the compressed file, and what to do with them."""
        return [REPORT, README, PICTURE, PAGE, card_name(state.delivered.name)]

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The files, the test images, and what a file may lose."""
        limits = ("max_auroc_drop", "margin") if run.labeled else ("max_flips", "max_logit_distance")
        flags = ("bootstrap_samples", *limits, "seed")
        return {
            "files": {name: model.sha256 for name, model in _models(state).items()},
            "images": run.data.test.digest(),
            **({} if run.labeled else {"warnings": state.look["warnings"]}),
            "schema": SCHEMA_VERSION,
            **{flag: run.recipe.value(flag) for flag in flags},
        }

    def make(self, run: RunContext, state: State, work: Path) -> None:
        """Score, time, judge, write."""
        models, files = _models(state), _files(state)
        # Here and not before: a run that is done already should not load its models to say so.
        sources = {source: load_model(source) for source in dict.fromkeys(source for _, source in files.values())}
        costs = {source: measure_cost(model) for source, model in sources.items()}
        measured = _with_labels(run, models) if run.labeled else _without_labels(run, state, models, sources)
        rows = _rows(files, models, measured.by_row, costs)
        facts = {
            "recipe": run.recipe.to_dict(),
            "counts": run.data.counts(),
            "sha256": {name: model.sha256 for name, model in models.items()},
            "budgets": _budgets(state, rows[-1]),
            "gate": measured.gate,
            "quantization": dict(state.quantization),
            "original": dict(state.look),
            "answers": state.answers,
            "sizes": _sizes(models[_COMPRESSED]),
            "seconds": dict(state.seconds),
        }
        folder, report = run.store.folder, build_report(rows, run.data.dataset, facts=facts)
        write_report(folder / REPORT, report)
        write_run_folder(folder, read_report(folder / REPORT), models[_COMPRESSED])

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """What the run returns."""
        return replace(state, report=read_report(made.paths[REPORT]))

    def seconds(self, pace: Pace) -> float:
        """Every file on test."""
        return (2 * pace.original + pace.pruned) * (pace.test + pace.dev)


def _files(state: State) -> dict[str, tuple[Path, Path]]:
    """By name, the .tflite file and the Keras file that it came from: the reference, others, the compressed."""
    files = {_SHOWN[kind]: (path, state.original.keras_file) for kind, path in state.references.items()}
    return {**files, _COMPRESSED: (state.delivered, state.model.keras_file)}


def _models(state: State) -> dict[str, ModelFile]:
    return {name: read_model(path) for name, (path, _) in _files(state).items()}


@dataclass(frozen=True)
class _Measured:
    """What the test images showed.

    Attributes:
        by_row: file -> the fields of its row that say it, JSON-ready.
        gate: whether the compressed file passes, JSON-ready.
    """

    by_row: Mapping[str, Mapping[str, Any]]
    gate: Mapping[str, Any]


def _with_labels(run: RunContext, models: Mapping[str, ModelFile]) -> _Measured:
    """Every file scored by labels, and what each lost."""
    test, gate = run.data.test, run.recipe.gate
    scored = {
        name: score_file(
            model,
            test.images,
            test.split.labels,
            test.split.patients,
            run.data.dataset.findings,
            samples=gate.bootstrap_samples,
            seed=run.recipe.run.seed,
        )
        for name, model in models.items()
    }
    degradations = {name: compare(scored[name], scored[_REFERENCE]) for name in list(models)[1:]}
    limits: dict[str, Any] = {"max_loss": gate.max_auroc_drop, "margin": gate.margin}
    rows: dict[str, dict[str, Any]] = {name: {"evaluation": one.to_dict()} for name, one in scored.items()}
    for name, degradation in degradations.items():
        rows[name]["degradation"] = degradation.to_dict()
        rows[name]["comparison"] = _compared(run, name, scored[_REFERENCE], scored[name])
    reference = scored[_REFERENCE].mean_auroc
    return _Measured(rows, check_gate(degradations[_COMPRESSED], reference=reference, **limits))


def _compared(run: RunContext, name: str, reference: Evaluation, candidate: Evaluation) -> dict[str, Any]:
    """What a file does to each finding and group, with the margin that the recipe fixed before test was opened."""
    margin, images = run.recipe.gate.margin, np.arange(len(reference.patients))
    groups = {by: names for by, names in groups_of(run.data.test.split).items() if len(set(names)) > 1}
    changes = compare_groups(reference, candidate, groups, margin=margin)
    comparison = compare_models(name, reference, candidate, images, margin=margin).to_dict(list_images=False)
    return {**comparison, "groups": {grouping.by: grouping.to_dict() for grouping in changes}}


def _without_labels(
    run: RunContext, state: State, models: Mapping[str, ModelFile], sources: Mapping[Path, keras.Model]
) -> _Measured:
    """Every file's agreement with the original's float file on images that no stage has seen."""
    test, gate = run.data.test, run.recipe.gate
    answers = {name: answer_file(model, test.images) for name, model in models.items()}
    maps, no_maps = _maps(run, sources[state.model.keras_file], sources[state.original.keras_file])
    agreements = {
        name: measure_agreement(
            answers[name],
            answers[_REFERENCE],
            test.split.patients,
            run.data.dataset.findings,
            maps=maps if name == _COMPRESSED else None,
            no_maps=no_maps if name == _COMPRESSED else "the network is the original",
            samples=gate.bootstrap_samples,
            seed=run.recipe.run.seed,
        )
        for name in list(models)[1:]
    }
    limits: dict[str, Any] = {"max_flips": gate.max_flips, "max_logit_distance": gate.max_logit_distance}
    limits["lacking"] = state.look["warnings"]
    rows = {name: {"agreement": agreement.to_dict()} for name, agreement in agreements.items()}
    return _Measured({_REFERENCE: {}, **rows}, check_agreement(agreements[_COMPRESSED], **limits))


def _maps(run: RunContext, ours: keras.Model, theirs: keras.Model) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Class activation maps (images, h, w, k) of both networks before they became integers; else why there are none."""
    try:
        viewed = [with_cam(model) for model in (ours, theirs)]
    except UnsupportedLayerError as error:
        return None, f"a class activation map needs another head: {error}"
    batches = list(run.data.batches(run.data.test.images))
    both = [np.concatenate([model(batch, training=False)[1].numpy() for batch in batches]) for model in viewed]
    return (both[0], both[1]), ""


def _rows(
    files: Mapping[str, tuple[Path, Path]],
    models: Mapping[str, ModelFile],
    measured: Mapping[str, Mapping[str, Any]],
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
            **measured[name],
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

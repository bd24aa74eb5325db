"""The candidates of a search as runs of their own, which share the images and the original model."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.modelfile import read_model
from cxr_compress.files import write_bytes, write_text
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import RunContext, dev_logits
from cxr_compress.pipeline.data import Decoding
from cxr_compress.pipeline.run import open_run, run_stages, take_folder
from cxr_compress.pipeline.search.choose import SearchResult, search
from cxr_compress.pipeline.search.record import ORIGINAL, draw_search, folder_name, shortened
from cxr_compress.pipeline.search.score import CandidateScore, score_on_dev
from cxr_compress.pipeline.search.spec import SearchSpec
from cxr_compress.pipeline.stage import State
from cxr_compress.pipeline.stages import STAGES, stages_before
from cxr_compress.pipeline.stages.price import PriceLayers
from cxr_compress.pipeline.store import Log, StageStore
from cxr_compress.recipe import Recipe
from cxr_compress.report.run_folder import render_search_readme
from cxr_compress.structured import measure_cost

CANDIDATES = "candidates"


class CandidateRuns:
    """Makes and judges candidates, each in a folder below that of the search; a `Runner`."""

    def __init__(self, run: RunContext) -> None:
        """Make or take the original model, and its own files.

        Args:
            run: of the search's own recipe, in the folder of the search.
        """
        self._run = run
        take_folder(run)
        self._start = run_stages(run, stages_before(PriceLayers))
        self._original_logits: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        """The hash of the original model and of the images of train and dev."""
        return hashlib.sha256(json.dumps([self._start.original.sha256, self._run.digest]).encode()).hexdigest()

    def original(self) -> Mapping[str, CandidateScore]:
        """The original model's own files on dev: "fp32" and "int8"."""
        names = {ORIGINAL if kind == "none" else kind: path for kind, path in self._start.references.items()}
        return {name: self._judge(self._run, path, self._start, 0.0) for name, path in names.items()}

    def judge_cheap(self, recipe: Recipe, *, epochs: int) -> CandidateScore:
        """A candidate after a short recovery."""
        return self._recover(recipe, shortened(recipe, epochs))

    def recover_full(self, recipe: Recipe) -> CandidateScore:
        """A candidate after the whole recipe, judged by the file that would ship."""
        return self._recover(recipe, recipe)

    def score_test(self, recipe: Recipe) -> dict[str, Any]:
        """The report of one candidate; the only method that looks at test images."""
        return run_stages(self._candidate(recipe, recipe), STAGES, self._start, shared=self._run.store).report

    def _recover(self, named: Recipe, recipe: Recipe) -> CandidateScore:
        # What Keras keeps of the candidates before would grow with their number.
        keras.backend.clear_session()
        started = time.monotonic()
        run, stages = self._candidate(named, recipe), (stage for stage in STAGES if not stage.looks_at_test)
        state = run_stages(run, stages, self._start, shared=self._run.store)
        return self._judge(run, state.delivered, state, time.monotonic() - started)

    def _candidate(self, named: Recipe, recipe: Recipe) -> RunContext:
        store = StageStore(
            self._run.store.folder / CANDIDATES / folder_name(named), self._run.log, self._run.store.threads
        )
        return dataclasses.replace(self._run, recipe=recipe, store=store)

    def _judge(self, run: RunContext, path: Path, state: State, seconds: float) -> CandidateScore:
        """A file on dev, and what its network costs."""
        cost, content = measure_cost(load_model(state.model.keras_file)), path.read_bytes()
        dev = run.data.dev.split
        return score_on_dev(
            dev.labels,
            dev_logits(run, read_model(path).content),
            self._reference(),
            dev.patients,
            tflite_bytes=len(content),
            macs=cost.macs,
            seconds=round(seconds, 1),
            deflated_bytes=len(zlib.compress(content, 9)),
            params=cost.params,
            latency_ms=None if state.plan is None else state.plan.after.latency_ms,
            pos_weight=run.pos_weight,
            activation=run.activation,
            samples=run.recipe.gate.bootstrap_samples,
            seed=run.recipe.run.seed,
        )

    def _reference(self) -> np.ndarray:
        """The logits of the original float file on dev."""
        if self._original_logits is None:
            self._original_logits = dev_logits(self._run, read_model(self._start.references["none"]).content)
        return self._original_logits


PICTURE = "search.png"


def search_recipe(
    recipe: Recipe,
    spec: SearchSpec,
    *,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None = None,
    latency_table: CostTable | None = None,
    log: Log = lambda line: None,
    decoding: Decoding = lambda split, done, total: None,
    overwrite: bool = False,
) -> SearchResult:
    """Find the smallest model that keeps a tolerance, or the best one of a size, and score it on test once.

    Every point is kept in search.json, every candidate in a folder of its own; the same call again goes on from there.
    search.png shows all points where matplotlib is installed.

    Args:
        recipe: everything but the budgets that are searched.
        spec: goal, grid and bounds.
        data_dir: where the data set lies; only read.
        output_dir: the folder of the run.
        keras_model_file: an original model to start from; None trains `recipe.model`.
        latency_table: layer times that a device measured; None measures them here.
        log: is told of stages and epochs, one line each.
        decoding: is told (split, images done, images in all) while images are read.
        overwrite: replace a run that started from another model or other data.

    Raises:
        BudgetError: nothing keeps what it must; the line names the nearest point.
        CompressionError: and its other subclasses; all points so far are kept.
    """
    if spec.goal == "smallest":
        recipe = recipe.with_values(target_macs=None)  # the search sets it, point by point
    run = open_run(recipe, data_dir, output_dir, keras_model_file, log, decoding, overwrite=overwrite)
    runs = CandidateRuns(dataclasses.replace(run, latency_table=latency_table))
    try:
        found = search(recipe, spec, runs, folder=output_dir, fingerprint=runs.fingerprint, log=log)
    finally:
        _draw(output_dir, runs.fingerprint, spec)
    folder, picture = f"{CANDIDATES}/{folder_name(found.recipe)}", PICTURE if (output_dir / PICTURE).is_file() else ""
    write_text(output_dir / "README.md", render_search_readme(folder, picture=picture))
    return found


def _draw(folder: Path, fingerprint: str, spec: SearchSpec) -> None:
    """The points so far, also of a search that found nothing or was stopped; without matplotlib there is no picture."""
    tolerance = spec.max_auroc_drop if spec.goal == "smallest" else None
    with contextlib.suppress(ModuleNotFoundError):
        picture = draw_search(folder, fingerprint, title="Points of the search", tolerance=tolerance)
        write_bytes(folder / PICTURE, picture)

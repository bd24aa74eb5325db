"""The candidates of a search as runs of their own, which share the films and the uncut model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.modelfile import read_model
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.packing import dev_logits
from cxr_compress.pipeline.run import run_stages, take_folder
from cxr_compress.pipeline.search.runner import UNCUT, folder_name, shortened
from cxr_compress.pipeline.search.score import CandidateScore, score_on_dev
from cxr_compress.pipeline.stage import State
from cxr_compress.pipeline.stages import STAGES, stages_before
from cxr_compress.pipeline.stages.base import PriceLayers
from cxr_compress.pipeline.store import StageStore
from cxr_compress.recipe import Recipe
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
        """The hash of the original model and of the films of train and dev."""
        return hashlib.sha256(json.dumps([self._start.original.sha256, self._run.digest]).encode()).hexdigest()

    def uncut(self) -> Mapping[str, CandidateScore]:
        """The original model's own files on dev: "fp32" and "int8"."""
        names = {UNCUT if kind == "none" else kind: path for kind, path in self._start.references.items()}
        return {name: self._judge(self._run, path, self._start, 0.0) for name, path in names.items()}

    def judge_cheap(self, recipe: Recipe, *, epochs: int) -> CandidateScore:
        """A candidate after a short recovery."""
        return self._recover(recipe, shortened(recipe, epochs))

    def recover_full(self, recipe: Recipe) -> CandidateScore:
        """A candidate after the whole recipe, judged by the file that would ship."""
        return self._recover(recipe, recipe)

    def score_test(self, recipe: Recipe) -> dict[str, Any]:
        """The report of one candidate; the only method that looks at test films."""
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
            self._run.store.folder / CANDIDATES / folder_name(named), self._run.news, self._run.store.threads
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

"""Choosing a candidate: the grid and its refinement judged cheaply, the best few recovered, all of it on dev."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr_compress.errors import BudgetError
from cxr_compress.pipeline.search.record import (
    CHEAP,
    FULL,
    ORIGINAL,
    DevJudge,
    DevOnly,
    Point,
    Runner,
    SearchRecord,
    point_key,
)
from cxr_compress.pipeline.search.score import CandidateScore
from cxr_compress.pipeline.search.spec import (
    Bound,
    Candidate,
    SearchSpec,
    bounds_of,
    candidate,
    grid,
    keeps,
    next_budget,
    rank,
    worst_of,
)
from cxr_compress.recipe import Recipe

Log = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """A candidate and what came out.

    Attributes:
        candidate: its recipe.
        point: what is on record of it.
        bounds: what it must keep; empty where its budget cannot be reached.
    """

    candidate: Candidate
    point: Point
    bounds: list[Bound]

    @property
    def passes(self) -> bool:
        """Whether it can be built and keeps everything."""
        return self.point.score is not None and keeps(self.bounds)

    @property
    def score(self) -> CandidateScore:
        """What was measured.

        Raises:
            BudgetError: nothing was, because its budget cannot be reached.
        """
        if self.point.score is None:
            raise BudgetError(self.point.refused)
        return self.point.score


@dataclass(eq=False)
class Chooser:
    """One search on dev.

    Attributes:
        base: the recipe that candidates change.
        spec: what is searched.
        judge: judges on dev; has no way to test images.
        record: what was tried.
        log: is told of every point, one line each.
    """

    base: Recipe
    spec: SearchSpec
    judge: DevJudge
    record: SearchRecord
    log: Log
    _cheap: list[Judged] = field(default_factory=list)
    _full: list[Judged] = field(default_factory=list)

    def choose(self) -> Judged:
        """The best candidate that keeps what it must after the full recovery.

        Raises:
            BudgetError: no budget can be reached, or nothing keeps what it must: one line that names the nearest.
            CompressionError: whatever a candidate raises besides a BudgetError; all points so far are kept.
        """
        candidates = grid(self.base, self.spec)
        for number, one in enumerate(candidates, start=1):
            self._cheap.append(self._try(CHEAP, one, f"{number} of {len(candidates)}"))
        for column in sorted({one.column for one in candidates}):
            self._refine(column)
        for number, finalist in enumerate(self._ranked(self._cheap), start=1):
            if number > self.spec.finalists and self._ranked(self._full):
                break
            self._full.append(self._try(FULL, finalist.candidate, f"finalist {number}"))
        passing = self._ranked(self._full)
        if not passing:
            raise self._nothing()
        return passing[0]

    @property
    def original(self) -> CandidateScore:
        """The original float model on dev."""
        if not self.record.original:
            self.record.keep_original(self.judge.original())
        return self.record.original[ORIGINAL]

    def _refine(self, column: int) -> None:
        for number in range(1, self.spec.refinements + 1):
            mine = [one for one in self._cheap if one.candidate.column == column]
            passed = {one.candidate.macs: one.passes for one in mine if one.candidate.macs is not None}
            share = next_budget(passed, self.spec.step) if passed else None
            if share is None:
                return
            one = candidate(self.base, self.spec, column, share)
            self._cheap.append(self._try(CHEAP, one, f"refinement {number}"))

    def _try(self, stage: str, one: Candidate, place: str) -> Judged:
        """Judge a candidate unless that was done before."""
        epochs = self.spec.cheap_epochs
        key = point_key(stage, one.recipe, self.record.fingerprint, epochs)
        point = self.record.known(key)
        if point is None:
            score, refused = None, None
            try:
                score = (
                    self.judge.judge_cheap(one.recipe, epochs=epochs)
                    if stage == CHEAP
                    else self.judge.recover_full(one.recipe)
                )
            except BudgetError as error:
                refused = str(error)
            point = Point(key, stage, one.recipe.name, one.changes, self.record.fingerprint, score, refused)
            self.record.add(point)
        bounds = [] if point.score is None else bounds_of(point.score, self.original, self.spec, full=stage == FULL)
        judged = Judged(one, point, bounds)
        self.log(f"search, {place}: {_told(judged)}")
        return judged

    def _ranked(self, judged: list[Judged]) -> list[Judged]:
        """Those that pass, the best first; the order of ties is that of trying."""
        return sorted((one for one in judged if one.passes), key=lambda one: rank(one.score, self.spec.goal))

    def _nothing(self) -> BudgetError:
        """Why there is no winner, by the nearest point of the last stage that anything reached."""
        built = next(
            (found for found in ([one for one in tried if one.bounds] for tried in (self._full, self._cheap)) if found),
            [],
        )
        if not built:
            # The largest budget was tried first: its reason holds for all.
            return BudgetError(f"no budget of the search can be reached: {self._cheap[0].point.refused}")
        nearest = min(built, key=lambda one: worst_of(one.bounds).excess)
        recovery = "the full" if nearest.point.stage == FULL else "the short"
        return BudgetError(
            f"no model of the search keeps what it must on dev: the nearest after {recovery} recovery is "
            f"{nearest.point.name} ({nearest.score.tflite_bytes:,} bytes), {worst_of(nearest.bounds)}; allow more, "
            "search larger budgets or recover for more epochs"
        )


def _told(judged: Judged) -> str:
    score = judged.point.score
    if score is None:
        return f"{judged.point.name} cannot be built: {judged.point.refused}"
    verdict = "passes" if judged.passes else f"fails, {worst_of(judged.bounds)}"
    return (
        f"{judged.point.name} after the {'short' if judged.point.stage == CHEAP else 'full'} recovery: dev AUROC "
        f"{score.auroc:.4f} ({-score.auroc_drop:+.4f}), {score.tflite_bytes:,} bytes: {verdict}"
    )


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        recipe: of the winner.
        name: as the winner is called.
        dev: its score after the full recovery, on the images that chose it: a little too good, as of any choice.
        report: of the winner on test, as a run without a search gives it.
        test_looks: how many winners of searches with this base and these images were scored on test, this one
            included; above 1, the last of them is no longer untouched by test.
    """

    recipe: Recipe
    name: str
    dev: CandidateScore
    report: dict[str, Any]
    test_looks: int


def search(
    base: Recipe,
    spec: SearchSpec,
    runner: Runner,
    *,
    folder: Path,
    fingerprint: str,
    log: Log = lambda line: None,
) -> SearchResult:
    """Find the model that `spec` asks for, and score it on test.

    Every point tried is kept in search.json at once: the same call after a kill or Ctrl-C goes on from there, and a
    call with other bounds judges anew what is known already.

    Args:
        base: the recipe whose budgets are searched; its other targets hold for every candidate.
        spec: goal, grid and bounds.
        runner: makes and judges candidates.
        folder: where search.json goes.
        fingerprint: a hash of the original model and of the images of train and dev: what a score depends on besides
            the recipe.
        log: is told of every point, one line each.

    Raises:
        BudgetError: nothing keeps what it must; the line names the nearest point.
        CompressionError: and its subclasses, from the runner; all points so far are kept.
    """
    record = SearchRecord(folder, fingerprint)
    # What chooses is not given the runner: it could not look at test if it wanted to.
    winner = Chooser(base, spec, DevOnly.of(runner), record, log).choose()
    record.choose({"spec": dataclasses.asdict(spec), "winner": winner.point.key, "recipe": base.to_dict()})
    return _score_winner(winner, runner, record, log)


def _score_winner(winner: Judged, runner: Runner, record: SearchRecord, log: Log) -> SearchResult:
    """The only place that looks at test images."""
    looks = record.look_at_test(winner.point)
    if looks > 1:
        log(f"search: test images were scored for {looks - 1} earlier winner(s) too: this score is no longer untouched")
    report = record.report_of(winner.point)
    if report is None:
        report = runner.score_test(winner.candidate.recipe)
        record.keep_report(winner.point, report)
    score = winner.point.score
    assert score is not None
    return SearchResult(winner.candidate.recipe, winner.point.name, score, report, looks)

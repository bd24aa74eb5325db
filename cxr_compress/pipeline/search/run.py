"""A whole search: choose on dev, score the winner on test once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_compress.pipeline.search.choose import Chooser, Judged, News
from cxr_compress.pipeline.search.record import SearchRecord
from cxr_compress.pipeline.search.runner import DevOnly, Runner
from cxr_compress.pipeline.search.score import CandidateScore
from cxr_compress.pipeline.search.spec import SearchSpec
from cxr_compress.recipe import Recipe


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        recipe: of the winner.
        name: as the winner is called.
        dev: its score after the full recovery, on the films that chose it: a little too good, as of any choice.
        report: of the winner on test, as a run without a search gives it.
        test_looks: how many winners of searches with this base and these films were scored on test, this one
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
    news: News = lambda line: None,
) -> SearchResult:
    """Find the model that `spec` asks for, and score it on test.

    Every point tried is kept in search.json at once: the same call after a kill or Ctrl-C goes on from there, and a
    call with other bounds judges anew what is known already.

    Args:
        base: the recipe whose budgets are searched; its other targets hold for every candidate.
        spec: goal, grid and bounds.
        runner: makes and judges candidates.
        folder: where search.json goes.
        fingerprint: a hash of the uncut model and of the films of train and dev: what a score depends on besides the
            recipe.
        news: is told of every point, one line each.

    Raises:
        BudgetError: nothing keeps what it must; the line names the nearest point.
        CompressionError: and its subclasses, from the runner; all points so far are kept.
    """
    record = SearchRecord(folder, fingerprint)
    # What chooses is not given the runner: it could not look at test if it wanted to.
    winner = Chooser(base, spec, DevOnly.of(runner), record, news).choose()
    record.choose({"spec": dataclasses.asdict(spec), "winner": winner.point.key, "recipe": base.to_dict()})
    return _score_winner(winner, runner, record, news)


def _score_winner(winner: Judged, runner: Runner, record: SearchRecord, news: News) -> SearchResult:
    """The only place that looks at test films."""
    looks = record.look_at_test(winner.point)
    if looks > 1:
        news(f"search: test films were scored for {looks - 1} earlier winner(s) too: this score is no longer untouched")
    report = record.report_of(winner.point)
    if report is None:
        report = runner.score_test(winner.candidate.recipe)
        record.keep_report(winner.point, report)
    score = winner.point.score
    assert score is not None
    return SearchResult(winner.candidate.recipe, winner.point.name, score, report, looks)

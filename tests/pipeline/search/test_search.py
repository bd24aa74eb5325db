"""The search itself: what is tried in which order, what is chosen, what is kept, and who may look at test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxr_compress.errors import BudgetError, CompressionError, DataError
from cxr_compress.pipeline.search import RECORD_NAME, SearchSpec, draw_search, search
from cxr_compress.pipeline.search.choose import Chooser
from cxr_compress.pipeline.search.record import DevOnly, SearchRecord
from cxr_compress.recipe import Recipe
from tests.pipeline.search.judges import ORIGINAL, FormulaRunner, steep

BASE = Recipe(dataset="phantom")
GRID = (0.5, 0.25, 0.125, 0.0625)
SPEC = SearchSpec(macs=GRID, refinements=2)


def run(runner: FormulaRunner, folder: Path, spec: SearchSpec = SPEC, **options: Any):
    return search(BASE, spec, runner, folder=folder, **{"fingerprint": "images", **options})


def test_search_smallest_tries_the_grid_refines_and_takes_the_smallest_that_keeps_the_tolerance(tmp_path):
    runner = FormulaRunner()
    found = run(runner, tmp_path)
    # Cheaply, twice the tolerance may go: 0.125 loses 0.0075 of 0.01, 0.0625 loses 0.014. Halfway, by factors,
    # between them is sqrt(0.125 * 0.0625) = 0.0884, which loses 0.011, and then sqrt(0.125 * 0.0884) = 0.105, 0.0095.
    assert runner.of("cheap") == [*GRID, 0.0884, 0.105]
    # The three smallest that passed; in full, 0.005 may go: 0.105 and 0.125 lose more.
    assert runner.of("full") == [0.105, 0.125, 0.25]
    assert (found.recipe.target_macs, found.name) == (0.25, "tiny_chexnet_m25_w50_int8")
    assert found.report == {"rows": [], "of": 0.25}


def test_search_looks_at_test_once_at_the_end_and_for_the_winner_alone(tmp_path):
    runner = FormulaRunner()
    found = run(runner, tmp_path)
    assert runner.of("test") == [found.recipe.target_macs]
    assert runner.calls[-1][0] == "test"
    assert found.test_looks == 1


def test_search_gives_the_choosing_part_no_way_to_the_test_images(tmp_path):
    runner = FormulaRunner()
    assert not hasattr(DevOnly.of(runner), "score_test")

    class NoTest(FormulaRunner):
        score_test = None  # type: ignore[assignment]

    record = SearchRecord(tmp_path, "images")
    winner = Chooser(BASE, SPEC, DevOnly.of(NoTest()), record, lambda line: None).choose()
    assert winner.candidate.macs == 0.25
    # The control: a search with such a runner gets as far as the winner, and fails there.
    with pytest.raises(TypeError, match="not callable"):
        run(NoTest(), tmp_path)


def test_search_without_passing_point_scores_no_test_and_names_the_nearest(tmp_path):
    runner = FormulaRunner(lost=lambda macs: 0.03 - 0.01 * macs)
    with pytest.raises(BudgetError) as raised:
        run(runner, tmp_path)
    assert "nearest after the short recovery is tiny_chexnet_m84.1_w50_int8 (5,887,000 bytes), AUROC drop" in str(
        raised.value
    )
    assert "allowed 0.0100" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not runner.of("test")
    # Nothing on the grid passed, so larger budgets were tried too: between 0.5 and the original model.
    assert runner.of("cheap") == [*GRID, 0.707, 0.841]


def test_search_where_full_recovery_fails_goes_on_with_larger_candidates_one_by_one(tmp_path):
    runner = FormulaRunner(cheap_costs=0.1)  # a cheap judgement that lets everything pass
    found = run(runner, tmp_path, replace(SPEC, finalists=1))
    assert runner.of("full") == sorted(runner.of("full"))
    assert runner.of("full")[-1] == found.recipe.target_macs == 0.25
    assert len(runner.of("full")) > 1


def test_search_that_is_not_monotone_tries_all_and_finds_the_small_one_below_a_hole(tmp_path):
    runner = FormulaRunner(lost=lambda macs: 0.05 if 0.2 < macs < 0.4 else steep(macs + 0.1))
    found = run(runner, tmp_path)
    assert set(GRID) <= set(runner.of("cheap"))
    assert found.recipe.target_macs is not None
    assert found.recipe.target_macs < 0.125


def test_search_unreachable_budget_is_noted_with_its_reason_and_the_search_goes_on(tmp_path):
    runner = FormulaRunner(lost=lambda macs: 0.0, smallest=0.1)
    log: list[str] = []
    found = run(runner, tmp_path, log=log.append)
    assert found.recipe.target_macs == min(share for share in runner.of("cheap") if share >= 0.1)
    kept = json.loads((tmp_path / RECORD_NAME).read_text())["points"]
    (refused,) = (point for point in kept if point["changes"]["target_macs"] == 0.0625)
    assert (refused["score"], refused["refused"]) == (None, "reachable are 0.1, asked for 0.0625")
    assert any("tiny_chexnet_m6.25_w50_int8 cannot be built: reachable are 0.1" in line for line in log)


def test_search_with_no_reachable_budget_says_why(tmp_path):
    with pytest.raises(BudgetError, match=r"no budget of the search can be reached: reachable are 0\.9"):
        run(FormulaRunner(smallest=0.9), tmp_path)


def test_search_again_judges_and_scores_nothing_twice(tmp_path):
    first = run(FormulaRunner(), tmp_path)
    before = (tmp_path / RECORD_NAME).read_bytes()
    runner = FormulaRunner()
    assert run(runner, tmp_path) == first
    assert runner.calls == []
    assert (tmp_path / RECORD_NAME).read_bytes() == before


def test_search_killed_anywhere_and_started_again_finds_the_same_and_repeats_nothing(tmp_path):
    whole = FormulaRunner()
    expected = run(whole, tmp_path / "whole")
    kept = json.loads((tmp_path / "whole" / RECORD_NAME).read_text())
    for moment in range(len(whole.calls)):
        folder = tmp_path / str(moment)
        first = FormulaRunner(killed_at=moment)
        with pytest.raises(KeyboardInterrupt):
            run(first, folder)
        second = FormulaRunner()
        assert run(second, folder) == expected
        assert [*first.calls, *second.calls] == whole.calls
        assert json.loads((folder / RECORD_NAME).read_text()) == kept


@pytest.mark.parametrize(
    ("changed", "judged_again"),
    [
        ({}, False),
        ({"fingerprint": "other images"}, True),
        ({"base": replace(BASE, criterion="l2")}, True),
        ({"spec": replace(SPEC, cheap_epochs=2)}, True),
        ({"spec": replace(SPEC, max_auroc_drop=0.004, margin=None)}, False),
    ],
)
def test_search_judges_anew_what_depends_on_a_change_and_keeps_the_rest(tmp_path, changed, judged_again):
    run(FormulaRunner(), tmp_path)
    runner = FormulaRunner()
    call = {"base": BASE, "spec": SPEC, "fingerprint": "images", **changed}
    search(call["base"], call["spec"], runner, folder=tmp_path, fingerprint=call["fingerprint"])
    assert (0.5 in runner.of("cheap")) == judged_again


def test_search_with_another_winner_on_the_same_images_says_that_test_was_looked_at_before(tmp_path):
    run(FormulaRunner(), tmp_path)
    log: list[str] = []
    found = run(FormulaRunner(), tmp_path, replace(SPEC, max_auroc_drop=0.0049), log=log.append)
    assert found.recipe.target_macs == 0.25, "the same winner, the same look"
    assert found.test_looks == 1
    found = run(FormulaRunner(), tmp_path, replace(SPEC, max_auroc_drop=0.02, margin=None), log=log.append)
    assert found.recipe.target_macs != 0.25
    assert found.test_looks == 2
    assert any("no longer untouched" in line for line in log)
    other = search(BASE, SPEC, FormulaRunner(), folder=tmp_path, fingerprint="other images")
    assert other.test_looks == 1, "other images are other test images"


def test_search_best_auroc_tries_all_ways_to_cut_within_the_bytes(tmp_path):
    class Scopes(FormulaRunner):
        def score(self, recipe: Recipe, times: float = 1.0):
            assert recipe.target_bytes == 2_000_000
            lost = {"global": 0.01, "local": 0.002, "sensitivity": 0.0021}[recipe.scope]
            # Equal to three digits: the loss decides.
            loss = {"global": 0.1, "local": 0.3, "sensitivity": 0.25}[recipe.scope]
            return replace(ORIGINAL, auroc=ORIGINAL.auroc - lost, auroc_drop=lost, loss=loss, tflite_bytes=1_990_000)

    runner = Scopes()
    found = run(runner, tmp_path, SearchSpec(goal="best_auroc", max_bytes=2_000_000))
    assert runner.of("cheap") == [None] * 3
    assert found.recipe.scope == "sensitivity"
    assert found.recipe.target_bytes == 2_000_000


def test_search_best_auroc_never_takes_a_file_above_its_bytes(tmp_path):
    spec = SearchSpec(goal="best_auroc", max_bytes=1_000_000, macs=GRID, variants=({},))
    found = run(FormulaRunner(), tmp_path, spec)
    assert found.dev.tflite_bytes <= 1_000_000
    assert found.recipe.target_macs == 0.125


def test_search_over_zeros_takes_the_file_that_deflates_better_at_equal_bytes(tmp_path):
    found = run(FormulaRunner(), tmp_path, replace(SPEC, weight_sparsity=(0.0, 0.75), refinements=0))
    assert (found.recipe.target_macs, found.recipe.weight_sparsity) == (0.25, 0.75)


def test_search_error_of_a_candidate_that_is_no_budget_stops_and_keeps_the_points(tmp_path):
    class Broken(FormulaRunner):
        def judge_cheap(self, recipe: Recipe, *, epochs: int):
            if recipe.target_macs == 0.125:
                raise DataError("the disk is full")
            return super().judge_cheap(recipe, epochs=epochs)

    with pytest.raises(DataError, match="disk is full"):
        run(Broken(), tmp_path)
    runner = FormulaRunner()
    run(runner, tmp_path)
    assert runner.of("cheap")[0] == 0.125


def test_search_variant_that_is_no_recipe_is_refused_before_anything_is_tried(tmp_path):
    runner = FormulaRunner()
    with pytest.raises(CompressionError, match="unknown in a recipe: scoop"):
        run(runner, tmp_path, replace(SPEC, variants=({"scoop": "global"},)))
    assert runner.calls == []


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 99, "points": [], "tests": []}', '{"format": 1}'])
def test_search_with_a_damaged_record_leaves_it_and_says_what_to_do(tmp_path, damage):
    (tmp_path / RECORD_NAME).write_text(damage)
    with pytest.raises(DataError, match="move it away to start the search anew"):
        run(FormulaRunner(), tmp_path)
    assert (tmp_path / RECORD_NAME).read_text() == damage


def test_search_record_without_a_field_of_a_point_is_refused(tmp_path):
    run(FormulaRunner(), tmp_path)
    content = json.loads((tmp_path / RECORD_NAME).read_text())
    del content["points"][0]["score"]["loss"]
    (tmp_path / RECORD_NAME).write_text(json.dumps(content))
    with pytest.raises(DataError, match="as this version writes it"):
        run(FormulaRunner(), tmp_path)


def test_search_log_is_one_line_a_point_with_its_verdict(tmp_path):
    log: list[str] = []
    run(FormulaRunner(), tmp_path, log=log.append)
    assert log[0] == (
        "search, 1 of 4: tiny_chexnet_m50_w50_int8 after the short recovery: dev AUROC 0.9500 (-0.0000), "
        "3,500,000 bytes: passes"
    )
    assert log[3].endswith("437,500 bytes: fails, distance of the logits 0.1375, allowed 1.0000") or (
        "fails, AUROC drop 0.0138, allowed 0.0100" in log[3]
    )
    assert all("\n" not in line for line in log)
    assert len(log) == 4 + 2 + 3


def test_draw_search_shows_what_was_tried(tmp_path):
    pytest.importorskip("matplotlib")
    run(FormulaRunner(smallest=0.1), tmp_path)
    png = draw_search(tmp_path, "images", title="tiny_chexnet on phantom", tolerance=0.005)
    assert png.startswith(b"\x89PNG")
    assert png != draw_search(tmp_path, "images", title="tiny_chexnet on phantom")
    with pytest.raises(DataError, match="expected points with a size and an AUROC to draw, got none"):
        draw_search(tmp_path, "never searched", title="")

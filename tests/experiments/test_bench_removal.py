"""The removal benchmark runs, agrees with itself, judges its bars, and has the same network on both sides."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "experiments" / "bench_removal.py"
RESULT = REPOSITORY / "experiments" / "results" / "bench_removal.json"
STEPS = ("analysis_seconds", "score_seconds", "plan_seconds", "rebuild_seconds")


def run_smoke(*arguments: str) -> tuple[dict, str]:
    """The report and the progress lines."""
    before = RESULT.stat().st_mtime_ns if RESULT.exists() else None
    command = [sys.executable, str(SCRIPT), "--smoke", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (RESULT.stat().st_mtime_ns if RESULT.exists() else None) == before
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script as a module; it defines its flags only when it is run."""
    spec = importlib.util.spec_from_file_location("bench_removal", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bench_removal_smoke_without_torch_measures_our_side_and_says_how_to_get_the_other():
    report, progress = run_smoke()
    assert set(report["networks"]["tiny"]) == {"ours"}
    ours = report["networks"]["tiny"]["ours"]
    assert ours["total_seconds"] == pytest.approx(sum(ours[step] for step in STEPS), abs=1e-3)  # rounded to 1e-4 each
    # 30 % of every width leaves about 0.7^2 of the weights; rounding keeps a little more of each.
    assert 0.49 < ours["pruned_params"] / ours["params"] < 0.55
    assert 0 < ours["resident_before_bytes"] <= ours["peak_bytes"]
    whole = report["whole_step_with_reconstruction"]
    assert whole["images"] == 8
    assert whole["refitted_layers"] > 0
    assert report["whole_step_with_reconstruction_peak_bytes"] > whole["resident_before_bytes"]
    assert "--torch_env=DIR" in progress


def test_bench_removal_smoke_with_torch_removes_the_same_from_the_same_network():
    python = os.environ.get("CXR_TORCH_PYTHON")
    if not python:
        pytest.skip("Torch-Pruning not found: set CXR_TORCH_PYTHON to a Python with torch and torch-pruning")
    report, _ = run_smoke(f"--torch_python={python}")
    ours, theirs = (report["networks"]["tiny"][side] for side in ("ours", "torch_pruning"))
    assert (theirs["params"], theirs["pruned_params"]) == (ours["params"], ours["pruned_params"])
    assert theirs["graph_seconds"] > 0
    assert theirs["versions"]["torch-pruning"] == "1.6.1"


def report_of(analysis: float, ours: float, theirs: float, peak: int) -> dict:
    sides = {
        "ours": {"analysis_seconds": analysis, "total_seconds": ours},
        "torch_pruning": {"graph_seconds": 0.5, "total_seconds": theirs},
    }
    networks = {"DenseNet121": sides, "DenseNet201": sides}
    return {"networks": networks, "whole_step_with_reconstruction_peak_bytes": peak}


def test_judge_with_every_number_at_its_limit_passes_all_bars(bench):
    bars = bench.judge(report_of(0.05, 15.0, 15.0, 3 << 30))
    assert len(bars) == 7
    assert all(bar["passed"] for bar in bars)


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [
        ((0.051, 15.0, 15.0, 1), {"analysis over their graph build"}),
        ((0.05, 9.0, 8.9, 1), {"whole removal beside theirs, seconds"}),
        ((0.05, 15.1, 20.0, 1), {"whole removal, seconds"}),
        ((0.201, 1.0, 2.0, 1), {"analysis, seconds", "analysis over their graph build"}),
        ((0.05, 1.0, 2.0, (3 << 30) + 1), {"peak bytes"}),
    ],
)
def test_judge_with_one_number_past_its_limit_misses_that_bar(bench, numbers, missed):
    bars = bench.judge(report_of(*numbers))
    assert {bar["bar"].split(": ")[1] for bar in bars if not bar["passed"]} == missed


def test_require_equal_with_other_networks_stops(bench):
    same = {"params": 10, "pruned_params": 5}
    bench.require_equal("tiny", {"ours": same, "torch_pruning": dict(same)})
    with pytest.raises(SystemExit, match="expected the same tiny on both sides, got pruned_params"):
        bench.require_equal("tiny", {"ours": same, "torch_pruning": {"params": 10, "pruned_params": 6}})


def test_all_of_gives_the_budget_that_takes_the_share_from_every_group(bench):
    from cxr_compress.models import tiny_chexnet
    from cxr_compress.structured import analyze_channels, score_channels, select_channels

    model = tiny_chexnet()
    analysis = analyze_channels(model)
    plan = select_channels(
        analysis,
        score_channels(model, analysis),
        bench.all_of(analysis, 0.25),
        scope="local",
        round_to=1,
        max_removed_fraction=0.25,
    )
    # All widths are multiples of 4, so a quarter is a whole number of filters.
    assert {name: len(kept) / analysis.groups[name].channels for name, kept in plan.kept.items()} == dict.fromkeys(
        analysis.groups, 0.75
    )

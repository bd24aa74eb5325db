"""experiments/bench_convert.py runs, checks what it says it checks, and writes its results."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "bench_convert.py"


def test_bench_convert_smoke_writes_results_and_finds_agreement(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--smoke", f"--results_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "bench_convert.json").read_text())
    assert json.loads(done.stdout) == report
    agreement = report["agreement"]
    assert agreement["float_ours_vs_stock"] <= 1e-6
    assert agreement["fp16_ours_vs_stock"] <= 1e-6
    assert agreement["int8_same_ranges_max_lsb"] <= 1
    assert agreement["int16x8_same_ranges_max_lsb"] <= 1
    assert agreement["wrong_image_difference"] > 1e-2
    with (tmp_path / "bench_convert.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    types = ["none", "fp16", "dynamic", "int8", "int16x8"]
    expected = [("ours", name) for name in ("shared", *types, "all")] + [("stock", name) for name in (*types, "all")]
    assert [(row["converter"], row["quant_type"]) for row in rows] == expected
    seconds = {(row["converter"], row["quant_type"]): float(row["seconds"]) for row in rows}
    # The parts of our one call are all of it, but for what lies before and between the stages.
    parts = sum(seconds["ours", name] for name in ("shared", *types))
    assert parts == pytest.approx(seconds["ours", "all"], rel=0.1)
    totals = report["totals"]
    assert totals["seconds_ours"] == seconds["ours", "all"]
    assert 10**8 < totals["peak_bytes_before_ours"] <= totals["peak_bytes_ours"]
    assert totals["fraction_of_stock_memory"] == pytest.approx(
        totals["peak_bytes_ours"] / totals["peak_bytes_stock"], abs=1e-3
    )

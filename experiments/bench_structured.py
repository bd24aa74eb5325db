r"""How long analysis, plan and rebuild of a DenseNet121 take, and what removing filters does to its latency.

Command:  python experiments/bench_structured.py
Time:     about 2 minutes on two cores.
Result:   experiments/results/bench_structured.json; the bars are analysis < 0.2 s, plan < 1 s, rebuild < 12 s, and
          at half the MACs at most 0.65 of the original model's time per image (224 px, same runtime, same threads).

The weights are random: neither the time of an operation nor that of a kernel depends on their values. Latencies of
both models are measured turn by turn in one process, so the ratio holds where single times drift with the machine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from cxr_compress.device.benchmark import measure_together
from cxr_compress.files import write_text
from cxr_compress.lite import convert
from cxr_compress.models import chexnet, tiny_chexnet
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    analyze_channels,
    remove_channels,
    score_channels,
    select_channels,
)

RESULTS = Path(__file__).parent / "results"

_SMOKE = flags.DEFINE_boolean("smoke", False, "A small network and few runs: checks the script, measures nothing.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed repetitions of analysis, scores and plan.")
_RUNS = flags.DEFINE_integer("runs", 50, "Timed inferences per model.")
_THREADS = flags.DEFINE_integer("num_threads", 1, "Threads of the TFLite kernels.")
_TARGET = flags.DEFINE_float("target_macs", 0.5, "Share of the MACs that stays.")
_SCOPES = flags.DEFINE_list("scopes", ["global", "local"], "How filters are ranked.")


def timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The last result and the median seconds; the first, untimed call pays for imports and caches."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


def main(_: list[str]) -> None:
    """Measure, print and write the results."""
    model = tiny_chexnet(14, (64, 64, 3)) if _SMOKE.value else chexnet()
    repeats, runs = (1, 2) if _SMOKE.value else (_REPEATS.value, _RUNS.value)
    round_to = 4 if _SMOKE.value else 8
    analysis, analysis_seconds = timed(lambda: analyze_channels(model), repeats)
    scores, score_seconds = timed(lambda: score_channels(model, analysis), repeats)
    files = {"original": convert(model, "none").content}
    rows: dict[str, Any] = {}
    for scope in _SCOPES.value:

        def plan_it(scope: str = scope) -> ChannelPlan:
            return select_channels(analysis, scores, Budget(macs=_TARGET.value), scope=scope, round_to=round_to)

        plan, plan_seconds = timed(plan_it, repeats)
        started = time.perf_counter()
        pruned = remove_channels(model, plan)
        rebuild_seconds = time.perf_counter() - started
        files[scope] = convert(pruned, "none").content
        rows[scope] = {
            "plan_seconds": plan_seconds,
            "rebuild_seconds": rebuild_seconds,
            "params": plan.after.params,
            "macs": plan.after.macs,
            "macs_fraction": plan.after.macs / plan.before.macs,
        }
    latency = measure_together(files, runs=runs, num_threads=_THREADS.value)
    for scope, row in rows.items():
        row["tflite_bytes"] = len(files[scope])
        row["p50_ms"] = latency[scope].p50_ms
        row["time_ratio"] = latency[scope].p50_ms / latency["original"].p50_ms
    result = {
        "model": model.name,
        "groups": len(analysis.groups),
        "before": analysis.baseline.to_dict(),
        "analysis_seconds": analysis_seconds,
        "score_seconds": score_seconds,
        "original": {"tflite_bytes": len(files["original"]), **latency["original"].to_dict()},
        "half": rows,
    }
    print(json.dumps(result, indent=2))
    if not _SMOKE.value:
        RESULTS.mkdir(exist_ok=True)
        write_text(RESULTS / "bench_structured.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)

r"""Draw the report of a finished run: bytes, time per image and AUROC of each file, side by side.

Command:  python experiments/plot_report.py --report=demo_run/report.json --output=experiments/results/demo.png
Time:     2 seconds.
Result:   a PNG. Needs the extra `report` (matplotlib).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from cxr_compress.errors import CompressionError
from cxr_compress.recipe import Recipe
from cxr_compress.report import read_report

_REPORT = flags.DEFINE_string("report", "demo_run/report.json", "The report.json of a run.")
_OUTPUT = flags.DEFINE_string("output", "experiments/results/demo.png", "The picture to write.")

COLORS = ("#8a97a6", "#5b8db8", "#1f5f99")
INK = "#22303c"


def draw(report: Mapping[str, Any], output: Path) -> None:
    """Three panels that share one row per file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["rows"]
    compressed = f"compressed, {Recipe.from_dict(report['facts']['recipe']).export.quant_type}"
    names = ["original, float32", "original, int8", compressed][: len(rows)]
    figure, panels = plt.subplots(1, 3, figsize=(11, 2.6), sharey=True, layout="constrained")
    _bars(panels[0], names, [row["tflite_bytes"] / 1e3 for row in rows], "file size, kB", "{:,.0f} kB")
    _bars(panels[1], names, [row["latency"]["p50_ms"] for row in rows], "time per image, ms", "{:.2f} ms")
    _intervals(panels[2], [row["evaluation"]["mean_auroc"] for row in rows])
    panels[0].invert_yaxis()
    dataset = report["dataset"]
    what = "SYNTHETIC images" if dataset["synthetic"] else f"{dataset['splits']['test']['images']} official test images"
    figure.suptitle(f"{rows[0]['name'].removesuffix('_fp32')} on {dataset['name']}, {what}", color=INK, fontsize=11)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)


def _bars(panel: Any, names: Sequence[str], values: Sequence[float], title: str, form: str) -> None:
    panel.barh(range(len(values)), values, color=COLORS[: len(values)], height=0.62)
    for place, value in enumerate(values):
        panel.text(value, place, " " + form.format(value), va="center", color=INK, fontsize=9)
    panel.set_yticks(range(len(names)), names, color=INK)
    panel.set_xlim(0, max(values) * 1.3)
    _tidy(panel, title)


def _intervals(panel: Any, intervals: Sequence[Mapping[str, float]]) -> None:
    """AUROC as a point with its interval: bars that start at 0 would hide every difference."""
    for place, (found, color) in enumerate(zip(intervals, COLORS, strict=False)):
        panel.plot([found["low"], found["high"]], [place, place], color=color, linewidth=3, solid_capstyle="round")
        panel.plot(found["value"], place, "o", color=color, markersize=8)
        panel.text(found["value"], place - 0.3, f"{found['value']:.3f}", ha="center", color=INK, fontsize=9)
    _tidy(panel, "AUROC on test, 95 % interval")


def _tidy(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10, color=INK, loc="left")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=8, colors=INK)
    panel.locator_params(axis="x", nbins=5)


def main(_: list[str]) -> None:
    """Draw the report that the flags name."""
    try:
        draw(read_report(_REPORT.value), Path(_OUTPUT.value))
    except CompressionError as error:
        sys.exit(f"plot_report: {error}")
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)

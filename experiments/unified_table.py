r"""The table and the plot of the unified runs, from what unified.py measured.

Command:  python experiments/unified_table.py
Time:     2 seconds.
Result:   the table of experiments/README.md on stdout, then what the parts alone reach at the same deflated bytes; the
          plot in experiments/results/unified.png. Needs the extra `report` (matplotlib).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.files import write_bytes
from cxr_compress.recipe import Recipe
from cxr_compress.report.plots import TRIED, ParetoPoint, draw_pareto

HEADERS = (
    *("row", "`.tflite` bytes", "deflated", "MACs", "params", "faster", "AUROC [95 % CI]", "change [95 % CI]"),
    *("loss small, non-inferior", "minutes", "GB"),
)

_RESULTS = flags.DEFINE_string("results", str(Path(__file__).parent / "results" / "unified.json"), "From unified.py.")
_OUTPUT = flags.DEFINE_string("output", None, "The plot; by default beside the results.")


def table(results: Mapping[str, Any]) -> str:
    """Markdown: the original model, then the rows by method and size."""
    lines = [_line(HEADERS), _line("---" for _ in HEADERS), _line(_original(results))]
    rows: Mapping[str, Any] = results["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows.values()))
    order = sorted(rows.values(), key=lambda row: (methods.index(row["method"]), -row["deflated_bytes"]))
    return "\n".join([*lines, *(_line(_cells(row)) for row in order)])


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _original(results: Mapping[str, Any]) -> list[str]:
    row = next(iter(results["rows"].values()))
    original = row["original"]
    sizes = [f"{original[name]:,}" for name in ("tflite_bytes", "deflated_bytes")]
    return [
        "original, float32",
        *sizes,
        "1",
        f"{original['params']:,}",
        "1.0x",
        _interval(row["original_auroc"]),
        *[""] * 4,
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    gate = row["gate"]
    return [
        _name(row),
        f"{row['tflite_bytes']:,}",
        f"{row['deflated_bytes']:,}",
        f"{row['macs_fraction']:.3f}",
        f"{row['params']:,}",
        f"{row['speedup']:.1f}x",
        _interval(row["auroc"]),
        _interval(row["difference"], signed=True),
        ", ".join("yes" if gate[name] else "**no**" for name in ("small_loss", "non_inferior")),
        f"{row['seconds'] / 60:.0f}",
        f"{row['peak_memory_bytes'] / 1e9:.1f}",
    ]


def _name(row: Mapping[str, Any]) -> str:
    sparsity = Recipe.from_dict(row["recipe"]).sparsity.fraction
    return row["method"] + (f", {sparsity:.0%} zeros" if sparsity else "")


def _interval(found: Mapping[str, float | None], *, signed: bool = False) -> str:
    value, low, high = (
        "?" if found[key] is None else format(found[key], "+.4f" if signed else ".4f")
        for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def comparisons(results: Mapping[str, Any]) -> str:
    """One line per unified row and part alone: the paired difference at the same deflated bytes or more."""
    rows, lines = results["rows"], []
    for found in results["comparisons"]:
        mine, other = rows[found["row"]], rows[found["other"]]
        verdict = "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "no difference shown"
        note = " (it has no row as large)" if found["smaller"] else ""
        lines.append(
            f"- {_name(mine)} at {mine['deflated_bytes']:,} deflated bytes, minus {_name(other)} at "
            f"{other['deflated_bytes']:,}{note}: {_interval(found, signed=True)}, {verdict}"
        )
    return "\n".join(lines)


def draw(results: Mapping[str, Any]) -> bytes:
    """Deflated bytes against AUROC on test, a series per method."""
    rows = list(results["rows"].values())
    points = [_point(_name(row), row["deflated_bytes"], row["auroc"], row["method"]) for row in rows]
    auroc = rows[0]["original_auroc"]
    original = _point("original, float32", rows[0]["original"]["deflated_bytes"], auroc)
    dataset = results["dataset"]
    images = f"{dataset['test_images']} test images of {dataset['name']}"
    return draw_pareto(
        points,
        [original],
        title=("SYNTHETIC images: " if dataset["synthetic"] else "") + "what each way of compressing keeps",
        floor=auroc["value"] - rows[0]["gate"]["max_loss"],
        x_label=f"deflated bytes at {rows[0]['size']} px",
        y_label=f"AUROC, {images}",
    )


def _point(name: str, size: int, auroc: Mapping[str, Any], series: str = TRIED) -> ParetoPoint:
    return ParetoPoint(name, size, auroc["value"], auroc["low"], auroc["high"], series)


def main(_: list[str]) -> None:
    """Read, print, draw."""
    path = Path(_RESULTS.value)
    if not path.is_file():
        sys.exit(f"unified_table: {path} is missing: run unified.py first")
    results = json.loads(path.read_text(encoding="utf-8"))
    if not results["rows"]:
        sys.exit("unified_table: no row is there yet: run unified.py first")
    print(f"{table(results)}\n\n{comparisons(results)}\n\n{INTENDED_USE}")
    write_bytes(Path(_OUTPUT.value) if _OUTPUT.value else path.with_suffix(".png"), draw(results))


if __name__ == "__main__":
    app.run(main)

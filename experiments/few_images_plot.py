r"""Draw a table of few_images.py: AUROC over the number of images, and over seconds where rows were trained.

Command:  python experiments/few_images_plot.py --table=experiments/results/few_images_kermany.csv
Time:     2 seconds.
Result:   a PNG beside the table: a panel for each kind of images and budget without training, with the least and the
          largest draw; below, AUROC and distance of the logits over the seconds that each number of passes takes.

Needs the extra `report` (matplotlib).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import app, flags

from cxr_compress.files import write_bytes

_KINDS = {"mixed": "images of both kinds", "normal": "normal images alone"}
_NAMES = {
    "fixed": "l1, one pull for all layers",
    "chosen": "l1, pull chosen on unseen images",
    "varied": "l1, and varied copies (default)",
    "taylor": "taylor, refitted",
    "random": "random filters, refitted",
    "norms": "random filters, batch norms alone",
    "scratch": "same shape, random weights",
}
_MARKS = {0: "o", 1: "v", 4: "s", 16: "D"}

_TABLE = flags.DEFINE_string("table", None, "The table of few_images.py.", required=True)

Rows = list[dict[str, str]]


def of(rows: Rows, **wanted: Any) -> Rows:
    """Those whose columns hold the wanted text."""
    return [row for row in rows if all(row[name] == str(value) for name, value in wanted.items())]


def distinct(rows: Rows, name: str) -> list[str]:
    """The values of a column, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def numbers(rows: Iterable[dict[str, str]], name: str) -> list[float]:
    """A column as numbers."""
    return [float(row[name]) for row in rows]


def draw_untrained(panel: Any, rows: Rows, title: str) -> None:
    """AUROC over the number of images, one line a way."""
    for way in distinct(rows, "way"):
        line = sorted(of(rows, way=way), key=lambda row: int(row["images"]))
        images = numbers(line, "images")
        (drawn,) = panel.plot(images, numbers(line, "auroc"), marker="o", label=_NAMES[way])
        low, high = numbers(line, "auroc_low"), numbers(line, "auroc_high")
        panel.fill_between(images, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    panel.set(title=title, xlabel="images (mean, least and largest of the draws)", ylabel="AUROC", xscale="log")
    ticks = sorted({int(row["images"]) for row in rows})
    panel.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    panel.minorticks_off()
    panel.legend(fontsize=7)


def draw_trained(panel: Any, rows: Rows, column: str, label: str) -> None:
    """A column over seconds, one line for each way and number of images."""
    styles = dict(zip(sorted({int(row["images"]) for row in rows}), (":", "--", "-"), strict=False))
    colors = {way: f"C{number}" for number, way in enumerate(distinct(rows, "way"))}
    for way, color in colors.items():
        for images, style in styles.items():
            line = sorted(of(rows, way=way, images=images), key=lambda row: int(row["passes"]))
            seconds, values = numbers(line, "seconds"), numbers(line, column)
            panel.plot(seconds, values, style, color=color, label=f"{_NAMES[way]}, {images} images")
            for row, second, value in zip(line, seconds, values, strict=True):
                panel.plot(second, value, _MARKS.get(int(row["passes"]), "x"), color=color, markersize=4)
    passes = ", ".join(f"{_MARKS.get(number, 'x')} {number}" for number in sorted({int(row["passes"]) for row in rows}))
    panel.set(xlabel=f"seconds (passes: {passes})", ylabel=label, xscale="log")
    panel.legend(fontsize=6)


def draw(rows: Rows) -> bytes:
    """The PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    untrained = of(rows, passes=0)
    trained_ways = {row["way"] for row in rows if row["passes"] != "0"}
    kinds, targets = distinct(untrained, "kind"), distinct(untrained, "target_macs")
    trained = [row for row in rows if row["way"] in trained_ways and row["kind"] == kinds[0]]
    trained_targets = [target for target in targets if len(distinct(of(trained, target_macs=target), "passes")) > 1]
    lines = len(kinds) + len(trained_targets)
    figure, panels = plt.subplots(lines, 2, figsize=(12, 4 * lines), layout="constrained", squeeze=False)
    for line, kind in enumerate(kinds):
        for panel, target in zip(panels[line], targets, strict=False):
            shown = [row for row in of(untrained, kind=kind, target_macs=target) if row["way"] != "scratch"]
            draw_untrained(panel, shown, f"{_KINDS[kind]}, {float(target):g} of the MACs, nothing trained")
    for line, target in enumerate(trained_targets, len(kinds)):
        shown = of(trained, target_macs=target)
        draw_trained(panels[line][0], shown, "auroc", f"AUROC at {float(target):g} of the MACs")
        draw_trained(panels[line][1], shown, "logit_distance", "distance of the logits")
    content = io.BytesIO()
    figure.savefig(content, dpi=100, metadata={"Software": None})
    return content.getvalue()


def main(_: list[str]) -> None:
    """Draw the table."""
    table = Path(_TABLE.value)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    write_bytes(table.with_suffix(".png"), draw(rows))


if __name__ == "__main__":
    app.run(main)

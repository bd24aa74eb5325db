r"""Tables and plot of a criteria run: what every criterion loses at every budget, and which differences are real.

Command:  python experiments/criteria_table.py --run_dir=criteria_run
Time:     20 seconds.
Result:   experiments/results/criteria.csv, one line per criterion and budget, AUROC per repair (mean over the seeds of
          `random`); criteria.json, per budget the loss of each with its paired interval (patients resampled 1,000
          times, the same sets for all), LASSO against l1 and against random; criteria.png.

Needs the extra `report` (matplotlib).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags

from cxr_compress.errors import DataError
from cxr_compress.files import write_bytes, write_text
from cxr_compress.metrics import auroc_per_finding, auroc_samples, bootstrap_mean

MEASURES = ("raw", "reestimated", "recalibrated", "reconstructed", "reconstructed_recalibrated")
COLUMNS = ("criterion", "seeds", "target_macs", "macs_fraction", "params", "original", *MEASURES, "note")
PANELS = {
    "raw": "as cut",
    "recalibrated": "batch norms as in the original model",
    "reconstructed": "consumers refitted (axis magnified)",
}
# Where `random` loses this much, a criterion can show what it is worth.
TELLING_LOSS = 0.03

_RUN = flags.DEFINE_string("run_dir", "criteria_run", "What criteria.py left.")
_OUTPUT = flags.DEFINE_string(
    "output", str(Path(__file__).parent / "results" / "criteria.csv"), "The table; .json and .png lie beside it."
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scored:
    """The (mean) AUROC of one or more models, itself and on each resampled set.

    Attributes:
        values: (k,) per finding.
        drawn: (samples, k).
    """

    values: Array
    drawn: Array

    @property
    def auroc(self) -> float:
        """Mean over findings."""
        return float(np.nanmean(self.values))

    def minus(self, other: Scored) -> dict[str, float]:
        """The difference with its paired 95 % interval."""
        found = bootstrap_mean(self.values - other.values, self.drawn - other.drawn)
        return {"value": round(found.value, 5), "low": round(found.low, 5), "high": round(found.high, 5)}


@dataclass(frozen=True, eq=False)
class Point:
    """One criterion at one budget; `measures` is empty where it has nothing to say, and `note` says why."""

    criterion: str
    target: float
    seeds: int
    macs: float
    params: float
    measures: Mapping[str, Scored]
    note: str = ""


def read_run(folder: Path) -> tuple[Scored, float, list[Point]]:
    """The original model, its MACs, and every point, seeds pooled.

    Raises:
        DataError: no run there.
    """
    if not (folder / "original.npz").is_file():
        raise DataError("expected --run_dir to hold what criteria.py wrote, found no original.npz")
    original = _load(folder / "original.npz")
    labels, patients = original["labels"], original["patients"].tolist()

    def score(logits: npt.NDArray[Any]) -> Scored:
        return Scored(auroc_per_finding(labels, logits), auroc_samples(labels, logits, patients))

    files: dict[tuple[str, float], list[Path]] = {}
    for path in sorted(folder.glob("*-*-*.npz")):
        criterion, _, target = path.stem.rsplit("-", 2)
        files.setdefault((criterion, float(target)), []).append(path)
    points = [_point(criterion, target, paths, score) for (criterion, target), paths in files.items()]
    points.sort(key=lambda point: (-point.target, point.criterion))
    return score(original["logits"]), float(original["macs"]), points


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _point(criterion: str, target: float, paths: Sequence[Path], score: Any) -> Point:
    rows = [_load(path) for path in paths]
    if "note" in rows[0]:
        return Point(criterion, target, len(rows), 0, 0, {}, str(rows[0]["note"]))
    measures = {}
    for name in MEASURES:
        scored = [score(row[name]) for row in rows]
        measures[name] = Scored(
            np.mean([one.values for one in scored], axis=0), np.mean([one.drawn for one in scored], axis=0)
        )
    macs, params = (float(np.mean([row[name] for row in rows])) for name in ("macs", "params"))
    return Point(criterion, target, len(rows), macs, params, measures)


def table(original: Scored, whole: float, points: Sequence[Point]) -> str:
    """The CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for point in points:
        row: dict[str, Any] = {"criterion": point.criterion, "seeds": point.seeds, "target_macs": point.target}
        row.update(original=round(original.auroc, 4), note=point.note)
        if point.measures:
            row.update(macs_fraction=round(point.macs / whole, 4), params=round(point.params))
        writer.writerow({**row, **{name: round(scored.auroc, 4) for name, scored in point.measures.items()}})
    return text.getvalue()


def comparisons(original: Scored, points: Sequence[Point]) -> dict[str, Any]:
    """Losses with intervals, and LASSO beside l1 and random at each budget."""
    found: dict[str, Any] = {}
    for point in points:
        budget = found.setdefault(str(point.target), {"loss": {}})
        budget["loss"][point.criterion] = {name: original.minus(scored) for name, scored in point.measures.items()}
    for target, budget in found.items():
        here = {point.criterion: point.measures for point in points if str(point.target) == target and point.measures}
        if {"random", "lasso"} <= set(here):
            # Whichever way of re-estimating batch norms does more for `random`: it should not lose by the repair.
            best = max(here["random"][name].auroc for name in ("reestimated", "recalibrated"))
            budget["random_recalibrated_loses"] = round(original.auroc - best, 5)
            budget["lasso_reconstructed_loses"] = round(original.auroc - here["lasso"]["reconstructed"].auroc, 5)
            budget["telling"] = budget["random_recalibrated_loses"] >= TELLING_LOSS
        if {"l1", "lasso"} <= set(here):
            budget["lasso_minus_l1"] = {name: here["lasso"][name].minus(here["l1"][name]) for name in MEASURES}
            repaired = here["lasso"]["reconstructed"]
            budget["lasso_reconstructed_minus_l1_recalibrated"] = repaired.minus(here["l1"]["recalibrated"])
    return found


def draw(original: Scored, points: Sequence[Point], path: Path) -> None:
    """AUROC over MACs, one line per criterion: as cut, recalibrated, reconstructed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    panels[1].sharey(panels[0])
    for panel, (name, title) in zip(panels, PANELS.items(), strict=True):
        for number, criterion in enumerate(dict.fromkeys(point.criterion for point in points)):
            mine = [point for point in points if point.criterion == criterion and point.measures]
            shares = [point.target for point in mine]
            style = "k--" if criterion == "random" else f"C{number}-"
            panel.plot(shares, [point.measures[name].auroc for point in mine], style, marker="o", ms=4, label=criterion)
        panel.axhline(original.auroc, color="#8a97a6", lw=1)
        panel.annotate(
            "original", (0.75, original.auroc), textcoords="offset points", xytext=(-4, 4), color="#5a6672", size=8
        )
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel("share of MACs that stays")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("AUROC, official test images, no fine-tuning")
    panels[1].legend(fontsize=8, frameon=False, loc="lower right")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_bytes(path, content.getvalue())


def main(_: list[str]) -> None:
    """Read, compare, write."""
    original, whole, points = read_run(Path(_RUN.value))
    output = Path(_OUTPUT.value)
    write_text(output, table(original, whole, points))
    write_text(output.with_suffix(".json"), json.dumps(comparisons(original, points), indent=1) + "\n")
    draw(original, points, output.with_suffix(".png"))
    print(output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    app.run(main)

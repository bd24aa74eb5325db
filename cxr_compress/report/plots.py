"""Pictures of a run: models by size and AUROC with those that nothing beats, and what a plan removes from each layer.

A pruned layer shows what it keeps of what it had.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.errors import DataError

TRIED = "tried"

_DPI = 150
_INK, _GRAY, _FRONT, _FLOOR, _WINNER = "#22303c", "#9aa5b1", "#1f5a92", "#b03a2e", "#d98e04"
# Told apart by color-blind readers too, and by their marks where there is no color.
_SERIES = (("#1f5a92", "o"), ("#0b8a5f", "s"), ("#8c4fa3", "^"), ("#b8621b", "D"), ("#4a4a4a", "v"), ("#c2185b", "P"))
_MARGIN = 0.06
_WIDE = 0.25  # of an interval beside the spread of the values: wider ones would flatten the picture


@dataclass(frozen=True)
class ParetoPoint:
    """One model.

    Attributes:
        label: its name; written beside winner and references.
        size: bytes, above 0.
        auroc: its AUROC.
        low: lower end of the interval; None where there is none.
        high: upper end.
        series: what it belongs to; points of `TRIED` are gray.
        winner: it was chosen.
    """

    label: str
    size: float
    auroc: float
    low: float | None = None
    high: float | None = None
    series: str = TRIED
    winner: bool = False


def pareto_front(sizes: Sequence[float], values: Sequence[float]) -> list[int]:
    """The points that nothing beats: no other is as small and as good, and in one of the two better.

    Of equal points all but the first are left out.

    Args:
        sizes: lower is better.
        values: higher is better; a point with a nan beats nothing and is never on the front.

    Returns:
        Their indices, by size.
    """
    front: list[int] = []
    known = [index for index in range(len(sizes)) if not math.isnan(sizes[index]) and not math.isnan(values[index])]
    for index in sorted(known, key=lambda index: (sizes[index], -values[index], index)):
        if not front or values[index] > values[front[-1]]:
            front.append(index)
    return front


def draw_pareto(
    points: Sequence[ParetoPoint],
    references: Sequence[ParetoPoint] = (),
    *,
    title: str = "",
    floor: float | None = None,
    x_label: str = ".tflite bytes",
    y_label: str = "AUROC",
) -> bytes:
    """Draw models by size (logarithmic) and AUROC as a PNG.

    Args:
        points: what was made; the front is drawn through those that no other point or reference beats.
        references: to compare with, each named: the original float file, its int8 twin.
        title: above the picture.
        floor: the lowest AUROC that is tolerated, as a line.
        x_label: what the sizes are.
        y_label: what the AUROCs are, and on which images.

    Raises:
        DataError: no point has a size and an AUROC.
        ModuleNotFoundError: matplotlib is not installed (extra `report`).
    """
    points, references = ([one for one in given if _drawable(one)] for given in (points, references))
    if not points:
        raise DataError("expected points with a size and an AUROC to draw, got none")
    figure = _new_figure(9, 5.4)
    axes = figure.subplots()
    _scale(axes, [*points, *references], floor)
    _draw_front(axes, [*points, *references])
    for number, series in enumerate(_series_of(points)):
        _draw_series(axes, series, [one for one in points if one.series == series], number)
    for one in references:
        _draw_reference(axes, one)
    for one in points:
        if one.winner:
            _draw_winner(axes, one)
    if floor is not None:
        axes.axhline(floor, color=_FLOOR, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=f"tolerated: {floor:.3f}")
    _finish(figure, axes, title=title, x_label=x_label, y_label=y_label)
    return _to_png(figure)


def _new_figure(width: float, height: float) -> Any:
    """A figure of its own, not pyplot's: nothing global is set up, so a notebook's settings stay as they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _to_png(figure: Any) -> bytes:
    """The picture with the sentence of intended use below, and no text or date inside the file."""
    figure.supxlabel(INTENDED_USE, fontsize=8, color="#555555")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _drawable(point: ParetoPoint) -> bool:
    return point.size > 0 and math.isfinite(point.auroc)


def _series_of(points: Sequence[ParetoPoint]) -> list[str]:
    """Names in the order they come; gray ones first, so that the others lie on top and keep their colors."""
    names = list(dict.fromkeys(point.series for point in points))
    return sorted(names, key=lambda name: name != TRIED)


def _scale(axes: Any, points: Sequence[ParetoPoint], floor: float | None) -> None:
    """Limits from the values: intervals that are far wider than their spread run out of the picture."""
    sizes = [point.size for point in points]
    values = [point.auroc for point in points] + ([] if floor is None else [floor])
    low, high = min(values), max(values)
    spread = max(high - low, 0.004)
    ends = [end for point in points for end in (point.low, point.high) if end is not None and math.isfinite(end)]
    low = max(min([low, *ends]), low - _WIDE * spread) - _MARGIN * spread
    high = min(max([high, *ends]), high + _WIDE * spread) + _MARGIN * spread
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.35, max(sizes) * 1.5)
    axes.set_ylim(low, high)


def _draw_front(axes: Any, points: Sequence[ParetoPoint]) -> None:
    """Steps: with so many bytes this AUROC was reached, and no more until the next point."""
    front = [points[index] for index in pareto_front([one.size for one in points], [one.auroc for one in points])]
    right = axes.get_xlim()[1]
    axes.step(
        [*(one.size for one in front), right],
        [*(one.auroc for one in front), front[-1].auroc],
        where="post",
        color=_FRONT,
        linewidth=1.2,
        alpha=0.55,
        zorder=2,
        label="nothing is smaller and better",
    )


def _draw_series(axes: Any, name: str, points: Sequence[ParetoPoint], number: int) -> None:
    color, mark = (_GRAY, "o") if name == TRIED else _SERIES[number % len(_SERIES)]
    for one in points if name != TRIED else ():  # of all that was tried they would hide the rest
        _draw_interval(axes, one, color)
    sizes, values = [one.size for one in points], [one.auroc for one in points]
    size = 5 if name == TRIED else 7
    axes.plot(sizes, values, mark, color=color, markersize=size, label=name, zorder=4, markeredgecolor="white")


def _draw_interval(axes: Any, point: ParetoPoint, color: str) -> None:
    if point.low is not None and point.high is not None:
        ends = [point.low, point.high]
        axes.plot([point.size] * 2, ends, color=color, linewidth=1.2, alpha=0.35, zorder=3, solid_capstyle="butt")


def _draw_reference(axes: Any, point: ParetoPoint) -> None:
    _draw_interval(axes, point, _INK)
    axes.plot(point.size, point.auroc, "D", color="white", markeredgecolor=_INK, markersize=7, zorder=5)
    _name(axes, point, f"{point.label}\n{point.auroc:.3f}", below=True)


def _draw_winner(axes: Any, point: ParetoPoint) -> None:
    axes.plot(point.size, point.auroc, "*", color=_WINNER, markeredgecolor=_INK, markersize=17, zorder=6)
    _name(axes, point, f"{point.label}\n{point.size:,.0f} bytes, {point.auroc:.3f}", bold=True)


def _name(axes: Any, point: ParetoPoint, text: str, *, below: bool = False, bold: bool = False) -> None:
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        (point.size, point.auroc),
        textcoords="offset points",
        xytext=(0, -13 if below else 13),
        ha="center",
        va="top" if below else "bottom",
        fontsize=8,
        color=_INK,
        fontweight="bold" if bold else "normal",
        zorder=7,
        path_effects=[withStroke(linewidth=3, foreground="white")],  # lines behind it stay away from the letters
    )


def _finish(figure: Any, axes: Any, *, title: str, x_label: str, y_label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _bytes(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{x_label}, logarithmic", color=_INK)
    axes.set_ylabel(f"{y_label}, 95 % intervals", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=11, color=_INK)
    # Above the axes: inside it, some picture would have points there.
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)


def _bytes(size: float) -> str:
    """1500000 -> 1.5 MB, 200000 -> 200 kB."""
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"  # noqa: PLR2004 - a million


HEADERS = (
    *("layer", "class", "filters", "kept", "removed", "removed_percent"),
    *("params", "params_after", "macs", "macs_after"),
)
OTHERS = "(all other layers)"
TOTAL = "(whole model)"

# Up to here every bar gets its layer's name; above, stretches of bars do.
_MOST_NAMES = 45
_FEWEST_BLOCKS, _MOST_BLOCKS = 3, 24
_LIGHT, _DARK, _PROTECTED = "#c6d8ea", "#1f5a92", "#9a9a9a"
_MILLION = 1e6
# Rows of the picture -> what a layer had and what stays.
_MEASURES = {
    "filters, %": ("filters_before", "filters_kept"),
    "filters": ("filters_before", "filters_kept"),
    "MACs, millions": ("macs_before", "macs_after"),
}


def plan_rows(plan: Mapping[str, Any]) -> list[list[Any]]:
    """One row per layer with filters, then one for all others, then the model; the last row is the sum of the rest.

    Args:
        plan: `layers`, `before` and `after` as `structured.describe.describe_plan` gives them.

    Returns:
        Rows of `HEADERS`; None where a number makes no sense.
    """
    rows = [_row(layer) for layer in plan["layers"] if layer["has_filters"]]
    others = [layer for layer in plan["layers"] if not layer["has_filters"]]
    sums = [sum(layer[key] for layer in others) for key in ("params_before", "params_after")]
    macs = [None if any(layer[key] is None for layer in others) else 0 for key in ("macs_before", "macs_after")]
    before, after = plan["before"], plan["after"]
    filters = [sum(row[place] for row in rows) for place in (2, 3, 4)]
    share = _percent(filters[2], filters[0])
    return [
        *rows,
        [OTHERS, f"{len(others)} layers", None, None, None, None, *sums, *macs],
        [TOTAL, None, *filters, share, before["params"], after["params"], before["macs"], after["macs"]],
    ]


def _row(layer: Mapping[str, Any]) -> list[Any]:
    filters, kept = layer["filters_before"], layer["filters_kept"]
    costs = [layer[key] for key in ("params_before", "params_after", "macs_before", "macs_after")]
    return [layer["path"], layer["class"], filters, kept, filters - kept, _percent(filters - kept, filters), *costs]


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def plan_title(plan: Mapping[str, Any]) -> str:
    """One line: what the model costs before and after."""
    before, after = plan["before"], plan["after"]
    return (
        f"MACs {_millions(before['macs'])} -> {_millions(after['macs'])} ({_fraction(before, after, 'macs')}), "
        f"params {_millions(before['params'])} -> {_millions(after['params'])} ({_fraction(before, after, 'params')})"
    )


def _millions(count: int | None) -> str:
    """Three digits of large numbers, all of small ones."""
    if count is None:
        return "?"
    if count < _MILLION:
        return f"{count:,}"
    value = count / _MILLION
    return f"{value:,.0f} M" if value >= 100 else f"{value:.3g} M"  # noqa: PLR2004 - three digits


def _fraction(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    if before[key] is None or after[key] is None:
        return "?"
    return f"{100 * after[key] / max(before[key], 1):.1f} %"


def draw_plan(plan: Mapping[str, Any], name: str = "") -> bytes:
    """The plan as a PNG: per layer, in the order they run, what stays of it (dark) of what it had (light).

    Three rows of bars: the share of its filters, their number, and MACs, which fall with the layers before it too.

    Args:
        plan: as `plan_rows`.
        name: of the model, for the title.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra `report`).
    """
    layers = [layer for layer in plan["layers"] if layer["has_filters"]]
    figure = _new_figure(min(16.0, max(8.0, 3.0 + 0.12 * len(layers))), 7.5)
    rows = figure.subplots(3, 1, sharex=True)
    names = [str(layer["path"]) for layer in layers]
    figure.suptitle(f"{name}\n{plan_title(plan)}".strip(), fontsize=11)
    for axes, what in zip(rows, ("filters, %", "filters", "MACs, millions"), strict=True):
        _bars(axes, layers, what)
        _mark_blocks(axes, names)
    _name_bars(rows[-1], names)
    _legend(rows[0], layers)
    figure.align_ylabels(rows)
    return _to_png(figure)


def _bars(axes: Any, layers: Sequence[Mapping[str, Any]], what: str) -> None:
    """Light bars of the whole, dark ones of what stays in front of them."""
    whole, kept = _MEASURES[what]
    units = [layer[whole] / 100 if "%" in what else 1 if what == "filters" else _MILLION for layer in layers]
    colors = [_PROTECTED if layer["protected"] else _DARK for layer in layers]
    for key, color in ((whole, _LIGHT), (kept, colors)):
        heights = [(layer[key] or 0) / (unit or 1) for layer, unit in zip(layers, units, strict=True)]
        axes.bar(range(len(layers)), heights, color=color, width=0.86)
    axes.set_ylabel(what)
    axes.yaxis.get_major_locator().set_params(integer=what == "filters")
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_DARK, label="kept"), Patch(color=_LIGHT, label="removed")]
    if any(layer["protected"] for layer in layers):
        handles.append(Patch(color=_PROTECTED, label="filters must stay"))
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), frameon=False)


def _name_bars(axes: Any, names: Sequence[str]) -> None:
    """Name every bar where there is room, else every block."""
    if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        return
    runs = name_stretches(names)
    axes.set_xticks([start + (size - 1) / 2 for _, start, size in runs], [block for block, _, _ in runs])
    axes.tick_params(axis="x", length=0, labelrotation=45, labelsize=9)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")


def _mark_blocks(axes: Any, names: Sequence[str]) -> None:
    """Pruned lines between blocks, where bars are named by block."""
    if len(names) > _MOST_NAMES:
        for _, start, _ in name_stretches(names)[1:]:
            axes.axvline(start - 0.5, color="#bbbbbb", linewidth=0.6, zorder=0)


def name_stretches(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first bar, bars) of stretches of layers whose names begin alike: some, but no more than can be read.

    "conv2_block1_1_conv" and its neighbors begin with "conv2_block1" and with "conv2"; the longest beginnings that
    leave few enough stretches are taken, else stretches of equal length, each named by its first layer.
    """
    for parts in (3, 2, 1):
        runs, start = [], 0
        for label, members in groupby(names, key=lambda name: _beginning(name, parts)):
            size = len(list(members))
            runs.append((label, start, size))
            start += size
        if _FEWEST_BLOCKS <= len(runs) <= _MOST_BLOCKS:
            return runs
    step = -(-len(names) // _MOST_BLOCKS)
    return [(names[start], start, min(step, len(names) - start)) for start in range(0, len(names), step)]


def _beginning(name: str, parts: int) -> str:
    """The first words of a layer's name."""
    words = re.split(r"([_/])", name)
    return "".join(words[: 2 * parts - 1])

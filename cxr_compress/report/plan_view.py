"""A plan of filter removal as a table and as a picture: what each layer lost."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from cxr_compress.device.modelinfo import INTENDED_USE

HEADERS = (
    *("layer", "class", "filters", "kept", "removed", "removed_percent"),
    *("params", "params_after", "macs", "macs_after"),
)
OTHERS = "(all other layers)"
TOTAL = "(whole model)"

# Up to here every bar gets its layer's name; above, stretches of bars do.
_MOST_NAMES = 45
_FEWEST_BLOCKS, _MOST_BLOCKS = 3, 24
_LIGHT, _DARK, _FROZEN = "#c6d8ea", "#1f5a92", "#9a9a9a"
_MILLION = 1e6
# Rows of the picture -> what a layer had and what stays.
_MEASURES = {
    "filters, %": ("filters_before", "filters_kept"),
    "filters": ("filters_before", "filters_kept"),
    "MACs, millions": ("macs_before", "macs_after"),
}
_DPI = 150


def plan_rows(plan: Mapping[str, Any]) -> list[list[Any]]:
    """One row per layer with filters, then one for all others, then the model; the last row is the sum of the rest.

    Args:
        plan: ``layers``, ``before`` and ``after`` as `structured.describe.describe_plan` gives them.

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = [layer for layer in plan["layers"] if layer["has_filters"]]
    # A figure of its own, not pyplot's: nothing global is set up, so a notebook's settings stay as they are.
    figure = Figure(figsize=(min(16.0, max(8.0, 3.0 + 0.12 * len(layers))), 7.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(3, 1, sharex=True)
    names = [str(layer["path"]) for layer in layers]
    figure.suptitle(f"{name}\n{plan_title(plan)}".strip(), fontsize=11)
    for axes, what in zip(rows, ("filters, %", "filters", "MACs, millions"), strict=True):
        _bars(axes, layers, what)
        _mark_blocks(axes, names)
    _name_bars(rows[-1], names)
    _legend(rows[0], layers)
    figure.align_ylabels(rows)
    figure.supxlabel(INTENDED_USE, fontsize=8, color="#555555")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bars(axes: Any, layers: Sequence[Mapping[str, Any]], what: str) -> None:
    """Light bars of the whole, dark ones of what stays in front of them."""
    whole, kept = _MEASURES[what]
    units = [layer[whole] / 100 if "%" in what else 1 if what == "filters" else _MILLION for layer in layers]
    colors = [_FROZEN if layer["frozen"] else _DARK for layer in layers]
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
    if any(layer["frozen"] for layer in layers):
        handles.append(Patch(color=_FROZEN, label="filters must stay"))
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
    """Thin lines between blocks, where bars are named by block."""
    if len(names) > _MOST_NAMES:
        for _, start, _ in name_stretches(names)[1:]:
            axes.axvline(start - 0.5, color="#bbbbbb", linewidth=0.6, zorder=0)


def name_stretches(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first bar, bars) of stretches of layers whose names begin alike: some, but no more than can be read.

    "conv2_block1_1_conv" and its neighbours begin with "conv2_block1" and with "conv2"; the longest beginnings that
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

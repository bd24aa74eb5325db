"""Curves of a run's page: AUROC against bytes, and what probabilities promise beside what happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cxr_compress.report.svg import GOOD, INK, OPEN, SOFT, draw_svg, quiet, shorten

_WIDTH, _PANEL_HEIGHT, _SIZES_HEIGHT = 7.2, 2.1, 2.6  # inches
_LONGEST = 18  # name of a finding above a panel
_ACROSS = 4  # panels beside one another
_SERIES = ((OPEN, "D", "none"), (GOOD, "o", GOOD))

Bins = Sequence[Mapping[str, float]]


def draw_sizes(points: Sequence[tuple[str, int, Mapping[str, float | None]]], *, label: str) -> str:
    """Each file by its bytes and its AUROC with interval.

    Args:
        points: name, bytes, and `value`, `low` and `high` of the AUROC; one or more whose value is known.
        label: what the picture shows, for who cannot see it.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra `report`).
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, (name, size, auroc) in enumerate(points):
            if auroc["low"] is not None:
                axes.plot([size / 1e6] * 2, [auroc["low"], auroc["high"]], color=SOFT, linewidth=1.8)
            axes.plot([size / 1e6], [auroc["value"]], "o", color=GOOD, markersize=6)
            # Above and below in turn: files of like size and AUROC would write over one another.
            where = {"xytext": (7, -12 if place % 2 else 6), "textcoords": "offset points"}
            axes.annotate(name, (size / 1e6, auroc["value"]), **where, color=INK, fontsize=9)
        axes.set_xscale("log")
        axes.margins(x=0.25)
        # Plain numbers: 10^0 megabytes says nothing to most readers.
        axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        axes.xaxis.set_minor_formatter(lambda size, _: f"{size:g}" if f"{size:.0e}"[0] in "25" else "")
        axes.set_xlabel("size of the file in MB", color=INK, fontsize=10)
        axes.set_ylabel("AUROC", color=INK, fontsize=10)
        quiet(axes)
        axes.tick_params(which="minor", colors=INK, labelsize=10)

    return draw_svg(draw, width=_WIDTH, height=_SIZES_HEIGHT, label=label)


def draw_reliability(findings: Mapping[str, Mapping[str, Bins]], *, label: str) -> str:
    """A panel for each finding: the share of the images that has it, over the probability that a model gave.

    Args:
        findings: finding -> model -> bins with `probability` and `share`; the same models for each, two at most.
        label: what the picture shows, for who cannot see it.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra `report`).
    """
    rows = -(-len(findings) // _ACROSS)

    def draw(figure: Any) -> None:
        panels = figure.subplots(rows, _ACROSS, squeeze=False).ravel()
        for axes, (finding, models) in zip(panels, findings.items(), strict=False):
            _draw_panel(axes, finding, models)
        for axes in panels[len(findings) :]:
            axes.set_visible(False)

    return draw_svg(draw, width=_WIDTH, height=_PANEL_HEIGHT * rows, label=label)


def _draw_panel(axes: Any, finding: str, models: Mapping[str, Bins]) -> None:
    """One finding; a rare one is drawn as large as its probabilities go."""
    ends = [one[key] for bins in models.values() for one in bins for key in ("probability", "share")]
    top = max(ends, default=1.0) * 1.08 or 1.0
    axes.plot([0, top], [0, top], color=SOFT, linewidth=1, linestyle=(0, (5, 3)))
    for (color, mark, fill), bins in zip(_SERIES, models.values(), strict=False):
        columns = ([one[key] for one in bins] for key in ("probability", "share"))
        axes.plot(*columns, color=color, marker=mark, markerfacecolor=fill, markersize=4, linewidth=1.3)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_title(shorten(finding, _LONGEST), fontsize=10, color=INK)
    axes.locator_params(nbins=3)
    quiet(axes)
    axes.tick_params(labelsize=8)

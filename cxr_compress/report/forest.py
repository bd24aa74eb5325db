"""A forest plot as SVG for a page: how much each finding lost, with its interval, beside the margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.evaluate import NOT_INFERIOR, WORSE
from cxr_compress.report.svg import BAD, GOOD, INK, OPEN, SOFT, draw_svg, quiet, shorten

# Told apart by their marks where there is no color.
_MARKS = {NOT_INFERIOR: (GOOD, "o"), WORSE: (BAD, "s")}
_OTHER_MARK = (OPEN, "D")
_LONGEST_NAME = 40
_WIDTH, _ROW, _REST = 7.2, 0.3, 1.0  # inches


@dataclass(frozen=True)
class ForestRow:
    """One finding.

    Attributes:
        name: of the finding.
        drop: of the AUROC; None where undefined.
        low: lower end of its interval; None where undefined.
        high: upper end.
        verdict: what the drop shows.
    """

    name: str
    drop: float | None
    low: float | None
    high: float | None
    verdict: str


def draw_forest(rows: Sequence[ForestRow], margin: float, *, label: str) -> str:
    """Draw the rows from top to bottom, a loss to the right; text stays text, colors are the variables of the page.

    Args:
        rows: one or more.
        margin: drawn as a dashed line.
        label: what the picture shows, for who cannot see it; unlike that of any other picture of the page.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra `report`).
    """
    height = _REST + _ROW * len(rows)
    return draw_svg(lambda figure: _draw(figure.subplots(), rows, margin), width=_WIDTH, height=height, label=label)


def _draw(axes: Any, rows: Sequence[ForestRow], margin: float) -> None:
    """Draw rows, the lines of no change and of the margin, and what the sides mean."""
    places = range(len(rows))
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.axvline(margin, color=BAD, linewidth=1.2, linestyle=(0, (5, 3)))
    for place, row in zip(places, rows, strict=True):
        color, mark = _MARKS.get(row.verdict, _OTHER_MARK)
        if row.drop is None:
            axes.text(0, place, " not measured", color=INK, va="center", fontsize=10)
            continue
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=color, linewidth=1.8, solid_capstyle="butt")
        filled = color if mark != "D" else "none"
        axes.plot([row.drop], [place], mark, color=color, markerfacecolor=filled, markersize=6)
    axes.set_yticks(places, [shorten(row.name, _LONGEST_NAME) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("gained  ←  drop of AUROC  →  lost", color=INK, fontsize=10)
    quiet(axes)

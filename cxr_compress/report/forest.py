"""A forest plot as SVG for a page: how much each finding lost, with its interval, beside the margin."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.evaluate import NOT_INFERIOR, WORSE

# Colors are names that the page gives a value, one for light and one for dark: matplotlib knows numbers alone.
_INK, _SOFT, _GOOD, _BAD, _OPEN = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {_INK: "ink", _SOFT: "soft", _GOOD: "good", _BAD: "bad", _OPEN: "open"}
# Told apart by their marks where there is no color.
_MARKS = {NOT_INFERIOR: (_GOOD, "o"), WORSE: (_BAD, "s")}
_OTHER_MARK = (_OPEN, "D")
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
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A name with two dollars is no formula; text stays text.
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": label, "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Of a name in letters that matplotlib's font lacks: the page shows it in the reader's fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(_WIDTH, _REST + _ROW * len(rows)), layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        _draw(figure.subplots(), rows, margin)
        drawn = io.StringIO()
        canvas.print_svg(drawn, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(drawn.getvalue(), label)


def _draw(axes: Any, rows: Sequence[ForestRow], margin: float) -> None:
    """Draw rows, the lines of no change and of the margin, and what the sides mean."""
    places = range(len(rows))
    axes.axvline(0, color=_SOFT, linewidth=1)
    axes.axvline(margin, color=_BAD, linewidth=1.2, linestyle=(0, (5, 3)))
    for place, row in zip(places, rows, strict=True):
        color, mark = _MARKS.get(row.verdict, _OTHER_MARK)
        if row.drop is None:
            axes.text(0, place, " not measured", color=_INK, va="center", fontsize=10)
            continue
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=color, linewidth=1.8, solid_capstyle="butt")
        filled = color if mark != "D" else "none"
        axes.plot([row.drop], [place], mark, color=color, markerfacecolor=filled, markersize=6)
    axes.set_yticks(places, [_shortened(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("gained  ←  drop of AUROC  →  lost", color=_INK, fontsize=10)
    axes.tick_params(colors=_INK, labelsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.tick_params(axis="y", length=0)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _inline(svg: str, label: str) -> str:
    """The picture without what only a file of its own needs, named for who cannot see it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1 of every picture: an id must be one of a kind
    for color, name in _VARIABLES.items():
        svg = svg.replace(f": {color}", f": var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)

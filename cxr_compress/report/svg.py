"""Pictures as SVG inside a page: text stays text, and colors are those of the page, light or dark."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

# Colors are names that the page gives a value, one for light and one for dark: matplotlib knows numbers alone.
INK, SOFT, GOOD, BAD, OPEN = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {INK: "ink", SOFT: "soft", GOOD: "good", BAD: "bad", OPEN: "open"}


def draw_svg(draw: Callable[[Any], None], *, width: float, height: float, label: str) -> str:
    """The markup of a picture, to stand inside a page.

    Args:
        draw: is given the empty matplotlib figure.
        width: inches.
        height: inches.
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
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        canvas: Any = FigureCanvasSVG(figure)
        draw(figure)
        drawn = io.StringIO()
        canvas.print_svg(drawn, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(drawn.getvalue(), label)


def quiet(axes: Any) -> None:
    """Take frame and background away, and give numbers the color of text."""
    axes.tick_params(colors=INK, labelsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(axis="y", length=0)
    axes.patch.set_visible(False)


def shorten(name: str, longest: int) -> str:
    """A name that fits, with an ellipsis where it is cut."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _inline(svg: str, label: str) -> str:
    """The picture without what only a file of its own needs, named for who cannot see it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1 of every picture: an id must be one of a kind
    for color, name in _VARIABLES.items():
        svg = svg.replace(f": {color}", f": var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)

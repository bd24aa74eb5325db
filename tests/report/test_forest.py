"""The forest plot: what is drawn where, and that no text of a finding becomes anything but text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib", reason="needs the extra report")

from cxr_compress.evaluate import NOT_INFERIOR, UNDECIDED, WORSE
from cxr_compress.report.forest import ForestRow, draw_forest

SVG = "{http://www.w3.org/2000/svg}"
MARK = re.compile(r"var\(--(good|bad|open)\)")


def draw(*rows: ForestRow, margin: float = 0.01, label: str = "what it shows") -> ET.Element:
    return ET.fromstring(draw_forest(rows, margin, label=label))


def marks(svg: ET.Element) -> dict[str, tuple[float, float]]:
    """Color of each mark -> where it is; those of the axes are in other colors."""
    found = {}
    for use in svg.iter(f"{SVG}use"):
        if color := MARK.search(use.get("style", "")):
            found[color[1]] = float(use.get("x", "nan")), float(use.get("y", "nan"))
    return found


def texts(svg: ET.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def test_marks_stand_where_the_drops_are() -> None:
    rows = [
        ForestRow("kept", 0.0, -0.004, 0.004, NOT_INFERIOR),
        ForestRow("lost", 0.04, 0.03, 0.05, WORSE),
        ForestRow("few", 0.02, -0.05, 0.09, UNDECIDED),
    ]
    placed = marks(draw(*rows))
    assert set(placed) == {"good", "bad", "open"}
    (kept, kept_y), (lost, lost_y), (few, few_y) = (placed[color] for color in ("good", "bad", "open"))
    assert kept_y < lost_y < few_y, "from top to bottom"
    # Linear in the drop: half of the way, to the digits that matplotlib writes (1e-6 points).
    assert few - kept == pytest.approx((lost - kept) / 2, abs=1e-4)
    moved = marks(draw(rows[0], ForestRow("lost", 0.01, 0.0, 0.05, WORSE), rows[2]))
    assert moved["bad"][0] < moved["open"][0], "a smaller drop stands further left"


def test_names_are_text_even_where_they_look_like_markup_or_a_formula() -> None:
    names = ["<script>alert(1)</script>", "$x$ & 'co'", "#000001"]
    svg = draw(*(ForestRow(name, 0.0, -0.01, 0.01, NOT_INFERIOR) for name in names), label='"><script>')
    assert not list(svg.iter(f"{SVG}script"))
    assert set(names) <= set(texts(svg))
    assert (svg.get("role"), svg.get("aria-label")) == ("img", '"><script>')


def test_what_was_not_measured_is_said_and_long_names_are_cut() -> None:
    svg = draw(ForestRow("x" * 80, None, None, None, UNDECIDED))
    assert " not measured" in texts(svg)
    assert "x" * 39 + "…" in texts(svg)
    assert not marks(svg)


def test_no_id_is_twice_on_a_page_and_equal_input_gives_equal_text() -> None:
    rows = [ForestRow("kept", 0.0, -0.004, 0.004, NOT_INFERIOR)]
    one, other = (draw_forest(rows, 0.01, label=label) for label in ("one", "other"))
    ids = re.findall(r'\bid="([^"]*)"', one + other)
    assert ids
    assert len(set(ids)) == len(ids)
    assert draw_forest(rows, 0.01, label="one") == one

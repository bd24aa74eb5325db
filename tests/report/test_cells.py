"""Cells of tables: what is not known is a question mark, never a number."""

from __future__ import annotations

import math

import pytest

from cxr_compress.report.cells import COST_HEADERS, cost_cells, count, draw_table, inside, interval, millions, share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(1234567), "1,234,567"),
        (millions(1_250_000), "1.2 M"),
        (share(0.1234), "12.3%"),
        (interval({"value": 0.5, "low": 0.25, "high": None}), "0.500 [0.250, ?]"),
        (interval({"value": -0.5, "low": -1, "high": 0.0}, signed=True), "-0.500 [-1.000, +0.000]"),
        *((form(None), "?") for form in (count, millions, share, interval)),
        (interval({"value": math.nan, "low": None, "high": None}), "?"),
    ],
)
def test_cell(text, expected):
    assert text == expected


def test_row_of_which_nothing_was_measured_has_a_mark_under_every_heading():
    cells = cost_cells({"name": "file", "latency": {}})
    assert cells == ["file", *"?" * (len(COST_HEADERS) - 1)]
    assert cost_cells({"name": "file", "latency": {"p50_ms": 1.5}})[-1] == "1.50"


def test_inside_is_none_where_anything_on_the_way_is_missing():
    assert inside({"a": {"b": 0}}, "a", "b") == 0
    assert inside({"a": None}, "a", "b") is None
    assert inside({}, "a") is None


def test_table_aligns_names_to_the_left_and_numbers_to_the_right():
    lines = draw_table([["long name", "1"], ["n", "1,000"]], ["file", "bytes"]).splitlines()
    assert lines[2].endswith("    1")
    assert lines[3].startswith("n ")

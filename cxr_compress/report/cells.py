"""Cells of the tables of a report: what is not known is "?", never 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

UNKNOWN = "?"
COST_HEADERS = ("file", "params", "MACs", ".tflite bytes", "deflated", "zeros", "p50 ms")


def cost_cells(row: Mapping[str, Any]) -> list[str]:
    """What one file of a report is and costs, under `COST_HEADERS`."""
    return [
        row["name"],
        count(row.get("params")),
        millions(row.get("macs")),
        count(row.get("tflite_bytes")),
        count(row.get("deflated_bytes")),
        share(row.get("weight_sparsity")),
        _milliseconds(row.get("latency")),
    ]


def draw_table(body: Sequence[Sequence[str]], headers: Sequence[str], *, left: int = 1) -> str:
    """A table as plain text: the first `left` columns to the left, all others to the right."""
    aligned = ("left",) * left + ("right",) * (len(headers) - left)
    return tabulate(body, headers, tablefmt="simple", disable_numparse=True, colalign=aligned)


def inside(row: Mapping[str, Any], *keys: str) -> Any:
    """A value deep in a row; None if anything on the way is missing."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def count(value: int | None) -> str:
    """1,234,567."""
    return UNKNOWN if value is None else f"{value:,}"


def millions(value: int | None) -> str:
    """1.2 M."""
    return UNKNOWN if value is None else f"{value / 1e6:,.1f} M"


def share(value: float | None) -> str:
    """12.3%."""
    return UNKNOWN if value is None else f"{value:.1%}"


def _milliseconds(latency: Mapping[str, Any] | None) -> str:
    value = (latency or {}).get("p50_ms")
    return UNKNOWN if value is None else f"{value:.2f}"


def interval(measured: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    """0.967 [0.951, 0.980]; "?" for what is not known."""
    sign = "+" if signed else ""
    value, low, high = (
        UNKNOWN if number is None or number != number else f"{number:{sign}.3f}"  # noqa: PLR0124 - true of nan alone
        for number in ((measured or {}).get(key) for key in ("value", "low", "high"))
    )
    return UNKNOWN if value == low == high == UNKNOWN else f"{value} [{low}, {high}]"

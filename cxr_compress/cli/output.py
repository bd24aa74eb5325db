"""Results as table, JSON or CSV on stdout, each with the sentence of intended use."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from cxr_compress.device.modelinfo import INTENDED_USE


def write_results(
    form: str,
    *,
    document: dict[str, Any],
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    intended_use: str = INTENDED_USE,
) -> None:
    """Print results the way --format asks for.

    JSON prints `document` with the key "intended_use" added; table and csv print `headers` and `rows`. The sentence is
    the last line under a table; for csv it goes to stderr, so that stdout stays a plain CSV.

    Args:
        form: "table", "json" or "csv".
        document: JSON-ready; NaN and infinity are printed as null, which JSON has instead.
        headers: of the columns, for csv as they are; for a table "_" becomes a space.
        rows: cells; None prints as empty, floats are shown with 4 digits in a table, in full in csv.
        intended_use: the sentence.
    """
    if form == "json":
        json.dump(_finite({"intended_use": intended_use, **document}), sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif form == "csv":
        write_csv_rows([headers, *rows], intended_use=intended_use)
    else:
        from tabulate import tabulate

        titles = [header.replace("_", " ") for header in headers]
        # Only numbers are formatted: a file or finding whose name looks like a number must stay as it is.
        table = tabulate(
            [[_cell(cell) for cell in row] for row in rows], titles, disable_numparse=True, colalign=_aligned(rows)
        )
        sys.stdout.write(f"{table}\n\n{intended_use}\n")


def write_csv_rows(rows: Sequence[Sequence[Any]], intended_use: str | None = None) -> None:
    """Print rows of a CSV at once, so that what is done is seen; the sentence, where given, goes to stderr first."""
    if intended_use is not None:
        sys.stderr.write(f"{intended_use}\n")
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    sys.stdout.flush()


def _cell(cell: Any) -> str:
    """Text of one table cell."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _aligned(rows: Sequence[Sequence[Any]]) -> list[str] | None:
    """Right for columns of numbers, left for the others."""
    if not rows:
        return None
    columns = zip(*rows, strict=True)
    return ["right" if all(_is_number(cell) for cell in column) else "left" for column in columns]


def _is_number(cell: Any) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _finite(value: Any) -> Any:
    """The same JSON value with NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

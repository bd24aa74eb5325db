"""Tables with line numbers: which column is which, whatever its case, and rows whose errors name file and line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr_compress.data.table_text import SEPARATORS, Cells, read_cells
from cxr_compress.errors import DataError

_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        cells: Column name -> text without surrounding blanks; "" where empty or missing.
        line: In the file, counted from 1.
        file: Its name.
        who: The set, with which messages start.
    """

    cells: Mapping[str, str]
    line: int
    file: str
    who: str

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        """The text of a column, "" if the table lacks it."""
        return self.cells.get(column, "")

    def error(self, what: str) -> DataError:
        """What is wrong with this row, with file and line."""
        return DataError(f"{self.who}: line {self.line} of {self.file} {what}")


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        columns: In the order of the file, without nameless ones; a column that was asked for has the name that it was
            asked for by.
        rows: Generator of its rows, to be used up once.
        notes: What was taken as what, one sentence each; none where every name is written as it was asked for.
    """

    columns: tuple[str, ...]
    rows: Iterator[Row]
    notes: tuple[str, ...] = ()


def read_table(
    path: Path,
    *,
    who: str,
    needed: Sequence[str] = (),
    optional: Sequence[str] = (),
    other_names: Mapping[str, Collection[str]] | None = None,
    exact: bool = False,
) -> Table:
    """A table as `read_cells` reads it, with its columns found whatever their case, blanks, dots or underscores.

    "Patient ID", "patientId" and "PATIENT_ID" are all found as patient_id, and a note says so.

    Args:
        path: The file.
        who: The set, with which messages start.
        needed: Columns that must be there.
        optional: Columns that are looked for.
        other_names: Column -> names that mean the same, as `column_key` gives them, where it has no such column itself.
        exact: Every row must have as many cells as the header; published sets are not that tidy.

    Raises:
        DataError: As `read_cells`; a column is missing, there twice, or two may be the one asked for; from the rows, a
            ragged one, or one that ends before a needed column.
    """
    wanted = (*needed, *optional)
    others = other_names or {}
    cells = read_cells(path, who=who, fits=lambda header: not _missing(header, needed, others))
    if not any(cells.header):
        raise DataError(f"{who}: {path.name} is empty; expected a header with {', '.join(needed) or 'names'}, and rows")
    if missing := _missing(cells.header, needed, others):
        raise DataError(
            f"{who}: expected the column(s) {', '.join(missing)} in {path.name}, the header lacks them (cells are "
            f"separated by {SEPARATORS[cells.separator]})"
        )
    found = {name: match for name in wanted if (match := _find(name, cells.header, others, f"{who}: {path.name}"))}
    asked = {there: name for name, there in found.items()}
    header = [asked.get(name, name) for name in cells.header]
    columns = tuple(name for name in header if name)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{who}: the column {twice[0]!r} is there twice in {path.name}; rename or remove one")
    last_needed = max((header.index(name) for name in needed), default=-1) + 1
    rows = _rows(cells, header, path.name, who, least=len(header) if exact else last_needed, exact=exact)
    return Table(columns, rows, tuple(_notes(found, cells, path.name, exact=exact)))


def column_key(name: str) -> str:
    """What is the same for all spellings of a column's name: "patientid" of "Patient ID", "patientId", "patient.id"."""
    return re.sub(r"[\s_.\-]+", "", name).casefold()


def decimal_comma(text: str) -> str:
    """What to add to a message about a number that is written with a comma; nothing for any other text."""
    return f"; write {text.replace(',', '.')} with a decimal point" if _DECIMAL_COMMA.fullmatch(text) else ""


def _missing(header: Sequence[str], needed: Sequence[str], others: Mapping[str, Collection[str]]) -> list[str]:
    """The columns that the header has under no spelling."""
    keys = {column_key(name) for name in header}
    return [name for name in needed if not keys & {column_key(name), *others.get(name, ())}]


def _find(name: str, header: Sequence[str], others: Mapping[str, Collection[str]], where: str) -> str:
    """The name that a column has in the file; "" where it is not there."""
    same = [cell for cell in header if column_key(cell) == column_key(name)]
    same = same or [cell for cell in header if column_key(cell) in others.get(name, ())]
    if len(set(same)) > 1:
        raise DataError(
            f"{where} has {' and '.join(map(repr, dict.fromkeys(same)))}, which may both be the column {name}; "
            "rename or remove one"
        )
    return same[0] if same else ""


def _notes(found: Mapping[str, str], cells: Cells, file: str, *, exact: bool) -> Iterator[str]:
    """What a person should know was taken as what."""
    if taken := [f"{there!r} as {name}" for name, there in found.items() if there != name]:
        yield f"columns of {file} are taken by another spelling: {', '.join(taken)}"
    if cells.separator != ",":
        yield f"the cells of {file} are taken as separated by {SEPARATORS[cells.separator]}"
    if cells.encoding != "utf-8":
        yield f"{file} is read as {cells.encoding.upper()}"
    nameless = [str(number) for number, name in enumerate(cells.header, 1) if not name]
    if nameless and exact:  # the headers of published sets end in nameless columns that hold nothing
        yield f"column {', '.join(nameless)} of {file} has no name and is not read"


def _rows(cells: Cells, header: Sequence[str], file: str, who: str, least: int, *, exact: bool) -> Iterator[Row]:
    """The rows below the header."""
    blank = dict.fromkeys(filter(None, header), "")
    for line, texts in cells.rows:
        named = {name: cell.strip() for name, cell in zip(header, texts, strict=False) if name}
        row = Row(blank | named, line, file, who)
        if exact and len(texts) != least:
            raise row.error(
                f"has {len(texts)} cells, expected {least} as in the header; quote cells with "
                f"{SEPARATORS[cells.separator]}"
            )
        if len(texts) < least:
            raise row.error(f"ends after {len(texts)} cells, expected at least {least}; the file may be cut short")
        yield row

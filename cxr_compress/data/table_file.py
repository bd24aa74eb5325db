"""Tables with line numbers: which column is which, whatever its case, and rows whose errors name file and line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_compress.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_DETECTED = ",;\t"  # a bar joins labels inside one cell ("Mass|Nodule"), so only `sep=|` makes it a separator
_DECIDING_ROWS = 50  # rows that decide between two separators
_GZIP = b"\x1f\x8b"
# UTF-32 before UTF-16: its mark starts with the same two bytes.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_KINDS = (
    (b"PK\x03\x04", "a workbook (.xlsx or .ods) or another ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (.xls)"),
    (b"PAR1", "a Parquet file"),
    (b"%PDF", "a PDF file"),
)
_SEP_LINE = re.compile(r'\A"?sep=([^\r\n"]*)"?[,;\t]*(\r\n|\r|\n|\Z)', re.IGNORECASE)
_AS_CSV = "save it as 'CSV UTF-8'"


@dataclass(frozen=True)
class Cells:
    """The cells of a table.

    Attributes:
        header: the first row, without blanks around its names.
        rows: (line of the file, counted from 1; cells) of every row below it that holds anything, to be used up once.
        separator: character between the cells.
        encoding: name of the encoding in Python.
    """

    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    separator: str
    encoding: str


def read_cells(path: Path, *, who: str, fits: Callable[[Sequence[str]], bool]) -> Cells:
    """The cells of a table with commas, semicolons or tabs; UTF-8 or, with its mark, UTF-16 or UTF-32; .gz or not.

    Args:
        path: the file.
        who: the set, with which messages start.
        fits: whether a header has the columns that are looked for; decides where two separators stand in the header.

    Raises:
        DataError: the file cannot be read, is no text table, is in an encoding that would have to be guessed, or its
            separator is unclear; from `rows`: a quote is left open.
    """
    text, encoding = _decode(_content(path, who), f"{who}: {path.name}")
    text, declared, skipped = _sep_line(text, f"{who}: {path.name}")
    separator = declared or _separator(text, fits, f"{who}: {path.name}")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = _rows(lines, skipped, f"{who}: {path.name}")
    _, header = next(rows, (0, []))
    return Cells([cell.strip() for cell in header], rows, separator, encoding)


def read_text(path: Path, *, who: str) -> str:
    """The text of a file, in the encodings that `read_cells` takes.

    Raises:
        DataError: as `read_cells`.
    """
    return _decode(_content(path, who), f"{who}: {path.name}")[0]


def _content(path: Path, who: str) -> bytes:
    """The bytes of the file, unpacked."""
    try:
        content = path.read_bytes()
        packed = path.suffix.lower() == ".gz" or content.startswith(_GZIP)
        return gzip.decompress(content) if packed else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{who}: {path.name} cannot be read ({reason}); download it again") from error


def _decode(content: bytes, where: str) -> tuple[str, str]:
    """Text and encoding; a file that does not say how its letters are stored has to be UTF-8."""
    for start, kind in _OTHER_KINDS:
        if content.startswith(start):
            raise DataError(f"{where} is {kind}, expected a text table; open it and {_AS_CSV}")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            line = content[: error.start].count(b"\n") + 1
            raise DataError(
                f"{where} is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}), perhaps Windows-1252 or "
                f"another code page; {_AS_CSV}"
            ) from error
        raise DataError(f"{where} starts as {encoding} but is cut short or damaged; copy it again") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(
            f"{where} has a NUL character in line {line}: it is damaged, no text, or UTF-16 without its mark; {_AS_CSV}"
        )
    return text, encoding.removesuffix("-sig")


def _sep_line(text: str, where: str) -> tuple[str, str, int]:
    """The text below Excel's line `sep=;`, the separator that it says, and how many lines that took."""
    line = _SEP_LINE.match(text)
    if line is None:
        return text, "", 0
    separator = {"\\t": "\t", "": "\t"}.get(line[1], line[1])
    if separator not in SEPARATORS:
        raise DataError(
            f"{where} says sep={line[1]}; expected a comma, a semicolon, a tab or a vertical bar as the separator"
        )
    return text[line.end() :], separator, 1


def _separator(text: str, fits: Callable[[Sequence[str]], bool], where: str) -> str:
    """The separator that the header holds; where it holds two, the one with which the columns fit."""
    headers = {mark: _first_rows(text, mark, 1) for mark in _DETECTED}
    candidates = [mark for mark, rows in headers.items() if rows and len(rows[0]) > 1]
    if len(candidates) > 1:
        fitting = [mark for mark in candidates if fits([cell.strip() for cell in headers[mark][0]])]
        candidates = fitting or candidates
    if len(candidates) > 1:
        candidates = [mark for mark in candidates if _is_even(_first_rows(text, mark, _DECIDING_ROWS))] or candidates
    if len(candidates) > 1:
        names = " or ".join(SEPARATORS[mark] for mark in candidates)
        raise DataError(
            f"{where}: its cells may be separated by {names}; say which with a first line such as sep={candidates[0]}"
        )
    return candidates[0] if candidates else ","


def _first_rows(text: str, separator: str, count: int) -> list[list[str]]:
    """The first rows that hold anything; fewer where the text cannot be read that way."""
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            if any(map(str.strip, row)):
                rows.append(row)
            if len(rows) == count:
                break
    except csv.Error:
        pass
    return rows


def _is_even(rows: list[list[str]]) -> bool:
    return len({len(row) for row in rows}) == 1


def _rows(lines: Any, skipped: int, where: str) -> Iterator[tuple[int, list[str]]]:
    """Every row that holds anything; spreadsheets leave rows of nothing but separators at the end."""
    try:
        for cells in lines:
            if any(map(str.strip, cells)):
                yield lines.line_num + skipped, cells
    except csv.Error as error:
        raise DataError(
            f"{where} cannot be read ({error}, line {lines.line_num + skipped}); a quote may be left open, or it is "
            "cut short"
        ) from error


_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        cells: column name -> text without surrounding blanks; "" where empty or missing.
        line: in the file, counted from 1.
        file: its name.
        who: the set, with which messages start.
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
        """An error about this row, which starts with file and line."""
        return DataError(f"{self.who}: line {self.line} of {self.file} {what}")


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        columns: in the order of the file, without nameless ones; a column that was asked for has the name that it was
            asked for by.
        rows: generator of its rows, to be used up once.
        notes: what was taken as what, one sentence each; none where every name is written as it was asked for.
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
        path: the file.
        who: the set, with which messages start.
        needed: columns that must be there.
        optional: columns that are looked for.
        other_names: column -> names that mean the same, as `column_key` gives them, where it has no such column itself.
        exact: every row must have as many cells as the header; published sets are not that tidy.

    Raises:
        DataError: as `read_cells`; a column is missing, there twice, or two may be the one asked for; from the rows, a
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
    spellings = {name: match for name in wanted if (match := _find(name, cells.header, others, f"{who}: {path.name}"))}
    names = {spelling: name for name, spelling in spellings.items()}
    header = [names.get(name, name) for name in cells.header]
    columns = tuple(name for name in header if name)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{who}: the column {twice[0]!r} is there twice in {path.name}; rename or remove one")
    last_needed = max((header.index(name) for name in needed), default=-1) + 1
    rows = _named_rows(cells, header, path.name, who, least=len(header) if exact else last_needed, exact=exact)
    return Table(columns, rows, tuple(_notes(spellings, cells, path.name, exact=exact)))


def column_key(name: str) -> str:
    """The form in which names of columns are compared: "patientid" of "Patient ID", "patientId" and "patient.id"."""
    return re.sub(r"[\s_.\-]+", "", name).casefold()


def decimal_comma(text: str) -> str:
    """An addition to a message about a number that is written with a comma; "" for any other text."""
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


def _notes(spellings: Mapping[str, str], cells: Cells, file: str, *, exact: bool) -> Iterator[str]:
    """Notes on columns, separators and encodings that were not as usual."""
    if others := [f"{spelling!r} as {name}" for name, spelling in spellings.items() if spelling != name]:
        yield f"columns of {file} are taken by another spelling: {', '.join(others)}"
    if cells.separator != ",":
        yield f"the cells of {file} are taken as separated by {SEPARATORS[cells.separator]}"
    if cells.encoding != "utf-8":
        yield f"{file} is read as {cells.encoding.upper()}"
    nameless = [str(number) for number, name in enumerate(cells.header, 1) if not name]
    if nameless and exact:  # the headers of published sets end in nameless columns that hold nothing
        yield f"column {', '.join(nameless)} of {file} has no name and is not read"


def _named_rows(cells: Cells, header: Sequence[str], file: str, who: str, least: int, *, exact: bool) -> Iterator[Row]:
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

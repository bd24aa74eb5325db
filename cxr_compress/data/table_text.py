"""From the bytes of a table to text and cells: encoding, separator, and what is no table at all, each said by name.

Spreadsheets write CSV in many ways: with semicolons where a comma is the decimal mark, with tabs, in UTF-16 ("Unicode
text"), in the code page of the country, and with a first line `sep=;`. What a file says for certain is taken; what
would have to be guessed is refused, because a wrong guess moves labels into other columns or people into other names.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_compress.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_DETECTED = ",;\t"  # a bar joins labels inside one cell ("Mass|Nodule"), so only `sep=|` makes it a separator
_LOOKED_AT = 50  # rows that decide between two separators
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
        header: The first row, without blanks around its names.
        rows: (line of the file, counted from 1; cells) of every row below it that holds anything, to be used up once.
        separator: What stands between the cells.
        encoding: As Python names it.
    """

    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    separator: str
    encoding: str


def read_cells(path: Path, *, who: str, fits: Callable[[Sequence[str]], bool]) -> Cells:
    """The cells of a table of commas, semicolons or tabs; UTF-8 or, with its mark, UTF-16 or UTF-32; .gz or not.

    Args:
        path: The file.
        who: The set, with which messages start.
        fits: Whether a header has the columns that are looked for; decides where two separators stand in the header.

    Raises:
        DataError: The file cannot be read, is no text table, is in an encoding that would have to be guessed, or its
            separator is unclear; from `rows`: a quote is left open.
    """
    text, encoding = _decode(_content(path, who), f"{who}: {path.name}")
    text, said, skipped = _sep_line(text, f"{who}: {path.name}")
    separator = said or _separator(text, fits, f"{who}: {path.name}")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = _rows(lines, skipped, f"{who}: {path.name}")
    _, header = next(rows, (0, []))
    return Cells([cell.strip() for cell in header], rows, separator, encoding)


def read_text(path: Path, *, who: str) -> str:
    """The text of a file, in the encodings that `read_cells` takes.

    Raises:
        DataError: As `read_cells`.
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
    found = _SEP_LINE.match(text)
    if found is None:
        return text, "", 0
    separator = {"\\t": "\t", "": "\t"}.get(found[1], found[1])
    if separator not in SEPARATORS:
        raise DataError(
            f"{where} says sep={found[1]}; expected a comma, a semicolon, a tab or a vertical bar as the separator"
        )
    return text[found.end() :], separator, 1


def _separator(text: str, fits: Callable[[Sequence[str]], bool], where: str) -> str:
    """What stands between the cells: what the header holds, and where that is two things, what fits."""
    headers = {mark: _first_rows(text, mark, 1) for mark in _DETECTED}
    candidates = [mark for mark, rows in headers.items() if rows and len(rows[0]) > 1]
    if len(candidates) > 1:
        fitting = [mark for mark in candidates if fits([cell.strip() for cell in headers[mark][0]])]
        candidates = fitting or candidates
    if len(candidates) > 1:
        candidates = [mark for mark in candidates if _is_even(_first_rows(text, mark, _LOOKED_AT))] or candidates
    if len(candidates) > 1:
        told = " or ".join(SEPARATORS[mark] for mark in candidates)
        raise DataError(
            f"{where}: its cells may be separated by {told}; say which with a first line such as sep={candidates[0]}"
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

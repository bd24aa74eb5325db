"""Tables with one image a row: where it lies, whose it is, and what else is known of the patient; no labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr_compress.data.readers.base import ImageRecord, Request, parse_age, parse_sex, parse_view
from cxr_compress.data.table_file import Row, decimal_comma
from cxr_compress.device.decode import IMAGE_SUFFIXES
from cxr_compress.errors import DataError

PATIENT_COLUMNS = ("patient_id", "lesion_id")
# What other tools call these columns, as `column_key` gives it; taken only where the column itself is not there.
OTHER_NAMES = {
    "path": ("imagepath", "filepath"),
    "sex": ("gender", "patientsex", "patientgender"),
    "age": ("patientage",),
    "view": ("viewposition",),
}
OWN_PATIENT = "the table has no patient_id: every image counts as a patient, so one person may be in two splits"
_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_INTEGER_AS_FLOAT = re.compile(r"(-?\d+)\.0+")  # what pandas makes of a column of integers in which one is missing


@dataclass(frozen=True)
class RowImage(ImageRecord):
    """One row: its image, and its columns whose words mean nothing here."""

    not_understood: tuple[str, ...] = ()


def is_table(path: Path) -> bool:
    """Whether a path is that of a table, by its name."""
    return path.name.lower().endswith(_TABLES) and not path.is_dir()


def find_table(request: Request) -> tuple[Path, Path]:
    """The table of a request, named by the option `table` where `data_dir` is the images' folder; and their folder.

    Raises:
        DataError: there is no table, or more than one.
    """
    where, named = request.data_dir, request.text("table")
    if named:
        candidates = [path for path in (Path(named), where / named) if path.is_file()]
        if not candidates:
            raise DataError(f"{request.name}: expected a table, {named} does not exist")
        return candidates[0], where
    if where.is_file():
        return where, where.parent
    tables = [path for path in sorted(where.glob("*")) if is_table(path)]
    if len(tables) != 1:
        raise DataError(f"{request.name}: expected one .csv in {where}, found {len(tables)}; name the table itself")
    return tables[0], where


def read_image_row(
    row: Row, root: Path, *, path_column: str, columns: Sequence[str], labels: tuple[float, ...]
) -> RowImage:
    """One row, checked.

    Args:
        row: of a table.
        root: the folder that paths start from.
        path_column: column of the paths.
        columns: all that the table has.
        labels: of the image; () where it has none.

    Raises:
        DataError: no path, no patient though there is a column for it, or an age that is no number.
    """
    path, has = row[path_column], columns.__contains__
    if not path:
        raise row.error(f"has nothing in the column {path_column!r}; expected the path of an image")
    who = [name for name in PATIENT_COLUMNS if has(name)]
    patient = next((_patient(row[name]) for name in who if row[name]), "" if who else path)
    if not patient:
        raise row.error(f"has no {' and no '.join(who)}; expected one for every image, or no such column")
    try:
        age = parse_age(row.get("age"))
    except ValueError as error:
        hint = decimal_comma(row["age"])
        raise row.error(f"has the age {row['age']!r}; expected years{hint}") from error
    sex, view = parse_sex(row.get("sex")), parse_view(row.get("view"))
    unknown = {"sex": not sex, "age": math.isnan(age), "view": not view}
    return RowImage(
        root / path,
        patient,
        labels,
        age if has("age") else None,
        sex if has("sex") else None,
        view if has("view") else None,
        row["source"] if has("source") else None,
        not_understood=tuple(name for name, is_unknown in unknown.items() if is_unknown and row.get(name)),
    )


def _patient(text: str) -> str:
    """The patient that a cell names: 12366.0 is 12366, so that one person is not taken for two."""
    integer = _INTEGER_AS_FLOAT.fullmatch(text)
    return integer[1] if integer else text


def refuse_backslashes(records: Sequence[RowImage], who: str) -> None:
    """Paths of Windows name nothing elsewhere: that is another fault than an incomplete set.

    Raises:
        DataError: with slashes they would lead somewhere.
    """
    windows = [record.path for record in records if "\\" in str(record.path) and not record.path.is_file()]
    if any(Path(str(path).replace("\\", "/")).is_file() for path in windows):
        raise DataError(
            f"{who}: {len(windows)} paths of the table are written with backslashes; write them with slashes"
        )


def notes_on_rows(records: Sequence[RowImage]) -> Iterator[str]:
    """Notes on cells whose words mean nothing, and on images beside those of the table that no row names.

    Cells are counted and not quoted: a word in the wrong column may be a patient's name.
    """
    expected = {
        "sex": "F, M, female or male",
        "age": "years from 0 to 110",
        "view": "PA, AP, L, LL, RL or lateral",
    }
    for column, words in expected.items():
        count = sum(column in record.not_understood for record in records)
        if count:
            yield f"the {column} of {count} of {len(records)} images is taken as unknown; expected {words}"
    named = {record.path for record in records}
    folders = sorted({path.parent for path in named})
    beside = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    # Perhaps the table was cut short.
    count = sum(
        path not in named and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") for path in beside
    )
    if count:
        yield f"{count} images beside those of the table are not read: no row names them"

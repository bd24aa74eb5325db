"""Tables with one image a row: where it lies, whose it is, its split, its class, and what is known of the patient."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr_compress.data.dataset import finding_key
from cxr_compress.data.readers.base import ImageRecord, Request, make_split, parse_age, parse_sex, parse_view
from cxr_compress.data.splits import Split, carve_dev, divide
from cxr_compress.data.table_file import Row, decimal_comma
from cxr_compress.device.decode import IMAGE_SUFFIXES
from cxr_compress.errors import DataError

PATIENT_COLUMNS = ("patient_id", "lesion_id")
# What other tools call these columns, as `column_key` gives it; taken only where the column itself is not there.
OTHER_NAMES = {
    "path": ("imagepath", "filepath", "image", "imageid", "isicid"),
    "sex": ("gender", "patientsex", "patientgender"),
    "age": ("patientage",),
    "view": ("viewposition",),
}
RESERVED = (*PATIENT_COLUMNS, "sex", "age", "view", "split", "source")  # columns that hold no labels
OWN_PATIENT = "the table has no patient_id: every image counts as a patient, so one person may be in two splits"
OWN_SPLIT = "the table has no column split: dev and test are drawn by seed"
_PARTS = {
    **dict.fromkeys(("train", "training", "train_val"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NO_NAME = ("nan", "<na>", "null", "n/a", "unknown")  # what people and other programs write for an empty cell
_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_INTEGER_AS_FLOAT = re.compile(r"(-?\d+)\.0+")  # what pandas makes of a column of integers in which one is missing


@dataclass(frozen=True)
class RowImage(ImageRecord):
    """One row: its image, its columns whose words mean nothing here, and the split that it names."""

    not_understood: tuple[str, ...] = ()
    part: str = ""


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


def in_folder(root: Path) -> Callable[[str], Path]:
    """Where the image of a cell lies: a path within a folder, with or without its suffix."""

    def locate(cell: str) -> Path:
        path = root / cell
        if path.suffix.lower() in IMAGE_SUFFIXES or path.is_file():
            return path
        candidates = (path.with_name(path.name + suffix) for suffix in IMAGE_SUFFIXES)
        return next((candidate for candidate in candidates if candidate.is_file()), path)

    return locate


def read_image_row(
    row: Row, locate: Callable[[str], Path], *, path_column: str, columns: Sequence[str], labels: tuple[float, ...]
) -> RowImage:
    """One row, checked.

    Args:
        row: of a table.
        locate: gives the file that a cell of the path column names, whether or not it exists.
        path_column: column of the paths.
        columns: all that the table has.
        labels: of the image; () where it has none.

    Raises:
        DataError: no path, no patient though there is a column for it, an age that is no number, or a split that is
            none.
    """
    path, has = row[path_column], columns.__contains__
    if not path:
        raise row.error(f"has nothing in the column {path_column!r}; expected the path of an image")
    who = [name for name in PATIENT_COLUMNS if has(name)]
    patient = next((_patient(row[name]) for name in who if row[name]), "" if who else path)
    if not patient:
        raise row.error(f"has no {' and no '.join(who)}; expected one for every image, or no such column")
    try:
        age = parse_age(_words(row, "age"))
    except ValueError as error:
        hint = decimal_comma(row["age"])
        raise row.error(f"has the age {row['age']!r}; expected years{hint}") from error
    sex, view = parse_sex(row.get("sex")), parse_view(row.get("view"))
    part = _PARTS.get(row.get("split").lower().replace("-", "_"), "")
    if has("split") and not part:
        raise row.error(f"has the split {row['split']!r}; expected train, dev, val or test")
    unknown = {"sex": not sex, "age": math.isnan(age), "view": not view}
    return RowImage(
        locate(path),
        patient,
        labels,
        age if has("age") else None,
        sex if has("sex") else None,
        view if has("view") else None,
        row["source"] if has("source") else None,
        not_understood=tuple(name for name, is_unknown in unknown.items() if is_unknown and _words(row, name)),
        part=part,
    )


def _words(row: Row, column: str) -> str:
    """What a cell says of a person; "" where it says that nothing is known."""
    text = row.get(column)
    return "" if text.casefold() in _NO_NAME else text


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


def notes_on_columns(columns: Sequence[str], read: Sequence[str]) -> Iterator[str]:
    """A note that names the columns of a table which nobody reads."""
    if unread := [name for name in columns if name not in read]:
        yield f"columns that are not read: {', '.join(unread)}"


def make_parts(
    records: Sequence[RowImage], findings: Sequence[str], request: Request, *, has_split: bool
) -> tuple[Split, Split, Split]:
    """Train, dev and test as the column `split` says, or as the seed says where the table has none."""
    if not has_split:
        test_fraction = request.number("test_fraction", 0.2)
        whole = make_split("all", records, findings)
        return divide(whole, dev_fraction=request.dev_fraction, test_fraction=test_fraction, seed=request.seed)
    train, dev, test = (
        make_split(name, [record for record in records if record.part == name], findings)
        for name in ("train", "dev", "test")
    )
    if not len(dev):
        train, dev = carve_dev(train, fraction=request.dev_fraction, seed=request.seed)
    return train, dev, test


def one_row_an_image(rows: Sequence[Row], records: Sequence[RowImage], path_column: str) -> list[RowImage]:
    """The records, of which no two may be of one file.

    Raises:
        DataError: names the later row.
    """
    seen: set[Path] = set()
    for row, record in zip(rows, records, strict=True):
        if record.path in seen:
            raise row.error(f"names {row[path_column]!r}, which an earlier row names; keep one row per image")
        seen.add(record.path)
    return list(records)


def class_names(rows: Sequence[Row], column: str, *, who: str, option: str) -> tuple[str, ...]:
    """The classes that a column names, sorted.

    Args:
        rows: of a table.
        column: its column of classes.
        who: the set, with which messages start.
        option: of the reader, which names the column.

    Raises:
        DataError: a cell is no class, one class has two spellings, or all images are of one.
    """
    first: dict[str, Row] = {}
    for row in rows:
        name = row[column]
        if not name:
            continue
        if name.casefold() in _NO_NAME:
            raise row.error(
                f"has {name!r} in the column {column!r}, which is what other programs write for nothing; leave the "
                "cell empty where the class is unknown, or give the class another name"
            )
        if (other := first.setdefault(finding_key(name), row)[column]) != name:
            raise row.error(
                f"has the class {name!r} in the column {column!r}, line {first[finding_key(name)].line} has {other!r}; "
                "expected one spelling of each class"
            )
    names = tuple(sorted(row[column] for row in first.values()))
    if len(names) == 1:
        raise DataError(
            f"{who}: expected two classes or more in the column {column!r}, all {len(rows)} rows that name one name "
            f"{names[0]!r}; add images of another class, or name another column with the option {option}"
        )
    return names


def class_labels(row: Row, column: str, classes: Sequence[str]) -> tuple[float, ...]:
    """1 for the class that a row names and 0 for the others; all NaN where it names none.

    Args:
        row: of a table.
        column: its column of classes.
        classes: all of them, or the one that is the finding.

    Raises:
        DataError: the row names none of several classes.
    """
    name = row[column]
    if not name:
        return (math.nan,) * len(classes)
    if len(classes) > 1 and name not in classes:
        raise row.error(
            f"has the class {name!r} in the column {column!r}; expected {', '.join(classes)}, or nothing (name all "
            "classes with the option findings)"
        )
    return tuple(float(name == finding) for finding in classes)

"""Reads a set from one CSV table, the way in for every set that has no reader of its own, and writes such tables."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr_compress.data.dataset import Dataset, finding_key
from cxr_compress.data.image_rows import (
    OTHER_NAMES,
    OWN_PATIENT,
    PATIENT_COLUMNS,
    RowImage,
    find_table,
    notes_on_rows,
    read_image_row,
    refuse_backslashes,
)
from cxr_compress.data.readers.base import Request, keep_existing, make_split, register_reader
from cxr_compress.data.splits import Split, carve_dev, divide, join_splits
from cxr_compress.data.table_file import Row, column_key, decimal_comma, read_table
from cxr_compress.errors import DataError

RESERVED = (*PATIENT_COLUMNS, "sex", "age", "view", "split", "source")
_PARTS = {
    **dict.fromkeys(("train", "training", "train_val"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NO_NAME = ("nan", "<na>", "null")  # what other programs write for an empty cell
_OWN_SPLIT = "the table has no column split: dev and test are drawn by seed"


@dataclass(frozen=True)
class _Layout:
    """What the columns of a table mean.

    Attributes:
        path: column of the images' paths.
        patient: columns that may name the patient: the first of them that a row fills does.
        findings: names of the findings.
        columns: all columns.
        notes: how columns were taken.
        class_column: column that names the one class of each image; "" where every finding has a column of its own.
    """

    path: str
    patient: tuple[str, ...]
    findings: tuple[str, ...]
    columns: frozenset[str]
    notes: tuple[str, ...] = ()
    class_column: str = ""

    @property
    def exclusive(self) -> bool:
        """Whether the findings are classes of which each image has exactly one."""
        return bool(self.class_column) and len(self.findings) > 1


@dataclass(frozen=True)
class _Record(RowImage):
    """One row, and the split that it names."""

    part: str = ""


@register_reader(
    "csv",
    help="any set, from a table of paths, labels and, where known, patients",
    options={
        "table": "the table, where data_dir is only the folder of the images",
        "path_column": "column of the paths, path unless given",
        "findings": "columns of labels, joined by |; all that are not reserved unless given",
        "class_column": "column that names the one class of each image; the findings are then the classes",
        "color": "gray (unless given) or rgb: what the images are",
        "test_fraction": "share of the patients for test in tables without a column split, 0.2 unless given",
        "attribution": "whose data this is, for reports and model files",
    },
    lists_images=True,
)
def read_csv(request: Request) -> Dataset:
    """A set from a table `path,label...[,patient_id|lesion_id,sex,age,view,split,source]`.

    `data_dir` is the table (.csv, .tsv, .gz) or a folder with exactly one. Every column that is not reserved holds
    labels: 0, 1, a soft target between them, or nothing (unknown). `split` says train, dev (or val) or test; without
    dev rows dev is carved out of train by patient; without the column a seeded, stratified split is made. Paths are
    relative to the table's folder, or to `data_dir` if that is a folder. Names of columns are found whatever their case
    and blanks ("Patient ID", `patientId`); the notes say what was taken as what, and what was not understood.

    With `class_column` (empty for unknown) the findings are its names, sorted, and exclude one another; `findings` then
    gives their order, or the one class that is the finding.

    Raises:
        DataError: no table, a column missing, a row that cannot be used (with file and line), images missing.
    """
    table_path, root = find_table(request)
    records, layout = _read_records(table_path, root, request)
    refuse_backslashes(records, request.name)
    kept, _ = keep_existing(request, {"listed": records})
    records = kept["listed"]
    notes = [*layout.notes, *notes_on_rows(records)]
    if not layout.patient:
        notes.append(OWN_PATIENT)
    if "split" not in layout.columns:
        notes.append(_OWN_SPLIT)
    return Dataset(
        "csv",
        layout.findings,
        *_make_parts(records, layout, request),
        request.text("attribution", "not given: say whose data this is with the option attribution"),
        notes=tuple(notes),
        patient_key=f"the column {layout.patient[0]!r}" if layout.patient else "the path, for want of a patient_id",
        color=request.text("color", "gray", ("gray", "rgb")),
        exclusive=layout.exclusive,
    )


def _read_records(path: Path, root: Path, request: Request) -> tuple[list[_Record], _Layout]:
    """All rows, each path once."""
    path_column = request.text("path_column", "path")
    findings, class_column = request.names("findings"), request.text("class_column")
    labels = (class_column,) if class_column else findings
    chosen = {column_key(name) for name in (path_column, *labels)}
    table = read_table(
        path,
        who="csv",
        needed=(path_column, *labels),
        optional=[name for name in RESERVED if column_key(name) not in chosen],
        other_names=OTHER_NAMES,
        exact=True,
    )
    rows = list(table.rows)
    if class_column:
        named = _class_names(rows, class_column)
        findings = findings or named
    findings = findings or tuple(name for name in table.columns if name not in (path_column, *RESERVED))
    for name in findings:
        alike = [other for other in findings if finding_key(other) == finding_key(name)]
        if len(alike) > 1:
            raise DataError(
                f"expected different findings in {path.name}, got the columns {' and '.join(map(repr, alike))}, "
                "which are compared without case: name those that are meant with the option findings"
            )
    if not findings:
        raise DataError(f"csv: expected at least one column of labels beside {path_column!r} in {path.name}")
    if not rows:
        raise DataError(f"csv: {path.name} has a header and no rows; expected one for each image")
    patient = tuple(name for name in PATIENT_COLUMNS if name in table.columns)
    layout = _Layout(path_column, patient, findings, frozenset(table.columns), table.notes, class_column)
    records: dict[Path, _Record] = {}
    for row in rows:
        record = _read_record(row, layout, root)
        if record.path in records:
            raise row.error(f"names {row[path_column]!r}, which an earlier row names; keep one row per image")
        records[record.path] = record
    return list(records.values()), layout


def _class_names(rows: list[Row], column: str) -> tuple[str, ...]:
    """The classes that a column names, sorted; refuses what is no class, or one class in two spellings."""
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
    return tuple(sorted(row[column] for row in first.values()))


def _read_record(row: Row, layout: _Layout, root: Path) -> _Record:
    """One row, checked."""
    labels = _class_labels(row, layout) if layout.class_column else _labels(row, layout)
    image = read_image_row(row, root, path_column=layout.path, columns=tuple(layout.columns), labels=labels)
    part = _PARTS.get(row.get("split").lower().replace("-", "_"))
    if part is None and "split" in layout.columns:
        raise row.error(f"has the split {row['split']!r}; expected train, dev, val or test")
    return _Record(**vars(image), part=part or "")


def _labels(row: Row, layout: _Layout) -> tuple[float, ...]:
    """One number for each finding's own column."""
    return tuple(_label(row, finding) for finding in layout.findings)


def _class_labels(row: Row, layout: _Layout) -> tuple[float, ...]:
    """1 for the class that the row names and 0 for the others; all NaN where it names none."""
    name = row[layout.class_column]
    if not name:
        return (math.nan,) * len(layout.findings)
    if layout.exclusive and name not in layout.findings:
        raise row.error(
            f"has the class {name!r} in the column {layout.class_column!r}; expected {', '.join(layout.findings)}, or "
            "nothing (name all classes with the option findings)"
        )
    return tuple(float(name == finding) for finding in layout.findings)


def _label(row: Row, finding: str) -> float:
    """A number from 0 to 1, or NaN for nothing."""
    text = row[finding]
    try:
        # Python takes 0_1 for 1.
        value = math.inf if "_" in text else float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if text and not 0 <= value <= 1:
        raise row.error(
            f"has {text!r} in the column {finding!r}; expected 0, 1, a soft label between them or nothing (if this "
            "is no column of labels, name those that are with the option findings; if it names the class of each "
            f"image, give the option class_column={finding}){decimal_comma(text)}"
        )
    return value


def _make_parts(records: list[_Record], layout: _Layout, request: Request) -> tuple[Split, Split, Split]:
    """Train, dev and test as the table says, or as the seed says."""
    if "split" not in layout.columns:
        test_fraction = request.number("test_fraction", 0.2)
        whole = make_split("all", records, layout.findings)
        return divide(whole, dev_fraction=request.dev_fraction, test_fraction=test_fraction, seed=request.seed)
    train, dev, test = (
        make_split(name, [record for record in records if record.part == name], layout.findings)
        for name in ("train", "dev", "test")
    )
    if not len(dev):
        train, dev = carve_dev(train, fraction=request.dev_fraction, seed=request.seed)
    return train, dev, test


_FIELDS = {"sex": "sexes", "age": "ages", "view": "views", "source": "sources"}


def table_bytes(dataset: Dataset, root: Path) -> bytes:
    """A set as a table that `read_csv` reads again, with the same splits: UTF-8, rows sorted by path.

    The same set gives the same bytes on every machine, wherever it lies.

    Args:
        dataset: set of image files.
        root: the folder that paths are written relative to.

    Raises:
        DataError: the set holds arrays, a finding's name is that of a reserved column, or a text has blanks around it.
    """
    taken = sorted({"path", *RESERVED} & set(dataset.findings))
    if taken:
        raise DataError(f"{dataset.name}: the finding {taken[0]!r} has the name of a column with another meaning")
    if any(split.pixels is not None for split in dataset.splits):
        raise DataError(f"{dataset.name}: the set holds arrays and no files, so there are no paths to list")
    for split in dataset.splits:
        for text in (*dataset.findings, *split.patients, *map(str, split.paths), *(split.sources or ())):
            if text != text.strip():
                raise DataError(f"{dataset.name}: {text!r} begins or ends with a blank, which a table loses; rename it")
    return _format(dataset, root).encode("utf-8")


def _format(dataset: Dataset, root: Path) -> str:
    """The text of the table."""
    images = join_splits(dataset.splits, "all")
    optional = [name for name, field in _FIELDS.items() if getattr(images, field) is not None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "split", "patient_id", *optional, *dataset.findings])
    parts = [split.name for split in dataset.splits for _ in range(len(split))]
    rows = []
    for index, (path, part, patient) in enumerate(zip(images.paths, parts, images.patients, strict=True)):
        extra = [_cell(getattr(images, _FIELDS[name])[index]) for name in optional]
        rows.append([_relative(path, root), part, patient, *extra, *map(_cell, images.labels[index])])
    writer.writerows(sorted(rows))
    return text.getvalue()


def _cell(value: str | np.floating) -> str:
    """Text, or the shortest number that reads back as the same float32; nothing for NaN."""
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else np.format_float_positional(np.float32(value), unique=True, trim="-")


def _relative(path: Path, root: Path) -> str:
    """With slashes on every system; as it is where it lies elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

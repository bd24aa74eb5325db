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
    OWN_SPLIT,
    PATIENT_COLUMNS,
    RESERVED,
    RowImage,
    class_labels,
    class_names,
    find_table,
    in_folder,
    make_parts,
    notes_on_columns,
    notes_on_rows,
    one_row_an_image,
    read_image_row,
    refuse_backslashes,
)
from cxr_compress.data.readers.base import Request, keep_existing, register_reader
from cxr_compress.data.splits import join_splits
from cxr_compress.data.table_file import Row, column_key, decimal_comma, read_table
from cxr_compress.errors import DataError


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


@register_reader(
    "csv",
    help="any set, from a table of paths, labels and, where known, patients",
    options={
        "table": "the table, where data_dir is only the folder of the images",
        "path_column": "column of the paths, with or without suffix; path, image or image_id unless given",
        "findings": "columns of labels, joined by |; all that are not reserved unless given",
        "label_column": "column that names the one class of each image; the findings are then the classes",
        "class_column": "another name of label_column",
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

    With `label_column` (empty for unknown) the findings are its names, sorted, and exclude one another; `findings` then
    gives their order, or the one class that is the finding. Columns that are not read are named in the notes.

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
        notes.append(OWN_SPLIT)
    return Dataset(
        "csv",
        layout.findings,
        *make_parts(records, layout.findings, request, has_split="split" in layout.columns),
        request.text("attribution", "not given: say whose data this is with the option attribution"),
        notes=tuple(notes),
        patient_key=f"the column {layout.patient[0]!r}" if layout.patient else "the path, for want of a patient_id",
        color=request.text("color", "gray", ("gray", "rgb")),
        exclusive=layout.exclusive,
    )


def _read_records(path: Path, root: Path, request: Request) -> tuple[list[RowImage], _Layout]:
    """All rows, each path once."""
    path_column = request.text("path_column", "path")
    findings, class_column = request.names("findings"), request.text("label_column", request.text("class_column"))
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
        named = class_names(rows, class_column, who="csv", option="label_column")
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
    unread = notes_on_columns(table.columns, [path_column, *RESERVED, *(labels or findings)])
    layout = _Layout(path_column, patient, findings, frozenset(table.columns), (*table.notes, *unread), class_column)
    locate = in_folder(root)
    records = [
        read_image_row(
            row,
            locate,
            path_column=path_column,
            columns=table.columns,
            labels=class_labels(row, class_column, findings) if class_column else _labels(row, layout),
        )
        for row in rows
    ]
    return one_row_an_image(rows, records, path_column), layout


def _labels(row: Row, layout: _Layout) -> tuple[float, ...]:
    """One number for each finding's own column."""
    return tuple(_label(row, finding) for finding in layout.findings)


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
            f"image, give the option label_column={finding}){decimal_comma(text)}"
        )
    return value


_FIELDS = {"sex": "sexes", "age": "ages", "view": "views", "source": "sources"}


def table_bytes(dataset: Dataset, root: Path) -> bytes:
    """A set as a table that `read_csv` reads again, with the same splits: UTF-8, rows sorted by path.

    Classes that exclude one another stand in one column, `label`, unless shares of them are known. The same set gives
    the same bytes on every machine, wherever it lies.

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


def names_classes(dataset: Dataset) -> bool:
    """Whether the table of a set has one column that names the class of each image."""
    labels = np.concatenate([split.labels for split in dataset.splits])
    return dataset.exclusive and bool((np.isin(labels, (0, 1)).all(axis=1) | np.isnan(labels).all(axis=1)).all())


def _format(dataset: Dataset, root: Path) -> str:
    """The text of the table."""
    images = join_splits(dataset.splits, "all")
    optional = [name for name, field in _FIELDS.items() if getattr(images, field) is not None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    by_name = names_classes(dataset)
    writer.writerow(["path", "split", "patient_id", *optional, *(["label"] if by_name else dataset.findings)])
    parts = [split.name for split in dataset.splits for _ in range(len(split))]
    rows = []
    for index, (path, part, patient) in enumerate(zip(images.paths, parts, images.patients, strict=True)):
        extra = [_cell(getattr(images, _FIELDS[name])[index]) for name in optional]
        labels = images.labels[index]
        named = "" if math.isnan(labels[0]) else dataset.findings[int(labels.argmax())]
        rows.append([_relative(path, root), part, patient, *extra, *([named] if by_name else map(_cell, labels))])
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

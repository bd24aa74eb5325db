"""Writes a set and its splits as one CSV table."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.split import join_splits
from cxr_compress.data.table import RESERVED
from cxr_compress.errors import DataError

_FIELDS = {"sex": "sexes", "age": "ages", "view": "views", "source": "sources"}


def table_bytes(dataset: Dataset, root: Path) -> bytes:
    """A set as a table that ``read_csv`` reads again, with the same splits: UTF-8, rows sorted by path.

    The same set gives the same bytes on every machine, wherever it lies.

    Args:
        dataset: Of image files.
        root: The folder that paths are written relative to.

    Raises:
        DataError: The set holds arrays, a finding's name is that of a reserved column, or a text has blanks around it.
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
    films = join_splits(dataset.splits, "all")
    optional = [name for name, field in _FIELDS.items() if getattr(films, field) is not None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "split", "patient_id", *optional, *dataset.findings])
    parts = [split.name for split in dataset.splits for _ in range(len(split))]
    rows = []
    for index, (path, part, patient) in enumerate(zip(films.paths, parts, films.patients, strict=True)):
        extra = [_cell(getattr(films, _FIELDS[name])[index]) for name in optional]
        rows.append([_relative(path, root), part, patient, *extra, *map(_cell, films.labels[index])])
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

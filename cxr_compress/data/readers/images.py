"""Images without labels, as a clinic has them: a folder, or a table of paths and, where known, patients.

The findings are those of the model that is compressed, whose answers take the place of labels. A tenth of the patients
is held out ("test"), a tenth of the others is dev, all by seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.image_rows import (
    OTHER_NAMES,
    OWN_PATIENT,
    PATIENT_COLUMNS,
    find_table,
    in_folder,
    is_table,
    notes_on_rows,
    read_image_row,
    refuse_backslashes,
)
from cxr_compress.data.readers.base import ImageRecord, Request, keep_existing, make_split, register_reader
from cxr_compress.data.splits import divide
from cxr_compress.data.table_file import read_table
from cxr_compress.device.sources import look_into
from cxr_compress.errors import DataError

# 16 for training, from which the ranges of int8 are fixed, and two each for dev and the score.
FEWEST = 20
_HELD_OUT = 0.1
_OPTIONAL = (*PATIENT_COLUMNS, "sex", "age", "view", "source")


@register_reader(
    "images",
    help="images without labels, for a model from a file: a folder, or a table of paths and, where known, patients",
    options={
        "table": "the table, where data_dir is only the folder of its images",
        "path_column": "column of the paths, path unless given",
        "ignore": "columns of the table that are not read, joined by |, for example labels",
        "color": "gray (unless given) or rgb: what the images are",
        "test_fraction": "share of the patients that no stage sees before the score, 0.1 unless given",
        "attribution": "whose data this is, for reports and model files",
    },
    lists_images=True,
    labeled=False,
)
def read_images(request: Request) -> Dataset:
    """A folder with its sub-folders, or a table `path[,patient_id|lesion_id,sex,age,view,source]`.

    Every image that `cxr_predict` reads is taken, whatever its size and kind. Files of equal content, and all images of
    a patient, stay in one split. The labels have no column yet: the model's findings become columns of unknowns.

    Raises:
        DataError: no image, too few, all alike, images missing, or a column that this reader does not know.
    """
    if is_table(request.data_dir) or "table" in request.options:
        records, notes, patient_key = _of_table(request)
    else:
        records, notes, patient_key = _of_folder(request)
    records, copies = _join_copies(records)
    _check_enough(request, records, copies)
    if copies:
        notes.append(f"{copies} images are byte for byte copies of others: copies stay in one split")
    return Dataset(
        request.name,
        (),
        *divide(
            make_split("all", records, ()),
            dev_fraction=request.dev_fraction,
            test_fraction=request.number("test_fraction", _HELD_OUT),
            seed=request.seed,
        ),
        request.text("attribution", "not given: say whose images these are with the option attribution"),
        notes=tuple(notes),
        patient_key=patient_key,
        color=request.text("color", "gray", ("gray", "rgb")),
        labeled=False,
    )


def _of_folder(request: Request) -> tuple[list[ImageRecord], list[str], str]:
    """The images of a folder, each its own patient; what was found, in words."""
    if request.data_dir.is_file():
        raise DataError(
            f"{request.name}: expected a folder of images or a table (.csv) of their paths, got {request.data_dir.name}"
        )
    content = look_into(request.folder)
    # By its place within the folder: the same images give the same splits wherever the folder lies.
    records = [
        ImageRecord(path, patient=path.relative_to(request.folder).as_posix(), labels=()) for path in content.images
    ]
    notes = [f"{_kinds(content.images)}, brought to the model's size one by one"] if records else []
    notes += [note] if (note := content.note()) else []
    notes.append("a folder does not say whose its images are: each counts as a patient (a table may have patient_id)")
    return records, notes, "the path, as a folder names no patients"


def _kinds(paths: Sequence[Path]) -> str:
    """How many images of which kind, by their suffixes."""
    counts = Counter(path.suffix.lower() or "without a suffix" for path in paths)
    return f"{len(paths)} images: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _of_table(request: Request) -> tuple[list[ImageRecord], list[str], str]:
    """The rows of a table, and how they were taken, in words."""
    path, root = find_table(request)
    path_column, ignored = request.text("path_column", "path"), request.names("ignore")
    table = read_table(
        path,
        who=request.name,
        needed=(path_column, *ignored),
        optional=_OPTIONAL,
        other_names=OTHER_NAMES,
        exact=True,
    )
    if others := [name for name in table.columns if name not in (path_column, *_OPTIONAL, *ignored)]:
        raise DataError(
            f"{request.name}: {path.name} also has the column(s) {', '.join(map(repr, others))}, and this reader takes "
            "no labels: use --dataset=csv, which trains and scores with them, or leave them out with "
            f"--options='ignore={'|'.join((*ignored, *others))}'"
        )
    columns = [name for name in table.columns if name not in ignored]
    locate = in_folder(root)
    rows = [read_image_row(row, locate, path_column=path_column, columns=columns, labels=()) for row in table.rows]
    refuse_backslashes(rows, request.name)
    kept = keep_existing(request, {"listed": rows})[0]["listed"]
    kept = list({record.path: record for record in kept}.values())
    patient = [name for name in PATIENT_COLUMNS if name in columns]
    notes = [*table.notes, *notes_on_rows(kept), *([] if patient else [OWN_PATIENT])]
    return list(kept), notes, f"the column {patient[0]!r}" if patient else "the path, for want of a patient_id"


def _join_copies(records: Sequence[ImageRecord]) -> tuple[list[ImageRecord], int]:
    """The same images with those of equal content under one patient, and how many are copies of an earlier one."""
    first_of: dict[bytes, str] = {}
    joined: dict[str, str] = {}
    copies = 0
    for record in records:
        digest = _content_digest(record.path)
        if digest in first_of:
            copies += 1
            one, other = _root(joined, first_of[digest]), _root(joined, record.patient)
            joined[max(one, other)] = min(one, other)
        first_of.setdefault(digest, record.patient)
    return [replace(record, patient=_root(joined, record.patient)) for record in records], copies


def _content_digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError:  # decoding says so, of all that cannot be read at once
        return str(path).encode()


def _root(joined: dict[str, str], patient: str) -> str:
    """The patient under which another one and its copies go."""
    while joined.get(patient, patient) != patient:
        patient = joined[patient]
    return patient


def _check_enough(request: Request, records: Sequence[ImageRecord], copies: int) -> None:
    """Refuse what no split can be made of.

    Raises:
        DataError: says how many images there are, how many are needed, and for what.
    """
    for problem in _problems(request, len(records), copies):
        raise DataError(problem)


def _problems(request: Request, count: int, copies: int) -> Iterator[str]:
    where = request.data_dir.name
    if not count:
        yield f"{request.name}: no image in {where}: give a folder of images or a table of their paths"
    distinct = count - copies
    if distinct == 1 and count > 1:
        yield f"{request.name}: all {count} images in {where} are copies of one image: give images of several patients"
    if distinct < FEWEST:
        yield (
            f"{request.name}: {distinct} different image{'s' * (distinct != 1)} in {where}, at least {FEWEST} are "
            f"needed: {FEWEST - 4} to refit layers and fix ranges, and a tenth each, two at least, to choose on and to "
            "score on; a hundred and more tell more"
        )

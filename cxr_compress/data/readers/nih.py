"""Reads NIH ChestX-ray14 (112,120 images, 14 findings, official lists of train and test images) and its boxes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import (
    NIH_FINDINGS,
    ImageRecord,
    Request,
    keep_existing,
    load_dataset,
    make_split,
    parse_age,
    parse_sex,
    parse_view,
    register_reader,
)
from cxr_compress.data.splits import carve_dev
from cxr_compress.data.table_file import Row, read_table, read_text
from cxr_compress.errors import DataError

ATTRIBUTION = "NIH Clinical Center; Wang et al., ChestX-ray8, CVPR 2017, pp. 3462-3471; https://nihcc.app.box.com/v/ChestXray-NIHCC"

BOX_IMAGE_SIZE = 1024  # pixels per edge of the images that the boxes were drawn on
# The header of the boxes is "Image Index,Finding Label,Bbox [x,y,w,h],,,": its commas split the third name in four.
_BOX_SIDES = ("Bbox [x", "y", "w", "h]")
_BOX_ALIASES = {"Infiltrate": "Infiltration"}

_NO_FINDING = "No Finding"
# Only these are read. The header's last columns contain commas themselves (OriginalImage[Width,Height]) and ages come
# as 58 or 058Y, depending on the edition.
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
_OF_PEOPLE = ("Patient Age", "Patient Gender", "View Position")


def load_nih(data_dir: str | Path, *, dev_fraction: float = 0.1, seed: int = 0, allow_missing: bool = False) -> Dataset:
    """The set as `load_dataset("nih", ...)` gives it."""
    return load_dataset("nih", data_dir, dev_fraction=dev_fraction, seed=seed, allow_missing=allow_missing)


@register_reader(
    "nih",
    help="NIH ChestX-ray14: 112,120 images, 14 findings",
    options={"exclude_list": "text or CSV file that names images to leave out, such as cxr14_bad_labels.csv"},
    lists_images=True,
)
def read_nih(request: Request) -> Dataset:
    """The set with its official test list and a dev split carved out of the patients of the train_val list.

    `data_dir` holds `Data_Entry_2017*.csv` (or `.csv.gz`), `train_val_list.txt`, `test_list.txt`, and the images in
    `images/` or in `images_001/images/` to `images_012/images/`. A part of the images is not a random sample, and its
    AUROCs do not compare with published ones.

    Raises:
        DataError: a file is missing, the lists and the CSV disagree, a label is unknown, or images are missing.
    """
    root = request.folder
    entries, notes = _read_entries(_find_entries(root))
    lists = {name: _read_list(root / f"{name}_list.txt") for name in ("train_val", "test")}
    _check_lists(lists, entries)
    left_out = _read_excluded(request.text("exclude_list"), entries)
    images, unlisted = _find_images(root, entries)
    listed = {
        name: [
            replace(entries[image], path=images.get(image, root / "images" / image))
            for image in names
            if image not in left_out
        ]
        for name, names in lists.items()
    }
    kept, missing = keep_existing(request, listed, set(images.values()).__contains__)
    train_val, test = (make_split(name, records, NIH_FINDINGS) for name, records in kept.items())
    train, dev = carve_dev(train_val, fraction=request.dev_fraction, seed=request.seed)
    return Dataset(
        "nih",
        NIH_FINDINGS,
        train,
        dev,
        test,
        ATTRIBUTION,
        notes=(*notes, *_notes(missing, len(left_out)), *unlisted),
        patient_key="the column 'Patient ID'",
    )


def _notes(missing: int, left_out: int) -> tuple[str, ...]:
    """Notes on what makes this copy another set than the published one."""
    notes = []
    if missing:
        notes.append("a part of the set, not a random sample: its AUROCs do not compare with published ones")
    if left_out:
        notes.append(f"{left_out} images of exclude_list are left out")
    return tuple(notes)


def _find_entries(root: Path) -> Path:
    """The label file, whatever its edition."""
    editions = [path for path in sorted(root.glob("Data_Entry_2017*")) if path.name.endswith((".csv", ".csv.gz"))]
    if len(editions) != 1:
        raise DataError(
            f"nih: expected one Data_Entry_2017*.csv (or .csv.gz) in {root}, found {len(editions)}; keep one edition"
        )
    return editions[0]


def _read_entries(path: Path) -> tuple[dict[str, ImageRecord], tuple[str, ...]]:
    """Image name -> what the label file says of it; and how its columns were taken."""
    table = read_table(path, who="nih", needed=_COLUMNS, optional=_OF_PEOPLE)
    entries: dict[str, ImageRecord] = {}
    for row in table.rows:
        name, entry = row["Image Index"], _read_row(row)
        if entries.setdefault(name, entry) != entry:
            raise row.error(f"says other things of {name!r} than an earlier row; keep one row per image")
    return entries, table.notes


def _read_row(row: Row) -> ImageRecord:
    """One image; "A|B" has both findings."""
    patient, text = row["Patient ID"], row["Finding Labels"]
    if not patient or not text:
        raise row.error("has no patient or no labels; download the file again")
    named = set(text.split("|")) - {_NO_FINDING}
    unknown = named.difference(NIH_FINDINGS)
    if unknown:
        raise row.error(
            f"has the unknown finding {sorted(unknown)[0]!r}; expected {_NO_FINDING!r} or some of the 14 of "
            "ChestX-ray14 joined by '|'"
        )
    try:
        age = parse_age(row.get("Patient Age"))
    except ValueError as error:
        raise row.error(f"has the age {row.get('Patient Age')!r}; expected years such as 58 or 058Y") from error
    labels = tuple(float(finding in named) for finding in NIH_FINDINGS)
    return ImageRecord(
        Path(row["Image Index"]),
        patient,
        labels,
        age,
        parse_sex(row.get("Patient Gender")),
        parse_view(row.get("View Position")),
    )


def _read_list(path: Path) -> list[str]:
    """An official list: one image name a line."""
    if not path.is_file():
        raise DataError(
            f"nih: expected the official list {path.name} in {path.parent}, it is missing; download it there"
        )
    return read_text(path, who="nih").split()


def _read_excluded(file_name: str, entries: Mapping[str, ImageRecord]) -> frozenset[str]:
    """The images that an exclusion list names, in whatever column."""
    if not file_name:
        return frozenset()
    words = re.split(r"[\s,;]+", read_text(Path(file_name), who="nih: exclude_list"))
    named = frozenset(words) & entries.keys()
    if not named:
        raise DataError(f"nih: no image name of this set is in exclude_list {file_name}; expected names as in its CSV")
    return named


def _check_lists(lists: Mapping[str, list[str]], entries: Mapping[str, ImageRecord]) -> None:
    """Every image of the CSV is in one list, and the other way round."""
    train_val, test = (set(lists[name]) for name in ("train_val", "test"))
    twice, unlabeled, unlisted = (
        len(train_val & test),
        len((train_val | test) - entries.keys()),
        len(entries.keys() - train_val - test),
    )
    if twice or unlabeled or unlisted:
        raise DataError(
            f"nih: the official lists and the label file disagree: {twice} images in both lists, {unlabeled} listed "
            f"without labels, {unlisted} labeled but in no list; use files of one edition"
        )


def _find_images(root: Path, entries: Mapping[str, ImageRecord]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Image name -> file, from the one or the twelve folders; and a note on files that the label file does not name."""
    folders = [root / "images", *sorted(root.glob("images_*/images"))]
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    if not paths:
        raise DataError(f"nih: expected images in images/ or images_001/images/ ... in {root}, found none")
    extra = sum(path.name not in entries and not path.name.startswith(".") for path in paths)
    notes = (f"{extra} files beside the images are not read: the label file does not name them",) if extra else ()
    return {path.name: path for path in paths}, notes


@dataclass(frozen=True)
class Box:
    """A rectangle around one finding, in pixels of the original image of 1024 x 1024.

    Attributes:
        finding: one of `NIH_FINDINGS`.
        x: left edge.
        y: upper edge.
        width: extent along x.
        height: extent along y.
    """

    finding: str
    x: float
    y: float
    width: float
    height: float


def read_boxes(path: str | Path) -> dict[str, tuple[Box, ...]]:
    """The boxes of every image that has some, in the order of the file.

    Args:
        path: `BBox_List_2017.csv` or `.csv.gz`.

    Returns:
        Image name -> its boxes.

    Raises:
        DataError: the file cannot be read, or a row is no box of the 14 findings on the image.
    """
    boxes: dict[str, tuple[Box, ...]] = {}
    for row in read_table(Path(path), who="nih", needed=("Image Index", "Finding Label", *_BOX_SIDES)).rows:
        boxes[row["Image Index"]] = (*boxes.get(row["Image Index"], ()), _read_box(row))
    if not boxes:
        raise DataError(f"nih: expected boxes in {Path(path).name}, found none; download it again")
    return boxes


def _read_box(row: Row) -> Box:
    """One row, checked."""
    finding = _BOX_ALIASES.get(row["Finding Label"], row["Finding Label"])
    if finding not in NIH_FINDINGS:
        raise row.error(f"has the unknown finding {finding!r}; expected one of the 14 of ChestX-ray14")
    try:
        x, y, width, height = (float(row[side]) for side in _BOX_SIDES)
    except ValueError as error:
        raise row.error("has a box that is no four numbers; expected x, y, width and height in pixels") from error
    # One pixel of room: some published boxes end a fraction of a pixel beyond the image.
    if not (0 <= x < x + width <= BOX_IMAGE_SIZE + 1 and 0 <= y < y + height <= BOX_IMAGE_SIZE + 1):
        raise row.error(f"has a box outside the image of {BOX_IMAGE_SIZE} x {BOX_IMAGE_SIZE} pixels")
    return Box(finding, x, y, width, height)

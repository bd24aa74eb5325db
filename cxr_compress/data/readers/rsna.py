"""Reads the RSNA Pneumonia Detection Challenge (2018): 26,684 labeled images as DICOM, one finding."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr_compress.data.dataset import Dataset, Split
from cxr_compress.data.readers.base import Missing, Request, keep_existing
from cxr_compress.data.splits import divide
from cxr_compress.data.table_file import read_table
from cxr_compress.errors import DataError

ATTRIBUTION = (
    "RSNA Pneumonia Detection Challenge 2018; Shih et al., Augmenting the NIH Chest Radiograph Dataset with Expert "
    "Annotations of Possible Pneumonia, Radiology: AI 1(1), 2019; images: NIH Clinical Center, Wang et al., CVPR 2017"
)
_LABELS, _DETAILS, _IMAGES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images"
_SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")
_BY_IMAGE = "the column 'patientId', which numbers images"
_BY_PATIENT = "the NIH patient that the option mapping gives"
_NO_PATIENTS = (
    "patientId numbers images, not people: images of one NIH patient may lie in two splits; name the published "
    "pneumonia-challenge-dataset-mappings JSON with the option mapping to split by patient"
)
_SUBSET = "the images are a part of NIH ChestX-ray14: do not train on the one and test on the other"


@dataclass(frozen=True)
class _Image:
    """All rows of one patientId."""

    name: str
    label: float
    kind: str  # of the detailed class table, "" without one


def read_rsna(request: Request) -> Dataset:
    """The set with seeded, stratified dev and test splits, as it has no labeled test of its own.

    ``data_dir`` holds ``stage_2_train_labels.csv`` (a row per box), ``stage_2_train_images/*.dcm`` (or the same names
    as .png or .jpg) and, if wanted, ``stage_2_detailed_class_info.csv``, whose classes become ``Split.sources``.

    Args:
        request: With the options ``test_fraction`` (share of patients for test; default 0.2), ``mapping`` (the JSON
            that leads from images to NIH patients: without it a split by person is impossible) and ``allow_one_class``.

    Raises:
        DataError: Tables missing or damaged (with file and line), images missing, a fraction out of range.
    """
    root = request.data_dir
    if not root.is_dir():
        raise DataError(f"rsna: expected a folder, {root} does not exist or is not one")
    rows, notes = _read_images(root)
    patients = _read_mapping(request.text("mapping"), rows)
    images, unread = _find_images(root / _IMAGES, {row.name for row in rows})
    keep_existing(request, "rsna", {"labeled": (sum(row.name not in images for row in rows), len(rows))})
    if request.missing is not Missing.KEEP:
        rows = [row for row in rows if row.name in images]
    whole = Split(
        "all",
        tuple(images.get(row.name, root / _IMAGES / f"{row.name}.dcm") for row in rows),
        np.array([row.label for row in rows], np.float32).reshape(-1, 1),
        tuple(patients.get(row.name, row.name) for row in rows),
        sources=tuple(row.kind for row in rows) if any(row.kind for row in rows) else None,
    )
    parts = divide(
        whole,
        dev_fraction=request.dev_fraction,
        test_fraction=request.number("test_fraction", 0.2),
        seed=request.seed,
    )
    return Dataset(
        "rsna",
        ("Pneumonia",),
        *parts,
        ATTRIBUTION,
        notes=(*((_SUBSET,) if patients else (_SUBSET, _NO_PATIENTS)), *notes, *unread),
        patient_key=_BY_PATIENT if patients else _BY_IMAGE,
        allow_one_class=request.flag("allow_one_class"),
    )


def _find_images(folder: Path, labeled: Collection[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Name -> file, and a note on the files that are none of the labeled images."""
    found = [path for path in sorted(folder.glob("*")) if not path.name.startswith(".")]
    images: dict[str, Path] = {}
    for path in found:
        if path.suffix.lower() in _SUFFIXES and path.stem in labeled:
            images[path.stem] = path
    extra = len(found) - len(images)
    notes = (f"{extra} files of {_IMAGES} are not read: no label names them, or the image is there twice",)
    return images, notes if extra else ()


def _read_images(root: Path) -> tuple[list[_Image], tuple[str, ...]]:
    """One image per patientId, in the order of the table; its rows are its boxes. And how columns were taken."""
    labels: dict[str, float] = {}
    table = read_table(root / _LABELS, who="rsna", needed=("patientId", "Target"))
    notes = table.notes
    for row in table.rows:
        name, target = row["patientId"], row["Target"]
        if not name or target not in ("0", "1"):
            raise row.error(f"has patientId {name!r} and Target {target!r}; expected a name and 0 or 1")
        if labels.setdefault(name, float(target)) != float(target):
            raise row.error(f"says Target {target} of an image that an earlier row says the opposite of")
    kinds: dict[str, str] = {}
    if (root / _DETAILS).is_file():
        table = read_table(root / _DETAILS, who="rsna", needed=("patientId", "class"))
        notes += table.notes
        kinds = {row["patientId"]: row["class"] for row in table.rows}
    return [_Image(name, label, kinds.get(name, "")) for name, label in labels.items()], notes


def _read_mapping(file_name: str, rows: list[_Image]) -> dict[str, str]:
    """Image -> NIH patient; {} without a file."""
    if not file_name:
        return {}
    try:
        entries = json.loads(Path(file_name).read_text(encoding="utf-8"))
        # NIH's image names start with the patient: 00000003_000.png.
        patients = {entry["subset_img_id"]: entry["img_id"].partition("_")[0] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"rsna: mapping {file_name} cannot be read ({error!r}); expected a JSON list of objects with img_id and "
            "subset_img_id"
        ) from error
    unmapped = sum(row.name not in patients for row in rows)
    if unmapped:
        raise DataError(f"rsna: mapping {file_name} lacks {unmapped} of {len(rows)} images; use the one of this set")
    return patients

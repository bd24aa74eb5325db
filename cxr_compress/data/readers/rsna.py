"""Reads the RSNA Pneumonia Detection Challenge (2018): 26,684 labeled images as DICOM, one finding."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import ImageRecord, Request, keep_existing, make_split, register_reader
from cxr_compress.data.splits import divide
from cxr_compress.data.table_file import read_table
from cxr_compress.errors import DataError

ATTRIBUTION = (
    "RSNA Pneumonia Detection Challenge 2018; Shih et al., Augmenting the NIH Chest Radiograph Dataset with Expert "
    "Annotations of Possible Pneumonia, Radiology: AI 1(1), 2019; images: NIH Clinical Center, Wang et al., CVPR 2017"
)
_FINDINGS = ("Pneumonia",)
_LABELS, _DETAILS, _IMAGES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images"
_SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")
_BY_IMAGE = "the column 'patientId', which numbers images"
_BY_PATIENT = "the NIH patient that the option mapping gives"
_NO_PATIENTS = (
    "patientId numbers images, not people: images of one NIH patient may lie in two splits; name the published "
    "pneumonia-challenge-dataset-mappings JSON with the option mapping to split by patient"
)
_SUBSET = "the images are a part of NIH ChestX-ray14: do not train on the one and test on the other"


@register_reader(
    "rsna",
    help="RSNA Pneumonia Detection Challenge 2018: 26,684 DICOM images, pneumonia or not",
    options={
        "test_fraction": "share of the patients for test, 0.2 unless given",
        "mapping": "published JSON that leads from images to NIH patients; without it a split by person is impossible",
    },
    lists_images=True,
)
def read_rsna(request: Request) -> Dataset:
    """The set with seeded, stratified dev and test splits, as it has no labeled test of its own.

    `data_dir` holds `stage_2_train_labels.csv` (a row per box), `stage_2_train_images/*.dcm` (or the same names as
    .png or .jpg) and, if wanted, `stage_2_detailed_class_info.csv`, whose classes become `Split.sources`.

    Raises:
        DataError: tables missing or damaged (with file and line), images missing, a fraction out of range.
    """
    root = request.folder
    labels, kinds, notes = _read_tables(root)
    patients = _read_mapping(request.text("mapping"), labels)
    images, unread = _find_images(root / _IMAGES, labels)
    records = [
        ImageRecord(
            images.get(name, root / _IMAGES / f"{name}.dcm"),
            patients.get(name, name),
            (label,),
            source=kinds.get(name, "") if kinds else None,
        )
        for name, label in labels.items()
    ]
    kept, _ = keep_existing(request, {"labeled": records}, set(images.values()).__contains__)
    parts = divide(
        make_split("all", kept["labeled"], _FINDINGS),
        dev_fraction=request.dev_fraction,
        test_fraction=request.number("test_fraction", 0.2),
        seed=request.seed,
    )
    return Dataset(
        "rsna",
        _FINDINGS,
        *parts,
        ATTRIBUTION,
        notes=(*((_SUBSET,) if patients else (_SUBSET, _NO_PATIENTS)), *notes, *unread),
        patient_key=_BY_PATIENT if patients else _BY_IMAGE,
    )


def _find_images(folder: Path, labeled: Collection[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Name -> file, and a note on the files that are none of the labeled images."""
    files = [path for path in sorted(folder.glob("*")) if not path.name.startswith(".")]
    images = {path.stem: path for path in files if path.suffix.lower() in _SUFFIXES and path.stem in labeled}
    extra = len(files) - len(images)
    notes = (f"{extra} files of {_IMAGES} are not read: no label names them, or the image is there twice",)
    return images, notes if extra else ()


def _read_tables(root: Path) -> tuple[dict[str, float], dict[str, str], tuple[str, ...]]:
    """Image -> label, image -> detailed class where there is that table, and notes on how columns were taken."""
    labels: dict[str, float] = {}
    table = read_table(root / _LABELS, who="rsna", needed=("patientId", "Target"))
    notes = table.notes
    for row in table.rows:  # one for each box of an image
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
    return labels, kinds, notes


def _read_mapping(file_name: str, labels: Collection[str]) -> dict[str, str]:
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
    unmapped = sum(name not in patients for name in labels)
    if unmapped:
        raise DataError(f"rsna: mapping {file_name} lacks {unmapped} of {len(labels)} images; use the one of this set")
    return patients

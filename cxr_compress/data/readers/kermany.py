"""Reads "Chest X-Ray Images (Pneumonia)": 5,856 images of children, one finding or three classes."""

from __future__ import annotations

import re
from pathlib import Path

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import ImageRecord, Request, load_dataset, make_split, register_reader
from cxr_compress.data.splits import carve_dev
from cxr_compress.device.sources import look_into
from cxr_compress.errors import DataError

ATTRIBUTION = (
    'Kermany, Zhang, Goldbaum: "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for '
    'Classification", Mendeley Data v2, doi:10.17632/rscbjbr9sj.2 (Cell 172(5), 2018), CC BY 4.0'
)
SUBTYPES = ("normal", "bacteria", "virus")
PATIENT_KEY = "personN_bacteria, personN_virus, IM-NNNN or NORMAL2-IM-NNNN in the file name"

_CLASSES = {"NORMAL": 0.0, "PNEUMONIA": 1.0}
# The bacterial and the viral series number their patients separately: person1_bacteria is not person1_virus.
_PATIENT = re.compile(r"person\d+_(bacteria|virus)|(?:NORMAL2-)?IM-\d+")


def load_kermany(data_dir: str | Path, *, dev_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """The set as `load_dataset("kermany", ...)` gives it."""
    return load_dataset("kermany", data_dir, dev_fraction=dev_fraction, seed=seed)


@register_reader(
    "kermany",
    help="Chest X-Ray Images (Pneumonia): 5,856 images of children, pneumonia or not",
    options={"subtypes": "true gives the classes normal, bacteria and virus instead of the one finding"},
)
def read_kermany(request: Request) -> Dataset:
    """The set with its official test split and a dev split carved out of its train patients.

    `data_dir` holds `train/` and `test/`, each with `NORMAL/` and `PNEUMONIA/`, or is a folder with such a one as
    `images/` or `chest_xray/`. The official val (16 images) is too small to choose anything on. It is left out of
    train, dev and test, so that predictions can be shown on images that no model has seen. `Split.sources` is the
    subtype that the file name carries: "normal", "bacteria" or "virus".

    Raises:
        DataError: a folder is missing or empty, or a file name carries no patient.
    """
    root, subtypes = _find_root(request.folder), request.flag("subtypes")
    findings = SUBTYPES if subtypes else ("Pneumonia",)
    (whole, not_read), (test, not_read_of_test) = (_read_part(root / name, subtypes) for name in ("train", "test"))
    train, dev = carve_dev(make_split("train", whole, findings), fraction=request.dev_fraction, seed=request.seed)
    return Dataset(
        "kermany",
        findings,
        train,
        dev,
        make_split("test", test, findings),
        ATTRIBUTION,
        notes=("children of 1 to 5 years; the official val of 16 images is in no split", *not_read, *not_read_of_test),
        patient_key=PATIENT_KEY,
        exclusive=subtypes,
    )


def patient_of(file_name: str) -> str:
    """The patient that an image's file name carries, e.g. "person1000_bacteria" of "person1000_bacteria_2931.jpeg".

    Raises:
        DataError: the name follows none of the set's patterns.
    """
    return _match(file_name).group()


def _match(file_name: str) -> re.Match[str]:
    """The patient, and the subtype as group 1 if the name has one."""
    match = _PATIENT.match(file_name)
    if match is None:
        raise DataError(
            f"kermany: expected a patient in the file name ({PATIENT_KEY}), got {file_name!r}; splits by patient need "
            "the publisher's file names"
        )
    return match


def _find_root(data_dir: Path) -> Path:
    """The folder that holds train/ and test/."""
    for root in (data_dir, data_dir / "images", data_dir / "chest_xray"):
        if all((root / split).is_dir() for split in ("train", "test")):
            return root
    raise DataError(
        f"kermany: expected train/ and test/ in {data_dir} (or in images/ or chest_xray/ there), found neither; "
        "unpack the set there or point data_dir to it"
    )


def _read_part(folder: Path, subtypes: bool) -> tuple[list[ImageRecord], list[str]]:
    """All images of one official split, NORMAL first, by name; and notes on what lies there and is not read."""
    records: list[ImageRecord] = []
    notes: list[str] = []
    folders = _class_folders(folder)
    others = sum(not path.name.startswith((".", "__MACOSX")) for path in folder.iterdir()) - len(folders)
    if others:
        notes.append(f"{folder.name}/: {others} not read beside {' and '.join(_CLASSES)}")
    for class_name, label in _CLASSES.items():
        paths, note = _images(folders[class_name])
        notes += [f"{folder.name}/{class_name}: {note}"] if note else []
        for path in paths:
            match = _match(path.name)
            source = match.group(1) or SUBTYPES[0]
            labels = tuple(float(source == kind) for kind in SUBTYPES) if subtypes else (label,)
            records.append(ImageRecord(path, match.group(), labels, source=source))
    return records, notes


def _class_folders(folder: Path) -> dict[str, Path]:
    """The folder of each class, whatever the case of its name."""
    candidates: dict[str, list[Path]] = {name: [] for name in _CLASSES}
    for path in sorted(folder.iterdir()):
        if path.name.upper() in candidates and path.is_dir():
            candidates[path.name.upper()].append(path)
    for name, paths in candidates.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise DataError(f"kermany: expected one folder {name} in {folder}, found {names}; join them into one")
    return {name: paths[0] if paths else folder / name for name, paths in candidates.items()}


def _images(folder: Path) -> tuple[tuple[Path, ...], str]:
    """The image files of a class, and a note on other files; what macOS leaves in ZIPs (.DS_Store) is no image."""
    content = look_into(folder, deep=False) if folder.is_dir() else None
    if content is None or not content.images:
        raise DataError(
            f"kermany: expected JPEG or PNG images in {folder}, found none; is the set unpacked completely?"
        )
    return content.images, content.note()

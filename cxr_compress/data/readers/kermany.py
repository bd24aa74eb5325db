"""Reads "Chest X-Ray Images (Pneumonia)": 5,856 images of children, one finding or three classes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cxr_compress.data.dataset import Dataset, Split, check_dataset
from cxr_compress.data.readers.base import Request
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
    """The set with its official test split and a dev split carved out of its train patients.

    The official val (16 images) is too small to choose anything on. It is left out of train, dev and test, so that
    predictions can be shown on images that no model has seen.

    Args:
        data_dir: The folder with ``train/`` and ``test/``, each with ``NORMAL/`` and ``PNEUMONIA/``, or one that holds
            it as ``images/`` or ``chest_xray/``.
        dev_fraction: Share of train's patients for dev.
        seed: Of the choice of those patients.

    Raises:
        DataError: A folder is missing or empty, a file name carries no patient, or the checks of every set fail.
    """
    return check_dataset(read_kermany(Request(Path(data_dir), dev_fraction, seed)))


def read_kermany(request: Request) -> Dataset:
    """As ``load_kermany``, without the checks of every set.

    ``Split.sources`` is the subtype that the file name carries: "normal", "bacteria" or "virus".

    Args:
        request: With the options ``allow_one_class`` and ``subtypes``: instead of the one finding the three classes
            "normal", "bacteria" and "virus", which exclude one another.
    """
    root, subtypes = _find_root(request.data_dir), request.flag("subtypes")
    whole, not_read = _read_split(root, "train", subtypes)
    test, not_read_of_test = _read_split(root, "test", subtypes)
    train, dev = carve_dev(whole, fraction=request.dev_fraction, seed=request.seed)
    return Dataset(
        "kermany",
        SUBTYPES if subtypes else ("Pneumonia",),
        train,
        dev,
        test,
        ATTRIBUTION,
        notes=(
            "children of 1 to 5 years; the official val of 16 images is in no split",
            *not_read,
            *not_read_of_test,
        ),
        patient_key=PATIENT_KEY,
        allow_one_class=request.flag("allow_one_class"),
        exclusive=subtypes,
    )


def patient_of(file_name: str) -> str:
    """The patient that an image's file name carries, e.g. "person1000_bacteria" of "person1000_bacteria_2931.jpeg".

    Raises:
        DataError: The name follows none of the set's patterns.
    """
    return _match(file_name).group()


def _match(file_name: str) -> re.Match[str]:
    """Patient, and the subtype as group 1 if there is one."""
    match = _PATIENT.match(file_name)
    if match is None:
        raise DataError(
            f"kermany: expected a patient in the file name ({PATIENT_KEY}), got {file_name!r}; splits by patient need "
            "the publisher's file names"
        )
    return match


def _find_root(data_dir: Path) -> Path:
    """The folder that holds train/ and test/."""
    if not data_dir.is_dir():
        raise DataError(f"kermany: expected a folder, {data_dir} does not exist or is not one")
    for root in (data_dir, data_dir / "images", data_dir / "chest_xray"):
        if all((root / split).is_dir() for split in ("train", "test")):
            return root
    raise DataError(
        f"kermany: expected train/ and test/ in {data_dir} (or in images/ or chest_xray/ there), found neither; "
        "unpack the set there or point data_dir to it"
    )


def _read_split(root: Path, name: str, subtypes: bool = False) -> tuple[Split, list[str]]:
    """All images of one official split, NORMAL first, by name; and what lies there and is not read."""
    paths: list[Path] = []
    labels: list[float] = []
    notes: list[str] = []
    folders = _class_folders(root / name)
    others = sum(not path.name.startswith((".", "__MACOSX")) for path in (root / name).iterdir()) - len(folders)
    if others:
        notes.append(f"{name}/: {others} not read beside {' and '.join(_CLASSES)}")
    for folder, label in _CLASSES.items():
        found, note = _images(folders[folder])
        paths += found
        labels += [label] * len(found)
        notes += [f"{name}/{folder}: {note}"] if note else []
    matches = [_match(path.name) for path in paths]
    sources = tuple(match.group(1) or SUBTYPES[0] for match in matches)
    columns = [[float(source == kind) for kind in SUBTYPES] for source in sources]
    split = Split(
        name,
        tuple(paths),
        np.array(columns, np.float32) if subtypes else np.array(labels, np.float32)[:, None],
        tuple(match.group() for match in matches),
        sources=sources,
    )
    return split, notes


def _class_folders(folder: Path) -> dict[str, Path]:
    """The folder of each class, whatever the case of its name."""
    found: dict[str, list[Path]] = {name: [] for name in _CLASSES}
    for path in sorted(folder.iterdir()):
        if path.name.upper() in found and path.is_dir():
            found[path.name.upper()].append(path)
    for name, paths in found.items():
        if len(paths) > 1:
            told = " and ".join(path.name for path in paths)
            raise DataError(f"kermany: expected one folder {name} in {folder}, found {told}; join them into one")
    return {name: paths[0] if paths else folder / name for name, paths in found.items()}


def _images(folder: Path) -> tuple[tuple[Path, ...], str]:
    """The image files of a class and what else is there; what macOS leaves in ZIPs (.DS_Store, ._name.jpeg) is not."""
    content = look_into(folder, deep=False) if folder.is_dir() else None
    if content is None or not content.images:
        raise DataError(
            f"kermany: expected JPEG or PNG images in {folder}, found none; is the set unpacked completely?"
        )
    return content.images, content.note()

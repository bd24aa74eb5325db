"""Reads MedMNIST and MedMNIST+ archives: small images in one .npz, with official splits."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import NIH_FINDINGS, Request, register_reader
from cxr_compress.data.splits import Split
from cxr_compress.errors import DataError

ATTRIBUTION = (
    "MedMNIST v2, Yang et al., Scientific Data 10, 41 (2023), doi:10.1038/s41597-022-01721-8, and the set it was made "
    "from; CC BY 4.0 (DermaMNIST: CC BY-NC 4.0)"
)
PATIENT_KEY = "the image itself, as MedMNIST publishes no patients"
NOTE = (
    "MedMNIST publishes no patient ids: every image counts as a patient, so intervals are narrower than they should be"
)

# What label 0, 1, ... mean; binary sets have one finding, the one that 1 stands for.
FINDINGS: dict[str, tuple[str, ...]] = {
    "pneumoniamnist": ("Pneumonia",),
    "chestmnist": NIH_FINDINGS,
    "dermamnist": (
        "Actinic keratoses",
        "Basal cell carcinoma",
        "Benign keratosis-like lesions",
        "Dermatofibroma",
        "Melanoma",
        "Melanocytic nevi",
        "Vascular lesions",
    ),
}
_PARTS = {"train": "train", "val": "dev", "test": "test"}
_TWO_CLASSES = 2
_STANDARD_SIZE = 28  # the files of this size carry no size in their names


@register_reader(
    "medmnist",
    help="MedMNIST and MedMNIST+ archives (.npz) such as PneumoniaMNIST, ChestMNIST, DermaMNIST",
    options={
        "flag": "which set of the folder, such as pneumoniamnist",
        "size": "pixels of its images: 28 unless given, 64, 128 or 224",
    },
)
def read_medmnist(request: Request) -> Dataset:
    """One set with its official splits: val is dev, and dev_fraction and seed change nothing.

    A set with one label column of several classes becomes a column per class, and they exclude one another; the whole
    archive is held in memory (chestmnist at 224 px: 5.6 GB, at 64 px: 0.5 GB). `data_dir` is the .npz or a folder with
    it; the options `flag` and `size` choose among several files.

    Raises:
        DataError: no such file, or it is damaged, pickled or of another layout.
    """
    path = _find(request)
    arrays = _load(path)
    flag = path.stem.partition("_")[0]
    columns = {part: _columns(arrays[f"{part}_labels"], arrays, path) for part in _PARTS}
    findings = _findings(flag, columns["train"].shape[1])
    train, dev, test = (_make_split(flag, part, arrays[f"{part}_images"], columns[part], path) for part in _PARTS)
    return Dataset(
        "medmnist",
        findings,
        train,
        dev,
        test,
        ATTRIBUTION,
        notes=(f"{path.name}: {NOTE}",),
        patient_key=PATIENT_KEY,
        color="gray" if arrays["train_images"].ndim == 3 else "rgb",  # noqa: PLR2004 - (n, h, w)
        exclusive=arrays["train_labels"].shape[1] == 1 and len(findings) > 1,
    )


def _find(request: Request) -> Path:
    """The archive that data_dir and the options mean."""
    path = request.data_dir
    if path.is_file():
        return path
    flag, size = request.text("flag"), int(request.number("size", _STANDARD_SIZE))
    if flag:
        named = path / (f"{flag}.npz" if size == _STANDARD_SIZE else f"{flag}_{size}.npz")
        if not named.is_file():
            raise DataError(f"medmnist: expected {named.name} in {path}, it is missing; cxr_data fetch downloads it")
        return named
    archives = sorted(path.glob("*.npz"))
    if len(archives) != 1:
        raise DataError(
            f"medmnist: expected one .npz in {path}, found {len(archives)}; name the file, or choose with the options "
            "flag and size"
        )
    return archives[0]


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The six arrays."""
    names = [f"{part}_{what}" for part in _PARTS for what in ("images", "labels")]
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"medmnist: {path.name} is no .npz or cut off; download it again")
        with np.load(path, allow_pickle=False) as archive:
            lacking = [name for name in names if name not in archive.files]
            if lacking:
                raise DataError(f"medmnist: {path.name} lacks {', '.join(lacking)}; expected {', '.join(names)}")
            return {name: archive[name] for name in names}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"medmnist: {path.name} cannot be read ({error}); download it again") from error


def _columns(labels: NDArray[Any], arrays: dict[str, NDArray[Any]], path: Path) -> NDArray[np.float32]:
    """(n, k) zeros and ones: as they are for multi-label and binary sets, one column per class otherwise."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:  # noqa: PLR2004
        raise DataError(
            f"medmnist: expected labels as whole numbers (n, k) from 0 in {path.name}, got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    top = max(int(arrays[f"{part}_labels"].max(initial=0)) for part in _PARTS)
    if labels.shape[1] > 1 or top < _TWO_CLASSES:
        return labels.astype(np.float32)
    return np.asarray(labels == np.arange(top + 1), np.float32)


def _findings(flag: str, count: int) -> tuple[str, ...]:
    """Their names, or numbers where they are not known."""
    known = FINDINGS.get(flag, ())
    if len(known) == count:
        return known
    return ("Positive",) if count == 1 else tuple(f"Class {number}" for number in range(count))


def _make_split(flag: str, part: str, images: NDArray[Any], labels: NDArray[np.float32], path: Path) -> Split:
    """One official part."""
    if len(images) != len(labels):
        raise DataError(
            f"medmnist: expected one row of labels per image in {path.name}, got {len(images)} {part}_images and "
            f"{len(labels)} {part}_labels; download it again"
        )
    patients = tuple(f"{flag}-{part}-{number}" for number in range(len(images)))
    return Split(_PARTS[part], (), labels, patients, pixels=images)

"""One door to every set that a command can name."""

from __future__ import annotations

from pathlib import Path

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.kermany import load_kermany
from cxr_compress.data.nih import load_nih
from cxr_compress.data.phantom import load_phantom
from cxr_compress.errors import DataError

DATASETS = ("kermany", "nih", "phantom")


def load_dataset(
    name: str, data_dir: str | Path, *, dev_fraction: float = 0.1, seed: int = 0, allow_missing: bool = False
) -> Dataset:
    """A named set as checked, patient-wise splits; images are found but not decoded.

    Args:
        name: One of ``DATASETS``.
        data_dir: Where the set lies; nothing is ever written there.
        dev_fraction: Share of train's patients that becomes dev, in (0, 1).
        seed: Of the choice of those patients: the same seed gives the same dev on every machine.
        allow_missing: Use what is there of a set whose list names more images (NIH only: its 112,120 images are 45 GB
            and few people hold all). Leave it False for results that are to be compared: a broken download would
            pass for a small set.

    Raises:
        DataError: Unknown name, missing or empty folder, broken label file, missing images, a patient in two splits,
            a finding with one class only.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set of {', '.join(DATASETS)}; got {name!r}")
    if allow_missing and name != "nih":
        raise DataError(f"allow_missing is for sets with an official list of images (nih); {name} has none")
    if name == "nih":
        return load_nih(data_dir, dev_fraction=dev_fraction, seed=seed, allow_missing=allow_missing)
    reader = load_kermany if name == "kermany" else load_phantom
    return reader(data_dir, dev_fraction=dev_fraction, seed=seed)

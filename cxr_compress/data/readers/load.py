"""One door to every set that a command can name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_compress.data.dataset import Dataset, check_dataset
from cxr_compress.data.readers import csv_table
from cxr_compress.data.readers.base import Missing, Reader, Request, check_options
from cxr_compress.data.readers.chexpert import read_chexpert
from cxr_compress.data.readers.kermany import read_kermany
from cxr_compress.data.readers.medmnist import read_medmnist
from cxr_compress.data.readers.nih import read_nih
from cxr_compress.data.readers.phantom import load_phantom
from cxr_compress.data.readers.rsna import read_rsna
from cxr_compress.errors import DataError

DATASETS = ("kermany", "nih", "chexpert", "rsna", "medmnist", "csv", "phantom")


def load_dataset(
    name: str,
    data_dir: str | Path,
    *,
    dev_fraction: float = 0.1,
    seed: int = 0,
    allow_missing: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """A named set as checked, patient-wise splits; images are found but not decoded.

    Args:
        name: One of ``DATASETS``.
        data_dir: Where the set lies; nothing is ever written there.
        dev_fraction: Share of train's patients that becomes dev, in (0, 1); sets with an official dev keep theirs.
        seed: Of the choice of those patients: the same seed gives the same dev on every machine.
        allow_missing: Use what is there of a set whose list names more images (NIH's 112,120 are 45 GB and few people
            hold all). Leave it False for results that are to be compared: a broken download would pass for a small
            set.
        options: Of the reader, as its docstring lists them; values may be text, as commands pass them.

    Raises:
        DataError: Unknown name or option, missing or empty folder, broken label file, missing images, a patient in two
            splits, a finding with one class only.
    """
    missing = Missing.DROP if allow_missing else Missing.REFUSE
    return check_dataset(
        read_dataset(name, data_dir, dev_fraction=dev_fraction, seed=seed, missing=missing, options=options)
    )


def read_dataset(
    name: str,
    data_dir: str | Path,
    *,
    dev_fraction: float = 0.1,
    seed: int = 0,
    missing: Missing = Missing.REFUSE,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """As ``load_dataset``, without the checks: for those who want to hear of all problems at once.

    Args:
        name: One of ``DATASETS``.
        data_dir: Where the set lies.
        dev_fraction: Share of train's patients for dev.
        seed: Of the choice of those patients.
        missing: What to do about listed images that are not there.
        options: Of the reader.

    Raises:
        DataError: Unknown name or option, or what is there cannot be read as this set at all.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set of {', '.join(DATASETS)}; got {name!r}")
    reader = _READERS[name]
    check_options(name, options or {}, reader.options)
    if missing is Missing.DROP and not reader.has_list:
        listed = ", ".join(known for known in DATASETS if _READERS[known].has_list)
        raise DataError(f"allow_missing is for sets with an official list of images ({listed}); {name} has none")
    return reader.read(Request(Path(data_dir), dev_fraction, seed, missing, dict(options or {})))


def _read_phantom(request: Request) -> Dataset:
    return load_phantom(request.data_dir, dev_fraction=request.dev_fraction, seed=request.seed)


_READERS: dict[str, Reader] = {
    "kermany": Reader(read_kermany, ("allow_one_class", "subtypes")),
    "nih": Reader(read_nih, ("allow_one_class", "exclude_list"), has_list=True),
    "chexpert": Reader(
        read_chexpert, ("allow_one_class", "blank", "findings", "frontal_only", "uncertain"), has_list=True
    ),
    "rsna": Reader(read_rsna, ("allow_one_class", "mapping", "test_fraction"), has_list=True),
    "medmnist": Reader(read_medmnist, ("allow_one_class", "flag", "size")),
    "csv": Reader(csv_table.read_csv, csv_table.OPTIONS, has_list=True),
    "phantom": Reader(_read_phantom),
}

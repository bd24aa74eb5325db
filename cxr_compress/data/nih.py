"""Reads NIH ChestX-ray14: 112,120 films, 14 findings, official lists of train and test films."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cxr_compress.data.dataset import Dataset, Split, check_dataset
from cxr_compress.data.splits import carve_dev
from cxr_compress.errors import DataError

ATTRIBUTION = "NIH Clinical Center; Wang et al., ChestX-ray8, CVPR 2017, pp. 3462-3471; https://nihcc.app.box.com/v/ChestXray-NIHCC"
PATIENT_KEY = "the column 'Patient ID'"

# The order of CheXNet's 14 outputs.
NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)

_NO_FINDING = "No Finding"
# Only these are read. The header's last columns contain commas themselves (OriginalImage[Width,Height]) and ages come
# as 58 or 058Y, depending on the edition.
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")


def load_nih(data_dir: str | Path, *, dev_fraction: float = 0.1, seed: int = 0, allow_missing: bool = False) -> Dataset:
    """The set with its official test list and a dev split carved out of the patients of the train_val list.

    Args:
        data_dir: Holds ``Data_Entry_2017*.csv`` (or ``.csv.gz``), ``train_val_list.txt``, ``test_list.txt``, and the
            images in ``images/`` or in ``images_001/images/`` to ``images_012/images/``.
        dev_fraction: Share of train_val's patients for dev.
        seed: Of the choice of those patients.
        allow_missing: Use the listed images that are there instead of refusing an incomplete folder. Such a subset is
            not a random sample, and its AUROCs do not compare with published ones.

    Raises:
        DataError: A file is missing, the lists and the CSV disagree, a label is unknown, images are missing, or the
            checks of every set fail.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"nih: expected a folder, {root} does not exist or is not one")
    entries = _read_entries(_find_entries(root))
    lists = {name: _read_list(root / f"{name}_list.txt") for name in ("train_val", "test")}
    _check_lists(lists, entries)
    images = _find_images(root)
    if not allow_missing:
        _check_images(lists, images, root)
    splits = {name: _make_split(name, listed, entries, images) for name, listed in lists.items()}
    train, dev = carve_dev(splits["train_val"], fraction=dev_fraction, seed=seed)
    dataset = Dataset("nih", NIH_FINDINGS, train, dev, splits["test"], ATTRIBUTION)
    return check_dataset(dataset, patient_key=PATIENT_KEY)


def _find_entries(root: Path) -> Path:
    """The label file, whatever its edition."""
    found = [path for path in sorted(root.glob("Data_Entry_2017*")) if path.name.endswith((".csv", ".csv.gz"))]
    if len(found) != 1:
        raise DataError(
            f"nih: expected one Data_Entry_2017*.csv (or .csv.gz) in {root}, found {len(found)}; keep one edition"
        )
    return found[0]


def _read_entries(path: Path) -> dict[str, tuple[str, list[float]]]:
    """Image name -> (patient, 14 labels)."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""))
        missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f"nih: expected the column(s) {', '.join(missing)} in {path.name}, the header lacks them")
        return {row["Image Index"]: _read_row(row, path, rows.line_num) for row in rows}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"nih: {path.name} cannot be read ({error}); download it again") from error


def _read_row(row: dict[str, str | None], path: Path, line: int) -> tuple[str, list[float]]:
    """The patient and the labels of one film; "A|B" has both findings."""
    patient, text = row["Patient ID"], row["Finding Labels"]
    if not patient or not text:
        raise DataError(f"nih: line {line} of {path.name} has no patient or no labels; download the file again")
    named = set(text.split("|")) - {_NO_FINDING}
    unknown = named.difference(NIH_FINDINGS)
    if unknown:
        raise DataError(
            f"nih: line {line} of {path.name} has the unknown finding {sorted(unknown)[0]!r}; expected "
            f"{_NO_FINDING!r} or some of the 14 of ChestX-ray14 joined by '|'"
        )
    return patient.strip(), [float(finding in named) for finding in NIH_FINDINGS]


def _read_list(path: Path) -> list[str]:
    """An official list: one image name a line."""
    if not path.is_file():
        raise DataError(
            f"nih: expected the official list {path.name} in {path.parent}, it is missing; download it there"
        )
    return path.read_text(encoding="utf-8").split()


def _check_lists(lists: dict[str, list[str]], entries: dict[str, tuple[str, list[float]]]) -> None:
    """Every film of the CSV is in one list, and the other way round."""
    train_val, test = (set(lists[name]) for name in ("train_val", "test"))
    twice, unlabelled, unlisted = (
        len(train_val & test),
        len((train_val | test) - entries.keys()),
        len(entries.keys() - train_val - test),
    )
    if twice or unlabelled or unlisted:
        raise DataError(
            f"nih: the official lists and the label file disagree: {twice} films in both lists, {unlabelled} listed "
            f"without labels, {unlisted} labelled but in no list; use files of one edition"
        )


def _find_images(root: Path) -> dict[str, Path]:
    """Image name -> file, from the one or the twelve folders."""
    folders = [root / "images", *sorted(root.glob("images_*/images"))]
    found = {path.name: path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    if not found:
        raise DataError(f"nih: expected films in images/ or images_001/images/ ... in {root}, found none")
    return found


def _check_images(lists: dict[str, list[str]], images: Iterable[str], root: Path) -> None:
    """All listed films must be there."""
    there = set(images)
    counts = {name: len(set(listed) - there) for name, listed in lists.items()}
    if any(counts.values()):
        raise DataError(
            f"nih: {counts['train_val']} of {len(lists['train_val'])} train_val films and {counts['test']} of "
            f"{len(lists['test'])} test films are missing in {root}; complete the download, or use allow_missing "
            "to work on the part that is there"
        )


def _make_split(
    name: str, listed: list[str], entries: dict[str, tuple[str, list[float]]], images: dict[str, Path]
) -> Split:
    """The listed films that are there, in the order of the list."""
    names = [film for film in listed if film in images]
    labels = np.array([entries[film][1] for film in names], np.float32).reshape(-1, len(NIH_FINDINGS))
    patients = tuple(entries[film][0] for film in names)
    return Split(name, tuple(images[film] for film in names), labels, patients)

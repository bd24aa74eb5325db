"""Readers of data sets: how one is registered and called, and what all of them share.

A reader is one function in a file of its own, in this folder or in a package of yours:

    @register_reader("montgomery", help="Montgomery County, tuberculosis", options={"views": "Views to read."})
    def read_montgomery(request: Request) -> Dataset:
        ...

From then on `load_dataset("montgomery", folder)` reads the set, and every command takes `--dataset=montgomery` and
`--options=views=...`. A reader finds images and labels and decodes nothing; `load_dataset` checks what it returns.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cxr_compress.data.dataset import Dataset, check_dataset
from cxr_compress.data.splits import Split
from cxr_compress.errors import CompressionError, DataError

# CheXNet's 14 outputs, in their order; ChestX-ray14 and ChestMNIST are both labeled with them.
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

_UNKNOWN_AGE = math.nan
_MAX_AGE = 110  # ChestX-ray14 has images of people of 148, 155, 411 and 414 years: typing errors, so unknown
_AGE_UNITS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}  # units of a year, as DICOM writes ages: 058Y, 006M
_SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}
_VIEWS = {"PA": "PA", "AP": "AP", **dict.fromkeys(("L", "LL", "RL", "LAT", "LATERAL"), "L")}
_TRUE, _FALSE = frozenset({"true", "t", "yes", "1"}), frozenset({"false", "f", "no", "0"})
_ONE_CLASS = "allow_one_class"
COMMON_OPTIONS = {_ONE_CLASS: "true allows dev and test in which all images, or none, have a finding"}


class Missing(enum.Enum):
    """Ways to treat images that the set's list names and the folder lacks."""

    REFUSE = enum.auto()
    DROP = enum.auto()
    KEEP = enum.auto()  # for those who look for such images


@dataclass(frozen=True)
class Request:
    """The arguments of `load_dataset`, as a reader gets them.

    Attributes:
        name: name of the data set, with which messages start.
        data_dir: where the set lies.
        dev_fraction: share of train's patients for dev.
        seed: seed of the choice of those patients.
        missing: what to do about listed images that are not there.
        options: options of this reader; values of the right type, or as text.
    """

    name: str
    data_dir: Path
    dev_fraction: float = 0.1
    seed: int = 0
    missing: Missing = Missing.REFUSE
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """`data_dir`, which has to be a folder.

        Raises:
            DataError: it is no folder.
        """
        if not self.data_dir.is_dir():
            raise DataError(f"{self.name}: expected a folder, {self.data_dir} does not exist or is not one")
        return self.data_dir

    def flag(self, name: str, default: bool = False) -> bool:
        """A yes-or-no option."""
        text = str(self.options.get(name, default)).lower()
        if text not in _TRUE | _FALSE:
            raise DataError(f"expected the option {name} to be true or false, got {self.options[name]!r}")
        return text in _TRUE

    def text(self, name: str, default: str = "", choices: Sequence[str] = ()) -> str:
        """An option that is text, one of the choices if there are any."""
        value = str(self.options.get(name, default))
        if choices and value not in choices:
            raise DataError(f"expected the option {name} to be one of {', '.join(choices)}; got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """An option that is a number."""
        try:
            return float(self.options.get(name, default))
        except (TypeError, ValueError) as error:
            raise DataError(f"expected the option {name} to be a number, got {self.options[name]!r}") from error

    def names(self, name: str) -> tuple[str, ...]:
        """An option that is a list: a sequence, or text with `|` between the names (a comma may be part of one)."""
        value = self.options.get(name, ())
        return tuple(value.split("|")) if isinstance(value, str) else tuple(map(str, value))


@dataclass(frozen=True)
class Reader:
    """A registered reader.

    Attributes:
        read: gives the set as it is; problems that `find_problems` finds are not raised here.
        help: what the set is, in a few words.
        options: options that it takes -> their help.
        lists_images: whether the set comes with a list of its images, so that some may be missing.
        labeled: whether its images have labels; without them a model from a file can be compressed, none trained.
    """

    read: Callable[[Request], Dataset]
    help: str
    options: Mapping[str, str]
    lists_images: bool = False
    labeled: bool = True


DATASETS: dict[str, Reader] = {}
"""The registered readers by the name of their data set; the names are the choices of `--dataset`."""

_Read = TypeVar("_Read", bound=Callable[[Request], Dataset])
_Record = TypeVar("_Record", bound="ImageRecord")


def register_reader(
    name: str,
    *,
    help: str,
    options: Mapping[str, str] | None = None,
    lists_images: bool = False,
    labeled: bool = True,
) -> Callable[[_Read], _Read]:
    """Make a function the reader of a data set; every set takes the option `allow_one_class` besides its own.

    Args:
        name: name of the data set, for `load_dataset` and `--dataset`.
        help: what the set is, in a few words.
        options: options that the reader takes -> one sentence of help each.
        lists_images: whether the set comes with a list of its images, so that some may be missing.
        labeled: whether its images have labels.

    Raises:
        CompressionError: there is a reader of that name already.
    """

    def register(read: _Read) -> _Read:
        if name in DATASETS:
            first = DATASETS[name].read
            raise CompressionError(
                f"the data set {name!r} has a reader already ({first.__module__}.{first.__qualname__}): register "
                f"{read.__module__}.{read.__qualname__} under another name"
            )
        DATASETS[name] = Reader(read, help, {**(options or {}), **COMMON_OPTIONS}, lists_images, labeled)
        return read

    return register


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
        name: one of `DATASETS`.
        data_dir: where the set lies; nothing is ever written there.
        dev_fraction: share of train's patients that becomes dev, in (0, 1); sets with an official dev keep theirs.
        seed: seed of the choice of those patients: the same seed gives the same dev on every machine.
        allow_missing: use what is there of a set whose list names more images (NIH's 112,120 are 45 GB and few people
            hold all). Leave it False for results that are to be compared: a broken download would pass for a small
            set.
        options: options of the reader, `DATASETS[name].options`; values may be text, as commands pass them.

    Raises:
        DataError: unknown name or option, missing or empty folder, broken label file, missing images, a patient in two
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
    """A named set as `load_dataset` gives it, but unchecked: for those who want to hear of all problems at once.

    Args:
        name: one of `DATASETS`.
        data_dir: where the set lies.
        dev_fraction: share of train's patients for dev.
        seed: seed of the choice of those patients.
        missing: what to do about listed images that are not there.
        options: options of the reader.

    Raises:
        DataError: unknown name or option, or what is there cannot be read as this set at all.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set of {', '.join(DATASETS)}; got {name!r}")
    reader = DATASETS[name]
    for option in options or {}:
        if option not in reader.options:  # a typing error would change nothing, silently
            raise DataError(f"{name}: unknown option {option!r}; it knows {', '.join(sorted(reader.options))}")
    if missing is Missing.DROP and not reader.lists_images:
        listed = ", ".join(known for known in DATASETS if DATASETS[known].lists_images)
        raise DataError(f"allow_missing is for sets with an official list of images ({listed}); {name} has none")
    request = Request(name, Path(data_dir), dev_fraction, seed, missing, dict(options or {}))
    dataset = reader.read(request)
    return replace(dataset, allow_one_class=request.flag(_ONE_CLASS, dataset.allow_one_class))


@dataclass(frozen=True)
class ImageRecord:
    """All that a set says of one image; a field that no image of a set has is None everywhere.

    Attributes:
        path: its file.
        patient: name of the patient.
        labels: 0 to 1 for each finding, NaN for unknown.
        age: years, NaN for unknown.
        sex: "F", "M" or "".
        view: "PA", "AP", "L" or "".
        source: place that it comes from, for results by source.
    """

    path: Path
    patient: str
    labels: tuple[float, ...]
    age: float | None = None
    sex: str | None = None
    view: str | None = None
    source: str | None = None


def make_split(name: str, records: Sequence[ImageRecord], findings: Sequence[str]) -> Split:
    """Images as a split, with the optional fields that they have."""

    def values(column: str) -> tuple[Any, ...] | None:
        column_values = tuple(getattr(record, column) for record in records)
        return None if None in column_values else column_values

    ages = values("age")
    return Split(
        name,
        tuple(record.path for record in records),
        np.array([record.labels for record in records], np.float32).reshape(len(records), len(findings)),
        tuple(record.patient for record in records),
        ages=None if ages is None else np.array(ages, np.float32),
        sexes=values("sex"),
        views=values("view"),
        sources=values("source"),
    )


def keep_existing(
    request: Request,
    listed: Mapping[str, Sequence[_Record]],
    exists: Callable[[Path], bool] = Path.is_file,
) -> tuple[dict[str, list[_Record]], int]:
    """The listed images that the request wants, and how many of those in the list are missing.

    Args:
        request: what to do about missing images.
        listed: name of a list -> its images.
        exists: whether a path of an image leads to a file.

    Raises:
        DataError: images are missing, and the request is to refuse.
    """
    there = {name: [record for record in records if exists(record.path)] for name, records in listed.items()}
    missing = {name: len(records) - len(there[name]) for name, records in listed.items()}
    if any(missing.values()) and request.missing is Missing.REFUSE:
        counts = " and ".join(f"{missing[name]} of {len(records)} {name} images" for name, records in listed.items())
        raise DataError(
            f"{request.name}: {counts} are missing in {request.data_dir}; complete the download, or use allow_missing "
            "to work on the part that is there"
        )
    kept = {name: list(records) for name, records in listed.items()} if request.missing is Missing.KEEP else there
    return kept, sum(missing.values())


def parse_age(text: str) -> float:
    """Years from "58", "058Y", "006M" or "58.0"; NaN where empty or beyond what people reach.

    Raises:
        ValueError: the text is not an age at all.
    """
    text = text.strip().upper()
    if not text:
        return _UNKNOWN_AGE
    unit = _AGE_UNITS.get(text[-1])
    years = float(text if unit is None else text[:-1]) / (unit or 1.0)
    return years if 0 <= years <= _MAX_AGE else _UNKNOWN_AGE


def parse_sex(text: str) -> str:
    """Gives "F" or "M" from what sets write for them, else nothing."""
    return _SEXES.get(text.strip().upper(), "")


def parse_view(text: str) -> str:
    """Gives "PA", "AP" or "L" from what sets write for them, else nothing."""
    return _VIEWS.get(text.strip().upper(), "")

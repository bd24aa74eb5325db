"""One part of a set: which images, what is known of them, and whose they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_compress.errors import DataError

POSITIVE = 0.5  # a soft label above it counts as "has the finding" wherever images are counted or stratified
_PIXEL_AXES = (3, 4)  # (n, h, w) or (n, h, w, 3)


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one part of a set, in a fixed order.

    The optional fields are None where a set does not say, else one value per image.

    Attributes:
        name: "train", "dev" or "test".
        paths: (n,) image files; () for a set that holds `pixels` instead.
        labels: (n, k) float32: 1 where the image has the finding, 0 where not, between them a soft target, NaN where
            nobody knows (masked in losses, ignored in metrics); read-only.
        patients: (n,) the patient of each image; equal text means the same person.
        ages: (n,) float32 years, NaN where unknown.
        sexes: (n,) "F", "M" or "".
        views: (n,) "PA", "AP", "L" (lateral) or "".
        sources: (n,) where an image comes from, for results by source.
        pixels: uint8 (n, h, w) or (n, h, w, 3), for sets of arrays without files.
    """

    name: str
    paths: tuple[Path, ...]
    labels: NDArray[np.float32]
    patients: tuple[str, ...]
    ages: NDArray[np.float32] | None = None
    sexes: tuple[str, ...] | None = None
    views: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    pixels: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        labels = np.array(self.labels, np.float32)
        images = len(labels) if self._holds_arrays else len(self.paths)
        if labels.ndim != 2 or not images == len(labels) == len(self.patients):  # noqa: PLR2004 - images x findings
            raise DataError(
                f"expected one row of labels and one patient per image in {self.name}, got {images} images, "
                f"labels of shape {labels.shape} and {len(self.patients)} patients"
            )
        _check_labels(self.name, labels)
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)
        self._check_optional()

    @property
    def _holds_arrays(self) -> bool:
        return self.pixels is not None and not self.paths

    def _check_optional(self) -> None:
        """Every optional field that is there has one value per image; arrays become read-only."""
        if self.ages is not None:
            object.__setattr__(self, "ages", np.array(self.ages, np.float32))
        for field in _OPTIONAL:
            values = getattr(self, field)
            if values is not None and len(values) != len(self.labels):
                raise DataError(
                    f"expected one of {field} per image in {self.name}, got {len(values)} for {len(self.labels)} images"
                )
            if isinstance(values, np.ndarray) and values.flags.writeable:
                # A view, so that the caller's own array stays as it is and gigabytes are not copied.
                frozen = values.view()
                frozen.setflags(write=False)
                object.__setattr__(self, field, frozen)
        pixels = self.pixels
        if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim not in _PIXEL_AXES):
            raise DataError(
                f"expected pixels as uint8 (n, h, w) or (n, h, w, 3) in {self.name}, got {pixels.dtype} {pixels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """(n, k): the image is known to have the finding (a soft label above one half counts)."""
        return np.asarray(self.labels > POSITIVE)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n, k): the image has a label of the finding at all."""
        return np.asarray(~np.isnan(self.labels))

    def take(self, images: Sequence[int] | NDArray[np.int64], name: str | None = None) -> Split:
        """A new split of some of these images, in the order given; every field comes along.

        Args:
            images: positions in this split.
            name: name of the new split; this one's if None.
        """
        chosen = np.asarray(images, np.int64)
        return Split(
            name=self.name if name is None else name,
            paths=tuple(self.paths[i] for i in chosen) if self.paths else (),
            labels=self.labels[chosen],
            patients=tuple(self.patients[i] for i in chosen),
            **{field: _take(getattr(self, field), chosen) for field in _OPTIONAL},
        )


_OPTIONAL = tuple(field.name for field in fields(Split) if field.default is None)


def join_splits(splits: Sequence[Split], name: str) -> Split:
    """All images of several splits of one set, one split after the other; a field that one lacks is dropped.

    Args:
        splits: at least one; with the same findings.
        name: name of the new split.
    """
    optional: dict[str, Any] = {}
    for field in _OPTIONAL:
        parts = [getattr(split, field) for split in splits]
        if any(part is None for part in parts):
            continue
        is_array = isinstance(parts[0], np.ndarray)
        optional[field] = np.concatenate(parts) if is_array else tuple(value for part in parts for value in part)
    return Split(
        name,
        tuple(path for split in splits for path in split.paths),
        np.concatenate([split.labels for split in splits]),
        tuple(patient for split in splits for patient in split.patients),
        **optional,
    )


def _check_labels(name: str, labels: NDArray[np.float32]) -> None:
    """0, 1, a soft target between them, or NaN."""
    bad = np.argwhere(~(np.isnan(labels) | ((labels >= 0) & (labels <= 1))))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"expected labels of 0, 1, a soft target between them or NaN (unknown) in {name}, got "
            f"{labels[row, column]:g} for image {row}, finding {column} ({len(bad)} such labels)"
        )


def _take(values: Any, chosen: NDArray[np.int64]) -> Any:
    """Some of the values of an optional field."""
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[chosen]
    return tuple(values[i] for i in chosen)


_HEALTHY = -1


def carve_dev(images: Split, *, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
    """Splits images into train and dev by patient, with each finding represented in both.

    Args:
        images: everything that may be trained on; left unchanged.
        fraction: share of patients (not images) for dev, in (0, 1), met to within one patient per stratum.
        seed: another seed chooses other patients.

    Returns:
        (train, dev), both in the order of `images`.

    Raises:
        DataError: the fraction is not between 0 and 1.
    """
    chosen = choose_patients(images.patients, images.labels, fraction=fraction, seed=seed)
    in_dev = np.array([patient in chosen for patient in images.patients], bool)
    return images.take(np.flatnonzero(~in_dev), "train"), images.take(np.flatnonzero(in_dev), "dev")


def divide(
    images: Split, *, dev_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0
) -> tuple[Split, Split, Split]:
    """Splits images into train, dev and test by patient, for sets that come in one piece.

    The strata are those of `choose_patients`, made once for all three parts: one of three or more patients is in
    every part.

    Args:
        images: the whole set; left unchanged.
        dev_fraction: share of the patients that are not in test, in (0, 1).
        test_fraction: share of all patients, in (0, 1).
        seed: another seed chooses other patients.

    Returns:
        (train, dev, test), each in the order of `images`.

    Raises:
        DataError: A fraction is not between 0 and 1.
    """
    _check_fraction(test_fraction, "test")
    _check_fraction(dev_fraction, "dev")
    part: dict[str, str] = {}
    for members in _strata(images.patients, images.labels).values():
        ranked = _rank(members, seed)
        test = min(_share(len(ranked), test_fraction), max(len(ranked) - 2, 1)) if len(ranked) > 1 else 0
        dev = _share(len(ranked) - test, dev_fraction)
        part |= dict.fromkeys(ranked[:test], "test") | dict.fromkeys(ranked[test : test + dev], "dev")
    where = np.array([part.get(patient, "train") for patient in images.patients], dtype="U5")
    train, dev_images, test_images = (
        images.take(np.flatnonzero(where == name), name) for name in ("train", "dev", "test")
    )
    return train, dev_images, test_images


def choose_patients(
    patients: Sequence[str], labels: NDArray[np.float32], *, fraction: float, seed: int
) -> frozenset[str]:
    """A stratified share of the patients, drawn by hashing their names.

    A patient's stratum is the rarest finding on any of his images, or none: with 14 findings whole label patterns
    would be strata of one. Patients are ranked by SHA-256 of seed and name, so neither the order of files nor the
    version of a random generator has a say, and adding patients leaves most of the choice as it was.

    Args:
        patients: (n,) the patient of each image.
        labels: (n, k) 0 to 1 or NaN; above one half counts as having the finding.
        fraction: share of each stratum, in (0, 1), rounded; a stratum of two or more patients gives at least one and
            keeps at least one.
        seed: part of the hash.

    Raises:
        DataError: the fraction is not between 0 and 1.
    """
    _check_fraction(fraction, "dev")
    chosen: list[str] = []
    for members in _strata(patients, labels).values():
        chosen += _rank(members, seed)[: _share(len(members), fraction)]
    return frozenset(chosen)


def _check_fraction(fraction: float, part: str) -> None:
    if not 0.0 < fraction < 1.0:
        raise DataError(f"expected a {part} fraction between 0 and 1 (say 0.1), got {fraction}")


def _rank(members: Sequence[str], seed: int) -> list[str]:
    """Patients in the order of a hash: as good as random, and alike everywhere."""
    return sorted(members, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())


def _share(size: int, fraction: float) -> int:
    """Patients that are taken from a stratum: never all, and at least one where there are two or more."""
    return min(max(round(size * fraction), 1), size - 1)


def _strata(patients: Sequence[str], labels: NDArray[np.float32]) -> dict[int, list[str]]:
    """Patients by their rarest finding (column number), or `_HEALTHY`."""
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    has = np.zeros((len(names), labels.shape[1]), bool)
    np.logical_or.at(has, member, labels > POSITIVE)
    by_rarity = np.argsort(has.sum(axis=0), kind="stable")  # stable: equally rare findings in column order
    strata: dict[int, list[str]] = {}
    for name, row in zip(names.tolist(), has[:, by_rarity], strict=True):
        stratum = int(by_rarity[np.argmax(row)]) if row.any() else _HEALTHY
        strata.setdefault(stratum, []).append(name)
    return strata

"""Splitting patient by patient, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.split import POSITIVE, Split
from cxr_compress.errors import DataError

_HEALTHY = -1


def carve_dev(films: Split, *, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
    """Splits films into train and dev by patient, with each finding represented in both.

    Args:
        films: Everything that may be trained on; left unchanged.
        fraction: Share of patients (not films) for dev, in (0, 1), met to within one patient per stratum.
        seed: Another seed chooses other patients.

    Returns:
        (train, dev), both in the order of ``films``.

    Raises:
        DataError: The fraction is not between 0 and 1.
    """
    chosen = choose_patients(films.patients, films.labels, fraction=fraction, seed=seed)
    in_dev = np.array([patient in chosen for patient in films.patients], bool)
    return films.take(np.flatnonzero(~in_dev), "train"), films.take(np.flatnonzero(in_dev), "dev")


def divide(
    films: Split, *, dev_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0
) -> tuple[Split, Split, Split]:
    """Splits films into train, dev and test by patient, for sets that come in one piece.

    The strata are those of ``choose_patients``, made once for all three parts: one of three or more patients is in
    every part.

    Args:
        films: The whole set; left unchanged.
        dev_fraction: Share of the patients that are not in test, in (0, 1).
        test_fraction: Share of all patients, in (0, 1).
        seed: Another seed chooses other patients.

    Returns:
        (train, dev, test), each in the order of ``films``.

    Raises:
        DataError: A fraction is not between 0 and 1.
    """
    _check_fraction(test_fraction, "test")
    _check_fraction(dev_fraction, "dev")
    part: dict[str, str] = {}
    for members in _strata(films.patients, films.labels).values():
        ranked = _rank(members, seed)
        test = min(_share(len(ranked), test_fraction), max(len(ranked) - 2, 1)) if len(ranked) > 1 else 0
        dev = _share(len(ranked) - test, dev_fraction)
        part |= dict.fromkeys(ranked[:test], "test") | dict.fromkeys(ranked[test : test + dev], "dev")
    where = np.array([part.get(patient, "train") for patient in films.patients], dtype="U5")
    train, dev_films, test_films = (
        films.take(np.flatnonzero(where == name), name) for name in ("train", "dev", "test")
    )
    return train, dev_films, test_films


def choose_patients(
    patients: Sequence[str], labels: NDArray[np.float32], *, fraction: float, seed: int
) -> frozenset[str]:
    """A stratified share of the patients, drawn by hashing their names.

    A patient's stratum is the rarest finding on any of his films, or none: with 14 findings whole label patterns
    would be strata of one. Patients are ranked by SHA-256 of seed and name, so neither the order of files nor the
    version of a random generator has a say, and adding patients leaves most of the choice as it was.

    Args:
        patients: (n,) the patient of each film.
        labels: (n, k) 0 to 1 or NaN; above one half counts as having the finding.
        fraction: Share of each stratum, in (0, 1), rounded; a stratum of two or more patients gives at least one and
            keeps at least one.
        seed: Part of the hash.

    Raises:
        DataError: The fraction is not between 0 and 1.
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
    """How many of a stratum go: never all, never none where there are two to share."""
    return min(max(round(size * fraction), 1), size - 1)


def _strata(patients: Sequence[str], labels: NDArray[np.float32]) -> dict[int, list[str]]:
    """Patients by their rarest finding (column number), or ``_HEALTHY``."""
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    has = np.zeros((len(names), labels.shape[1]), bool)
    np.logical_or.at(has, member, labels > POSITIVE)
    by_rarity = np.argsort(has.sum(axis=0), kind="stable")  # stable: equally rare findings in column order
    strata: dict[int, list[str]] = {}
    for name, row in zip(names.tolist(), has[:, by_rarity], strict=True):
        stratum = int(by_rarity[np.argmax(row)]) if row.any() else _HEALTHY
        strata.setdefault(stratum, []).append(name)
    return strata

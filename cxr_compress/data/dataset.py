"""What every reader returns, and the checks that no set escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_compress.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """The films of one part of a set, in a fixed order.

    Attributes:
        name: "train", "dev" or "test".
        paths: (n,) image files.
        labels: (n, k) float32, 1 where the film has the finding; read-only.
        patients: (n,) the patient of each film; equal text means the same person.
    """

    name: str
    paths: tuple[Path, ...]
    labels: NDArray[np.float32]
    patients: tuple[str, ...]

    def __post_init__(self) -> None:
        labels = np.array(self.labels, np.float32)
        one_per_film = len(self.paths) == len(labels) == len(self.patients)
        if labels.ndim != 2 or not one_per_film:  # noqa: PLR2004 - films x findings
            raise DataError(
                f"expected one row of labels and one patient per film in {self.name}, got {len(self.paths)} films, "
                f"labels of shape {labels.shape} and {len(self.patients)} patients"
            )
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, films: Sequence[int] | NDArray[np.int64], name: str | None = None) -> Split:
        """A new split of some of these films, in the order given.

        Args:
            films: Positions in this split.
            name: Of the new split; this one's if None.
        """
        chosen = np.asarray(films, np.int64)
        return Split(
            self.name if name is None else name,
            tuple(self.paths[i] for i in chosen),
            self.labels[chosen],
            tuple(self.patients[i] for i in chosen),
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set with its three parts; no patient is in two of them.

    Attributes:
        name: As ``load_dataset`` knows it.
        findings: (k,) what the columns of the labels mean.
        train: What weights are fitted on.
        dev: What every choice is made on (checkpoint, threshold, calibration): patients carved out of train.
        test: The official test films, scored once per final artefact.
        attribution: Whose data this is and under what licence; goes into every report and model file.
        synthetic: True for drawn images: no number measured on them says anything about patients.
    """

    name: str
    findings: tuple[str, ...]
    train: Split
    dev: Split
    test: Split
    attribution: str
    synthetic: bool = False

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Train, dev and test."""
        return self.train, self.dev, self.test


def check_dataset(dataset: Dataset, *, patient_key: str) -> Dataset:
    """Refuses a set on which training or scoring would mislead.

    Args:
        dataset: What a reader put together.
        patient_key: In words, what the reader takes for a patient; part of the message.

    Returns:
        The same object.

    Raises:
        DataError: A split is empty, a patient is in two splits, or a finding is in all or none of a split's films.
    """
    for split in dataset.splits:
        if not len(split):
            raise DataError(f"{dataset.name}: the {split.name} split has no films; use a larger set or dev_fraction")
    _check_patients(dataset, patient_key)
    for split in dataset.splits:
        _check_classes(dataset, split)
    return dataset


def _check_patients(dataset: Dataset, patient_key: str) -> None:
    """No patient may be in two splits: the model would be tested on a body it has learnt by heart."""
    pairs = [(dataset.train, dataset.dev), (dataset.train, dataset.test), (dataset.dev, dataset.test)]
    for one, other in pairs:
        shared = set(one.patients) & set(other.patients)
        if shared:
            films = sum(patient in shared for split in (one, other) for patient in split.patients)
            raise DataError(
                f"{dataset.name}: {len(shared)} patient(s) with {films} films are in both {one.name} and {other.name} "
                f"(the key is {patient_key}); move all films of a patient into one split"
            )


def _check_classes(dataset: Dataset, split: Split) -> None:
    """Without both classes a loss weight, a threshold or an AUROC of the finding does not exist."""
    positives = split.labels.sum(axis=0)
    for finding, count in zip(dataset.findings, positives, strict=True):
        if count in (0, len(split)):
            lacking = "with" if count == 0 else "without"
            raise DataError(
                f"{dataset.name}: expected films with and without {finding!r} in {split.name}, none of its "
                f"{len(split)} films is {lacking} it; use a larger set"
            )

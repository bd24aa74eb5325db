"""A data set as every reader returns it, the checks that every set goes through, and which findings a model shares."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from cxr_compress.data.splits import Split
from cxr_compress.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set with its three parts; no patient is in two of them.

    Attributes:
        name: name by which `load_dataset` reads it.
        findings: (k,) what the columns of the labels mean.
        train: images that weights are fitted on.
        dev: images that every choice is made on (checkpoint, threshold, calibration): patients carved out of train.
        test: the official test images, scored once per final artifact.
        attribution: whose data this is and under what license; goes into every report and model file.
        synthetic: True for drawn images: no number measured on them says anything about patients.
        notes: sentences a reader of results must know, e.g. that the set has no patients.
        patient_key: in words, what the reader takes for a patient, for example a column.
        allow_one_class: dev and test may have only images with, or only images without, a finding. Its column stays;
            evaluation calls it "not enough data". Small real sets need that for rare findings.
        color: "gray" or "rgb": what the images are.
        exclusive: the findings are classes that exclude one another: each image has exactly one of them.
        labeled: False for images of which nothing is known: their labels are unknown (NaN) throughout, and what the
            original model says of them takes their place.
    """

    name: str
    findings: tuple[str, ...]
    train: Split
    dev: Split
    test: Split
    attribution: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    patient_key: str = "what the reader takes for a patient"
    allow_one_class: bool = False
    color: str = "gray"
    exclusive: bool = False
    labeled: bool = True

    def with_unknown(self, findings: Sequence[str]) -> Dataset:
        """The same unlabeled images with columns of unknown labels, one for each finding of a model."""
        train, dev, test = (
            replace(split, labels=np.full((len(split), len(findings)), np.nan, np.float32)) for split in self.splits
        )
        return replace(self, findings=tuple(findings), train=train, dev=dev, test=test)

    def with_columns(self, columns: Sequence[int]) -> Dataset:
        """The same images with some of the findings, in the order given.

        Args:
            columns: positions in `findings`.
        """
        chosen = list(columns)
        if chosen == list(range(len(self.findings))):
            return self
        train, dev, test = (replace(split, labels=split.labels[:, chosen]) for split in self.splits)
        findings = tuple(self.findings[column] for column in chosen)
        # Of some classes alone an image need not have one.
        exclusive = self.exclusive and len(chosen) == len(self.findings)
        return replace(self, findings=findings, train=train, dev=dev, test=test, exclusive=exclusive)

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Train, dev and test."""
        return self.train, self.dev, self.test


def finding_key(name: str) -> str:
    """The form in which names of findings are compared: case does not count, and "_" is a space."""
    return " ".join(name.replace("_", " ").casefold().split())


class ProblemKind(enum.Enum):
    """Kinds of problems; the values are read by people."""

    EMPTY_SPLIT = "empty split"
    LEAKAGE = "patient leakage"
    ONE_CLASS = "finding with one class"
    MISSING = "missing files"
    CORRUPT = "corrupt files"
    SAME_FILE = "same file"
    SAME_IMAGE = "same image"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a set.

    Attributes:
        kind: the rule that is broken.
        text: one line that starts with the set's name: what was expected, what was found, what to do.
        splits: the parts concerned.
        count: how many patients, images or groups.
        names: what it is about (file names, groups of them), for results a user asked for; never for logs.
    """

    kind: ProblemKind
    text: str
    splits: tuple[str, ...]
    count: int
    names: tuple[str, ...] = ()


def check_dataset(dataset: Dataset, *, patient_key: str | None = None) -> Dataset:
    """Refuses a set on which training or scoring would mislead.

    Args:
        dataset: result of a reader.
        patient_key: in words, what the reader takes for a patient; part of the message. The set's own if None.

    Returns:
        The same object.

    Raises:
        DataError: A split is empty, a patient is in two splits, or a finding is in all or none of a split's images of
            which it is known. The text is that of the first of `find_problems`.
    """
    for problem in find_problems(dataset, patient_key=patient_key):
        raise DataError(problem.text)
    return dataset


def find_problems(dataset: Dataset, *, patient_key: str | None = None) -> Iterator[Problem]:
    """All that is wrong with the splits of a set, without opening a file; the worst first.

    Args:
        dataset: result of a reader.
        patient_key: in words, what the reader takes for a patient. The set's own if None.
    """
    for split in dataset.splits:
        if not len(split):
            text = f"{dataset.name}: the {split.name} split has no images; use a larger set or dev_fraction"
            yield Problem(ProblemKind.EMPTY_SPLIT, text, (split.name,), 0)
    for first, second in combinations(dataset.splits, 2):
        yield from _shared_patients(dataset, first, second, patient_key or dataset.patient_key)
    for split in dataset.splits:
        if dataset.labeled and len(split) and (split is dataset.train or not dataset.allow_one_class):
            yield from _one_class(dataset, split)


def _shared_patients(dataset: Dataset, first: Split, second: Split, patient_key: str) -> Iterator[Problem]:
    """No patient may be in two splits: the model would be tested on a body it has learnt by heart."""
    shared = set(first.patients) & set(second.patients)
    if shared:
        images = sum(patient in shared for split in (first, second) for patient in split.patients)
        text = (
            f"{dataset.name}: {len(shared)} patient(s) with {images} images are in both {first.name} and {second.name} "
            f"(the key is {patient_key}); move all images of a patient into one split"
        )
        yield Problem(ProblemKind.LEAKAGE, text, (first.name, second.name), len(shared), tuple(sorted(shared)))


def _one_class(dataset: Dataset, split: Split) -> Iterator[Problem]:
    """Without both classes a loss weight, a threshold or an AUROC of the finding does not exist."""
    positives, knowns = split.positive.sum(axis=0), split.known.sum(axis=0)
    for finding, count, known in zip(dataset.findings, positives.tolist(), knowns.tolist(), strict=True):
        if 0 < count < known:
            continue
        lacking = "with" if count == 0 else "without"
        images = f"{known} images" if known == len(split) else f"{known} images with a known label"
        # A finding that train lacks cannot be learnt; one that dev or test lacks can only not be scored.
        remedy = "use a larger set" if split is dataset.train else "use a larger set, or the option allow_one_class"
        text = (
            f"{dataset.name}: expected images with and without {finding!r} in {split.name}, none of its {images} is "
            f"{lacking} it; {remedy}"
        )
        yield Problem(ProblemKind.ONE_CLASS, text, (split.name,), 1, (finding,))


@dataclass(frozen=True)
class Match:
    """The findings that a model and a data set have in common, in the data set's order.

    Attributes:
        findings: (m,) their names, as the data set writes them.
        logits: (m,) the model's column of each.
        labels: (m,) the data set's column of each.
        only_model: findings of the model that the data set says nothing about.
        only_dataset: findings of the data set that the model does not know.
        by_position: they were not matched by name: columns were taken in order.
    """

    findings: tuple[str, ...]
    logits: tuple[int, ...]
    labels: tuple[int, ...]
    only_model: tuple[str, ...] = ()
    only_dataset: tuple[str, ...] = ()
    by_position: bool = False


def match_findings(
    model: Sequence[str] | None, dataset: Sequence[str], *, logits: int, by_position: bool = False
) -> Match:
    """Pairs logits with label columns.

    Names are compared without case, and with "_" as a space: Pleural_Thickening is Pleural thickening. Nothing else is
    guessed; "Effusion" and "Pleural Effusion" differ, because a wrong pair gives a number that looks right.

    Args:
        model: the model's findings in the order of its logits; None if it does not say.
        dataset: the data set's findings in the order of its labels.
        logits: how many logits the model gives.
        by_position: the user says that the logits stand in the order of the data set's findings, whatever their names.

    Raises:
        DataError: nothing in common, a model without names, or by position not as many logits as findings.
    """
    if model is not None and len(model) != logits:
        raise DataError(f"expected one logit for each of the model's {len(model)} findings, it gives {logits}")
    if by_position:
        if len(dataset) != logits:
            raise DataError(
                f"--match=position needs one finding for each of the model's {logits} outputs, the data set has "
                f"{len(dataset)} ({', '.join(dataset)}): match by name"
            )
        every = tuple(range(logits))
        return Match(tuple(dataset), every, every, by_position=True)
    if not dataset:
        raise DataError("the images have no labels, so nothing can be scored on them: give a data set with labels")
    if model is None:
        raise DataError(
            f"the model does not name its {logits} outputs, so which of them belongs to which of the data set's "
            f"findings ({', '.join(dataset)}) is unknown: name them in their order with --labels, or say with "
            "--match=position that they stand in the order of the data set"
        )
    columns = {finding_key(name): column for column, name in enumerate(model)}
    pairs = [
        (columns[finding_key(name)], column) for column, name in enumerate(dataset) if finding_key(name) in columns
    ]
    if not pairs:
        raise DataError(
            f"model and data set have no finding in common: the model has {', '.join(model)}, the data set has "
            f"{', '.join(dataset)}; use the kind of set it was made for, or, where the names alone differ, name its "
            "outputs with --labels or say --match=position"
        )
    known = {finding_key(name) for name in dataset}
    return Match(
        tuple(dataset[column] for _, column in pairs),
        tuple(logit for logit, _ in pairs),
        tuple(column for _, column in pairs),
        tuple(name for name in model if finding_key(name) not in known),
        tuple(name for name in dataset if finding_key(name) not in columns),
    )

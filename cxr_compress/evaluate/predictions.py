"""What a model said of every image, as CSV: written by an evaluation, read again to compare without running models."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.dataset import finding_key
from cxr_compress.data.table_file import Row, Table, read_table
from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.errors import DataError
from cxr_compress.evaluate.score import Evaluation, Floats, score_logits
from cxr_compress.metrics import predicted_classes

_IMAGE, _PATIENT = "image", "patient"
PREDICTIONS_START = f"{_IMAGE},{_PATIENT},".encode()  # which every such file begins with
_LABEL, _LOGIT, _PROBABILITY, _THRESHOLD, _GROUP = "label_", "logit_", "probability_", "threshold_", "group_"
_PREDICTED = "predicted"  # the likeliest of classes that exclude one another; files of findings have no such column
_KEY_BYTES = 32
_HASH_BYTES = 8  # 16 hexadecimal digits: two of 100,000 patients share one with a chance below one in a billion
_WHO = "predictions"


def predictions_csv(
    scored: Evaluation, groups: Mapping[str, Sequence[str]] | None = None, *, key: bytes | None = None
) -> str:
    """A CSV with a row per image: its number in the split, its hashed patient, its labels and its logits.

    Images of one patient carry the same hash, so intervals can be computed again. The hash is keyed with random bytes
    that are thrown away: ids of patients are short numbers, and a plain hash of them could be undone by trying all.
    Hence the hashes of two files differ; rows of two models on one split are paired by the image's number.

    Args:
        scored: the images.
        groups: grouping -> the group of each image, as `groups_of` gives it.
        key: of the hash; None for a random one. Keep one for yourself only to link files of your own.

    Returns:
        Columns `image`, `patient`, `label_FINDING` (empty where unknown) and `logit_FINDING`; `probability_FINDING`
        where the model gives calibrated ones, `threshold_FINDING` on it (else on the sigmoid of the logit) where it
        decides; of classes that exclude one another `probability_CLASS` and `predicted`; `group_NAME` of each grouping.
        Numbers have the digits that read back as the same float32.
    """
    secret = secrets.token_bytes(_KEY_BYTES) if key is None else key
    shares, exclusive = _probabilities(scored), scored.shares is not None and scored.decisions is not None
    thresholds = [] if exclusive or scored.decisions is None else [score.threshold for score in scored.scores]
    kinds = [_LABEL, _LOGIT, *([] if shares is None else [_PROBABILITY]), *([_THRESHOLD] if thresholds else [])]
    names = [f"{kind}{finding}" for kind in kinds for finding in scored.findings]
    by = dict(groups or {})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [_IMAGE, _PATIENT, *names, *([_PREDICTED] if exclusive else []), *(f"{_GROUP}{name}" for name in by)]
    )
    for image, patient in enumerate(scored.patients):
        labels = ["" if np.isnan(label) else int(label) for label in scored.labels[image]]
        row = [image, _hashed(patient, secret), *labels, *_digits(scored.logits[image])]
        row += [] if shares is None else _digits(shares[image])
        row += [repr(float(threshold)) for threshold in thresholds]
        if exclusive and scored.decisions is not None:
            # Empty where the likeliest class of the model is none of those that were scored.
            called = [name for name, flag in zip(scored.findings, scored.decisions[image], strict=True) if flag]
            row.append("".join(called))
        writer.writerow([*row, *(members[image] for members in by.values())])
    return text.getvalue()


def _probabilities(scored: Evaluation) -> Floats | None:
    """What goes into the columns `probability_`."""
    return scored.probabilities if scored.shares is None else scored.shares


def _digits(values: Iterable[float]) -> list[str]:
    return [np.format_float_positional(np.float32(value), unique=True, trim="0") for value in values]


def _hashed(patient: str, key: bytes) -> str:
    return hashlib.blake2b(patient.encode("utf-8"), key=key, digest_size=_HASH_BYTES).hexdigest()


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a predictions file holds of n images and k findings, in the order of the images' numbers.

    Attributes:
        name: of the file.
        findings: (k,) their names.
        images: int64 (n,) numbers of the images in their split.
        patients: (n,) numbered in the order in which they come, so that two files on the same images agree; an image
            without one counts as a patient of its own.
        labels: float32 (n, k), NaN where unknown.
        logits: float32 (n, k).
        probabilities: float32 (n, k), or None.
        thresholds: float64 (k,) on them, or None.
        exclusive: the findings are classes that exclude one another.
        groups: grouping -> the group of each image.
    """

    name: str
    findings: tuple[str, ...]
    images: NDArray[np.int64]
    patients: tuple[str, ...]
    labels: Floats
    logits: Floats
    probabilities: Floats | None
    thresholds: NDArray[np.float64] | None
    exclusive: bool
    groups: Mapping[str, tuple[str, ...]]

    def pair_with(self, reference: Predictions) -> Predictions:
        """The same with its findings in the order of another file on the same images.

        Raises:
            DataError: images, patients, labels or findings are others.
        """
        columns = {finding_key(name): column for column, name in enumerate(self.findings)}
        keys = [finding_key(name) for name in reference.findings]
        if set(keys) != set(columns):
            lacking = [name for name, key in zip(reference.findings, keys, strict=True) if key not in columns]
            more = [name for name in self.findings if finding_key(name) not in keys]
            differences = [f"lacks {', '.join(lacking)}"] if lacking else []
            differences += [f"has {', '.join(more)} besides"] if more else []
            raise DataError(
                f"expected the findings of {reference.name} in {self.name}, it {' and '.join(differences)}: compare "
                "models of the same findings"
            )
        order = [columns[key] for key in keys]
        labels = self.labels[:, order]
        self._check_images(reference, labels)
        return Predictions(
            self.name,
            reference.findings,
            self.images,
            self.patients,
            labels,
            self.logits[:, order],
            None if self.probabilities is None else self.probabilities[:, order],
            None if self.thresholds is None else self.thresholds[order],
            self.exclusive,
            self.groups,
        )

    def _check_images(self, reference: Predictions, labels: Floats) -> None:
        """Refuse what was predicted on other images."""
        what = ""
        if not np.array_equal(self.images, reference.images):
            what = f"{len(self.images):,} images where {reference.name} has {len(reference.images):,}"
            if len(self.images) == len(reference.images):
                what = f"images of other numbers than {reference.name}"
        elif not np.array_equal(labels, reference.labels, equal_nan=True):
            differ = ~((labels == reference.labels) | (np.isnan(labels) & np.isnan(reference.labels)))
            image = int(reference.images[int(np.argmax(differ.any(axis=1)))])
            what = f"other labels than {reference.name}, first of image {image}"
        elif self.patients != reference.patients:
            what = f"images shared out among patients otherwise than in {reference.name}"
        if what:
            raise DataError(f"{self.name} has {what}: evaluate both models on one split of one set")

    def score(self, *, samples: int, seed: int) -> Evaluation:
        """The evaluation that the file was written from, with intervals of its own."""
        decisions = shares = None
        if self.exclusive and self.probabilities is not None:
            shares, decisions = self.probabilities, predicted_classes(self.probabilities)
        elif self.thresholds is not None:
            chances = probabilities_of(self.logits, "sigmoid") if self.probabilities is None else self.probabilities
            decisions = chances >= self.thresholds.astype(np.float32)  # as Classifier.decide
        return score_logits(
            self.logits,
            self.labels,
            self.patients,
            self.findings,
            decisions=decisions,
            thresholds=None if self.thresholds is None else self.thresholds.tolist(),
            probabilities=self.probabilities,
            shares=shares,
            samples=samples,
            seed=seed,
        )


def read_predictions(path: Path) -> Predictions:
    """Read what `predictions_csv` wrote; columns in any order, rows too, and more groupings (`group_NAME`) if you like.

    Raises:
        DataError: no such table, no findings, a cell that cannot be read (with its line), or an image named twice.
    """
    table = read_table(path, who=_WHO, needed=(_IMAGE,), optional=(_PATIENT,))
    findings = tuple(name.removeprefix(_LOGIT) for name in table.columns if name.startswith(_LOGIT))
    lacking = [f"{_LABEL}{name}" for name in findings if f"{_LABEL}{name}" not in table.columns]
    if not findings or lacking:
        raise DataError(
            f"{_WHO}: expected columns {_LABEL}FINDING and {_LOGIT}FINDING in {path.name}, the header lacks "
            f"{', '.join(lacking) or 'both'}: give a file of cxr_evaluate --predictions_file"
        )
    exclusive = _PREDICTED in table.columns
    has = {kind: all(f"{kind}{name}" in table.columns for name in findings) for kind in (_PROBABILITY, _THRESHOLD)}
    groupings = [name for name in table.columns if name.startswith(_GROUP)]
    rows = _ordered(table, path.name)
    every = [row for _, row in rows]
    chances = _matrix(every, _PROBABILITY, findings, most=1.0) if has[_PROBABILITY] else None
    thresholds = _constant(every, findings) if has[_THRESHOLD] and not exclusive else None
    return Predictions(
        path.name,
        findings,
        np.array([number for number, _ in rows], np.int64),
        _numbered([row.get(_PATIENT) for row in every]),
        _matrix(every, _LABEL, findings, empty=math.nan, most=1.0),
        _matrix(every, _LOGIT, findings),
        chances,
        thresholds,
        exclusive,
        {name.removeprefix(_GROUP): tuple(row[name] for row in every) for name in groupings},
    )


def read_groups(path: Path, images: Sequence[int] | NDArray[np.int64]) -> dict[str, tuple[str, ...]]:
    """What a table says of images: a column `image` with their numbers, and every other column is a grouping.

    Args:
        path: the table.
        images: numbers of the images, in the order in which the groups are wanted.

    Raises:
        DataError: it names no group, an image twice, or not all images.
    """
    table = read_table(path, who="groups", needed=(_IMAGE,))
    columns = [name for name in table.columns if name != _IMAGE]
    rows = dict(_ordered(table, path.name))
    lacking = [int(number) for number in images if int(number) not in rows]
    if not columns or lacking:
        what = f"image {lacking[0]} (and {len(lacking) - 1} others)" if lacking else "any column beside image"
        raise DataError(f"groups: {path.name} lacks {what}: give each image of the split a row with its groups")
    return {name: tuple(rows[int(number)][name] or "unknown" for number in images) for name in columns}


def _ordered(table: Table, file: str) -> list[tuple[int, Row]]:
    """The rows with the numbers of their images, in that order."""
    rows: dict[int, Row] = {}
    for row in table.rows:
        if not row[_IMAGE].isdecimal():
            raise row.error(f"has {row[_IMAGE]!r} in the column image; expected the number of an image")
        number = int(row[_IMAGE])
        if number in rows:
            raise row.error(f"names image {number}, which line {rows[number].line} names; keep one row per image")
        rows[number] = row
    if not rows:
        raise DataError(f"{_WHO}: {file} has no images: evaluate the model again")
    return sorted(rows.items())


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Patients as numbers of one width in the order in which they come; who has no name is one of their own."""
    width = len(str(len(names)))
    numbers: dict[str, str] = {}
    return tuple(
        numbers.setdefault(name or f"\0{image}", f"{len(numbers):0{width}d}") for image, name in enumerate(names)
    )


def _matrix(
    rows: Sequence[Row], kind: str, findings: Sequence[str], *, empty: float | None = None, most: float = math.inf
) -> Floats:
    return np.array(_cells(rows, kind, findings, empty=empty, most=most), np.float32)


def _cells(
    rows: Sequence[Row], kind: str, findings: Sequence[str], *, empty: float | None = None, most: float = math.inf
) -> list[list[float]]:
    return [[_number(row, f"{kind}{name}", empty, most) for name in findings] for row in rows]


def _number(row: Row, column: str, empty: float | None, most: float) -> float:
    """A cell as a number; `empty` is what an empty cell means, None where it must not be."""
    text = row[column]
    if not text and empty is not None:
        return empty
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not -math.inf < value <= most or (most == 1.0 and value < 0):
        bounds = "a finite number" if most == math.inf else "a number from 0 to 1"
        raise row.error(f"has {text!r} in the column {column}; expected {bounds}: evaluate the model again")
    return value


def _constant(rows: Sequence[Row], findings: Sequence[str]) -> NDArray[np.float64]:
    """The thresholds, which are the same in every row."""
    values = np.array(_cells(rows, _THRESHOLD, findings, most=1.0))
    other = np.flatnonzero((values != values[0]).any(axis=1))
    if len(other):
        raise rows[int(other[0])].error("has another threshold than the first row: do not mix files of two models")
    return values[0]

"""The same numbers by source, sex, age and view: a good mean can hide a group that the model fails.

Two views of each way to divide the images. *In each group* the AUROC of that group alone. *Within groups* one AUROC
over all images that compares an image only with images of its own group: where source and finding go together, a
network that has learnt to tell the sources apart looks good overall and falls to one half here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.data import Split
from cxr_compress.errors import DataError
from cxr_compress.evaluate.finding import NOT_ENOUGH_DATA, UNDEFINED, interval_dict
from cxr_compress.evaluate.score import Evaluation
from cxr_compress.metrics import (
    ENOUGH_IMAGES,
    Interval,
    auroc_per_finding,
    auroc_samples,
    bootstrap_mean,
    count_comparable_images,
    count_images,
    interval,
    stratified_auroc,
    stratified_auroc_samples,
)

GROUPINGS = ("source", "sex", "age", "view")
UNKNOWN = "unknown"
_BAND_STARTS = (15, 40, 60)  # years; below the first a chest is a child's
_BANDS = ("0-14", "15-39", "40-59", "60+")


@dataclass(frozen=True)
class GroupFinding:
    """One finding in one group.

    Attributes:
        finding: its name.
        positives: images of the group that have it; within groups: that have one without it to be compared with.
        negatives: images that do not, likewise.
        auroc: with its interval over resampled patients; nan where fewer than 20 images of a class are there.
    """

    finding: str
    positives: int
    negatives: int
    auroc: Interval

    @property
    def enough_data(self) -> bool:
        """Whether the AUROC is given."""
        return min(self.positives, self.negatives) >= ENOUGH_IMAGES

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        fields = {"positives": self.positives, "negatives": self.negatives, "auroc": interval_dict(self.auroc)}
        return fields if self.enough_data else {**fields, "mark": NOT_ENOUGH_DATA}


@dataclass(frozen=True)
class Group:
    """The images that have something in common.

    Attributes:
        name: for instance "F" or "40-59".
        images: how many.
        patients: of how many people.
        scores: one per finding.
        mean_auroc: over the findings with enough data in this group: which ones differs between groups, so two means
            compare only where `scores` show the same findings.
    """

    name: str
    images: int
    patients: int
    scores: tuple[GroupFinding, ...]
    mean_auroc: Interval

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {
            "images": self.images,
            "patients": self.patients,
            "mean_auroc": interval_dict(self.mean_auroc),
            "mean_over": [score.finding for score in self.scores if score.enough_data],
            "findings": {score.finding: score.to_dict() for score in self.scores},
        }


@dataclass(frozen=True)
class Grouping:
    """One way to divide the images.

    Attributes:
        by: for instance "source".
        groups: in order of name.
        within: all images, compared inside their group only; its counts are of the images that enter a pair.
    """

    by: str
    groups: tuple[Group, ...]
    within: Group

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {
            "groups": {group.name: group.to_dict() for group in self.groups},
            f"within_{self.by}": self.within.to_dict(),
        }


def age_bands(ages: ArrayLike) -> tuple[str, ...]:
    """The band of each age in years: 0-14, 15-39, 40-59, 60+, or "unknown" for nan.

    Args:
        ages: (n,).
    """
    years = np.asarray(ages, np.float64)
    bands = np.searchsorted(_BAND_STARTS, years, side="right")
    return tuple(UNKNOWN if np.isnan(age) else _BANDS[band] for age, band in zip(years, bands, strict=True))


def groups_of(split: Split) -> dict[str, tuple[str, ...]]:
    """What a split says of its images: grouping -> the group of each image; others are left out."""
    said: dict[str, Sequence[str] | None] = {
        "source": split.sources,
        "sex": split.sexes,
        "age": None if split.ages is None else age_bands(split.ages),
        "view": split.views,
    }
    named = {by: tuple(name or UNKNOWN for name in names) for by, names in said.items() if names is not None}
    return {by: names for by, names in named.items() if set(names) - {UNKNOWN}}


def score_groups(scored: Evaluation, groups: Mapping[str, Sequence[str]]) -> tuple[Grouping, ...]:
    """Divides what was scored.

    Args:
        scored: all images.
        groups: grouping -> the group of each image, as `groups_of` gives it.

    Raises:
        DataError: a grouping does not name one group per image.
    """
    return tuple(_score_grouping(scored, by, tuple(names)) for by, names in groups.items())


def _score_grouping(scored: Evaluation, by: str, names: tuple[str, ...]) -> Grouping:
    """Each group alone, and all of them compared within."""
    if len(names) != len(scored.labels):
        raise DataError(f"expected one {by} per image, got {len(names)} for {len(scored.labels)} images")
    ordered = sorted(set(names), key=lambda name: (name == UNKNOWN, name))
    member = np.asarray(names)
    within = _make_group(
        scored,
        f"within {by}",
        np.ones(len(names), bool),
        count_comparable_images(scored.labels, names),
        strata=names,
    )
    return Grouping(by, tuple(_alone(scored, name, member == name) for name in ordered), within)


def _alone(scored: Evaluation, name: str, images: NDArray[np.bool_]) -> Group:
    return _make_group(scored, name, images, count_images(scored.labels[images]))


def _make_group(
    scored: Evaluation,
    name: str,
    images: NDArray[np.bool_],
    counts: tuple[NDArray[np.int64], NDArray[np.int64]],
    strata: tuple[str, ...] | None = None,
) -> Group:
    """Measures the findings with enough images and leaves the others undefined."""
    enough = np.minimum(*counts) >= ENOUGH_IMAGES
    labels, logits = scored.labels[images][:, enough], scored.ranking[images][:, enough]
    patients = [patient for patient, chosen in zip(scored.patients, images, strict=True) if chosen]
    options: dict[str, Any] = {"samples": scored.samples, "seed": scored.seed}
    if not enough.any():
        values, drawn = np.empty(0), np.empty((scored.samples, 0))
    elif strata is None:
        values, drawn = auroc_per_finding(labels, logits), auroc_samples(labels, logits, patients, **options)
    else:
        values = stratified_auroc(labels, logits, strata)
        drawn = stratified_auroc_samples(labels, logits, strata, patients, **options)
    measured = {int(column): interval(float(values[k]), drawn[:, k]) for k, column in enumerate(np.flatnonzero(enough))}
    scores = tuple(
        GroupFinding(finding, int(counts[0][column]), int(counts[1][column]), measured.get(column, UNDEFINED))
        for column, finding in enumerate(scored.findings)
    )
    return Group(name, int(images.sum()), len(set(patients)), scores, bootstrap_mean(values, drawn))

"""What compression did to each group of images: a good mean over all of them can hide a group that pays for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import DataError
from cxr_compress.evaluate.finding import NOT_ENOUGH_DATA, UNDEFINED, interval_dict
from cxr_compress.evaluate.groups import UNKNOWN
from cxr_compress.evaluate.score import Evaluation
from cxr_compress.evaluate.verdict import Judged, judge
from cxr_compress.metrics import (
    ENOUGH_IMAGES,
    Interval,
    Loss,
    auroc_per_finding,
    auroc_samples,
    count_carriers,
    count_images,
    interval,
    mean_samples,
    same_order,
)

Flags = npt.NDArray[np.bool_]
AND = " and "  # joins the names of two groupings, and of two groups


@dataclass(frozen=True)
class GroupChange:
    """One finding in one group; only where 20 images or more with and without it are there.

    Attributes:
        by: the grouping, for instance "sex" or "sex and age".
        group: for instance "F".
        finding: its name.
        positives: images of the group that have it.
        negatives: that do not.
        auroc_drop: before minus after, on the same resampled patients.
        tpr_drop: of the sensitivity, each model by its own threshold; nan where one has none.
        judged: what the drop of the AUROC shows, adjusted for all findings and groups of the grouping.
    """

    by: str
    group: str
    finding: str
    positives: int
    negatives: int
    auroc_drop: Interval
    tpr_drop: Interval
    judged: Judged

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {
            "by": self.by,
            "group": self.group,
            "finding": self.finding,
            "positives": self.positives,
            "negatives": self.negatives,
            "auroc_drop": interval_dict(self.auroc_drop),
            "tpr_drop": interval_dict(self.tpr_drop),
            **self.judged.to_dict(),
        }


@dataclass(frozen=True)
class GroupingChange:
    """One way to divide the images.

    Attributes:
        by: its name.
        changes: by group and finding.
        too_small: groups in which no finding has enough images: name -> how many images.
    """

    by: str
    changes: tuple[GroupChange, ...]
    too_small: Mapping[str, int]

    @property
    def worst(self) -> GroupChange | None:
        """The group and finding that lost most AUROC; None where none is large enough."""
        return max(self.changes, key=lambda change: change.auroc_drop.value, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        worst = self.worst
        return {
            "worst": None if worst is None else {"group": worst.group, "finding": worst.finding},
            "changes": [change.to_dict() for change in self.changes],
            NOT_ENOUGH_DATA: dict(self.too_small),
        }


def with_intersections(groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Groupings, and every two of them crossed ("sex and age": "F and 60+"); who is unknown in one is so in both."""
    crossed = {
        f"{first}{AND}{second}": tuple(
            UNKNOWN if UNKNOWN in pair else AND.join(pair) for pair in zip(groups[first], groups[second], strict=True)
        )
        for first, second in itertools.combinations(groups, 2)
    }
    return {**{by: tuple(names) for by, names in groups.items()}, **crossed}


def compare_groups(
    reference: Evaluation, candidate: Evaluation, groups: Mapping[str, Sequence[str]], *, margin: float
) -> tuple[GroupingChange, ...]:
    """Divide what two models were scored on, which has to be the same (`check_comparable`).

    Args:
        reference: the model before compression.
        candidate: what came of it.
        groups: grouping -> the group of each image.
        margin: what the AUROC of a finding in a group may lose.

    Raises:
        DataError: a grouping does not name one group per image.
    """
    return tuple(_divide(reference, candidate, by, names, margin) for by, names in groups.items())


def _divide(
    reference: Evaluation, candidate: Evaluation, by: str, names: Sequence[str], margin: float
) -> GroupingChange:
    if len(names) != len(reference.labels):
        raise DataError(f"expected one {by} per image, got {len(names)} for {len(reference.labels)} images")
    member = np.asarray(names)
    measured: list[_Measured] = []
    too_small = {}
    for name in sorted(set(names), key=lambda name: (name == UNKNOWN, name)):
        rows = _measure(reference, candidate, name, member == name)
        measured += rows
        if not rows:
            too_small[name] = int((member == name).sum())
    judged = judge([row.loss for row in measured], margin, [""] * len(measured))
    changes = tuple(
        GroupChange(by, row.group, row.finding, *row.counts, row.auroc_drop, row.tpr_drop, verdict)
        for row, verdict in zip(measured, judged, strict=True)
    )
    return GroupingChange(by, changes, too_small)


@dataclass(frozen=True)
class _Measured:
    """A group and finding before it is judged among the others."""

    group: str
    finding: str
    counts: tuple[int, int]
    loss: Loss
    auroc_drop: Interval
    tpr_drop: Interval


def _measure(reference: Evaluation, candidate: Evaluation, group: str, images: Flags) -> list[_Measured]:
    """The findings of which the group has enough images."""
    labels = reference.labels[images]
    positives, negatives = count_images(labels)
    columns = np.flatnonzero(np.minimum(positives, negatives) >= ENOUGH_IMAGES)
    if not len(columns):
        return []
    options: dict[str, Any] = {"samples": reference.samples, "seed": reference.seed}
    patients = [patient for patient, flag in zip(reference.patients, images, strict=True) if flag]
    truth = labels[:, columns]
    rankings = [scored.ranking[images][:, columns] for scored in (reference, candidate)]
    before, after = (auroc_per_finding(truth, ranking) for ranking in rankings)
    drawn_before, drawn_after = (auroc_samples(truth, ranking, patients, **options) for ranking in rankings)
    lost = _lost_calls(reference, candidate, images, columns, truth)
    drawn_lost = mean_samples(lost, patients, **options)
    rows = []
    for place, column in enumerate(columns):
        drop, drawn = float(before[place] - after[place]), drawn_before[:, place] - drawn_after[:, place]
        rarer, carriers = int(min(positives[column], negatives[column])), count_carriers(truth[:, place], patients)
        same = same_order(rankings[0][:, place], rankings[1][:, place])
        mean_lost = math.nan if np.isnan(lost[:, place]).all() else float(np.nanmean(lost[:, place]))
        rows.append(
            _Measured(
                group,
                reference.findings[column],
                (int(positives[column]), int(negatives[column])),
                Loss.of(drop, drawn, rarer, carriers, same=same),
                interval(drop, drawn, carriers=carriers),
                UNDEFINED if math.isnan(mean_lost) else interval(mean_lost, drawn_lost[:, place], carriers=carriers),
            )
        )
    return rows


def _lost_calls(
    reference: Evaluation,
    candidate: Evaluation,
    images: Flags,
    columns: npt.NDArray[np.int64],
    truth: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """(images of the group, columns): of those with a finding 1 where its call was lost, -1 where won; else nan."""
    if reference.decisions is None or candidate.decisions is None:
        return np.full(truth.shape, np.nan)
    before, after = (
        decisions[images][:, columns].astype(np.float64) for decisions in (reference.decisions, candidate.decisions)
    )
    return np.where(truth == 1, before - after, np.nan)

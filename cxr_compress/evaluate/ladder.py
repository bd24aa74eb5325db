"""Several candidates of one reference: where harm begins, and which images compression moves most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.evaluate.comparison import Comparison
from cxr_compress.evaluate.finding import or_none
from cxr_compress.evaluate.score import Evaluation
from cxr_compress.evaluate.verdict import NOT_INFERIOR, WORSE
from cxr_compress.metrics import mid_ranks
from cxr_compress.metrics.ranking import mean_defined


@dataclass(frozen=True)
class Onset:
    """Where harm to a finding begins on a ladder of candidates.

    Attributes:
        finding: its name.
        last_good: the last candidate up to which each is shown not inferior; "" for none.
        first_worse: the first that is shown worse; "" for none.
    """

    finding: str
    last_good: str
    first_worse: str

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {"last_not_inferior": self.last_good or None, "first_worse": self.first_worse or None}


def find_onsets(ladder: Sequence[Comparison]) -> list[Onset]:
    """Onsets of labeled comparisons with one reference, from the least compressed candidate to the most."""
    onsets = []
    for place, change in enumerate(ladder[0].findings if ladder else ()):
        last_good = first_worse = ""
        going_well = True
        for comparison in ladder:
            judged = comparison.findings[place].judged
            verdict = "" if judged is None else judged.verdict
            going_well = going_well and verdict == NOT_INFERIOR
            last_good = comparison.name if going_well else last_good
            first_worse = first_worse or (comparison.name if verdict == WORSE else "")
        onsets.append(Onset(change.finding, last_good, first_worse))
    return onsets


@dataclass(frozen=True, eq=False)
class MovedImages:
    """The images whose place among all others changes most, over candidates and findings, beside the rest.

    Attributes:
        images: int64 (m,) their numbers, the most moved first.
        shift: (m,) mean change of the rank, as a share of all images.
        worst: (m,) the finding that moved most.
        flipped: (m,) decisions that differ from the reference's, over candidates; 0 where nothing is decided.
        findings: (m,) how many findings each has; nan where no label is known.
        findings_of_moved: mean of that.
        findings_of_rest: the same of all other images.
    """

    images: npt.NDArray[np.int64]
    shift: npt.NDArray[np.float64]
    worst: tuple[str, ...]
    flipped: npt.NDArray[np.int64]
    findings: npt.NDArray[np.float64]
    findings_of_moved: float
    findings_of_rest: float

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {
            "images": len(self.images),
            "findings_an_image": or_none(self.findings_of_moved),
            "findings_an_image_of_the_rest": or_none(self.findings_of_rest),
        }

    def rows(self) -> list[list[Any]]:
        """A header, and a row per image."""
        header = ["image", "mean_rank_change", "finding", "decisions_changed", "findings"]
        counts = [None if np.isnan(count) else int(count) for count in self.findings]
        columns = (self.images.tolist(), self.shift.tolist(), self.worst, self.flipped.tolist(), counts)
        return [header, *map(list, zip(*columns, strict=True))]


def find_moved_images(
    reference: Evaluation, candidates: Sequence[Evaluation], images: npt.NDArray[np.int64], count: int
) -> MovedImages:
    """The images that compression moves most.

    Args:
        reference: the model before compression.
        candidates: what came of it, scored on the same images.
        images: int64 (n,) their numbers.
        count: how many are wanted; at most half of all, so that a rest is there to be compared with.

    Source: after Hooker et al. 2020, "Characterising bias in compressed models", whose images are those with another
    predicted class; a rank tells images apart where no decision, or each, changes.
    """
    before = _places(reference)
    shifts = np.mean([np.abs(_places(candidate) - before) for candidate in candidates], axis=0)
    total = shifts.mean(axis=1)
    moved = np.argsort(-total, kind="stable")[: min(count, len(total) // 2)]
    flipped = np.zeros(len(total), np.int64)
    for candidate in candidates:
        if candidate.decisions is not None and reference.decisions is not None:
            flipped += (candidate.decisions != reference.decisions).sum(axis=1)
    known = np.isfinite(reference.labels).any(axis=1)
    findings = np.where(known, np.nansum(reference.labels, axis=1), np.nan).astype(np.float64)
    rest = np.ones(len(total), bool)
    rest[moved] = False
    return MovedImages(
        np.asarray(images)[moved],
        total[moved],
        tuple(reference.findings[column] for column in shifts[moved].argmax(axis=1)),
        flipped[moved],
        findings[moved],
        mean_defined(findings[moved]),
        mean_defined(findings[rest]),
    )


def _places(scored: Evaluation) -> npt.NDArray[np.float64]:
    """(n, k): the rank of each image, as a share of all."""
    return np.stack([mid_ranks(column) for column in scored.ranking.T], axis=1) / len(scored.labels)

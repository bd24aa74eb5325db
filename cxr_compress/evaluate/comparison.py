"""What compression did to each finding: a candidate beside its reference on the same images, and a verdict on each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.errors import DataError
from cxr_compress.evaluate.agreement import Agreement, measure_agreement, share_of
from cxr_compress.evaluate.degradation import Degradation, check_comparable, compare, no_better_than_chance
from cxr_compress.evaluate.finding import NOT_ENOUGH_DATA, UNDEFINED, FindingScore, interval_dict, or_none
from cxr_compress.evaluate.score import Answers, Evaluation, Floats
from cxr_compress.evaluate.verdict import Judged, judge
from cxr_compress.metrics import (
    Interval,
    Loss,
    count_carriers,
    interval,
    mean_samples,
    same_order,
    sensitivity_specificity,
)

Flags = npt.NDArray[np.bool_]
INHERITED, OWN = "inherited", "own"
PER = 1000  # rates of new errors are for so many images
_MOST_CODES = 256  # of an int8 output
_ON_GRID = 1e-3  # of a step
_LIKELY = 1e-5  # float32 probabilities nearer to 0 or 1 do not give their logit back

RESAMPLED = "resampled"  # patients, in a JSON


@dataclass(frozen=True)
class Decided:
    """What a candidate decides at one threshold, beside what its reference decides at its own.

    Attributes:
        threshold: on the candidate's probability; nan for classes that exclude one another.
        sensitivity: of the candidate; nan without labels.
        specificity: likewise.
        sensitivity_drop: the reference's minus that, on the same resampled patients.
        specificity_drop: likewise.
        new_misses: positions of the images with the finding that the reference calls and the candidate does not.
        new_false_alarms: of those without it that only the candidate calls.
        new_miss_rate: per 1,000 images of known label.
        new_false_alarm_rate: likewise.
        flips: how many decisions differ, labels or not.
        near: how many of these have a score within one quantization step of the threshold; None where the candidate
            has no such step.
    """

    threshold: float
    sensitivity: float
    specificity: float
    sensitivity_drop: Interval
    specificity_drop: Interval
    new_misses: tuple[int, ...]
    new_false_alarms: tuple[int, ...]
    new_miss_rate: Interval
    new_false_alarm_rate: Interval
    flips: int
    near: int | None

    def to_dict(self, images: npt.NDArray[np.int64] | None) -> dict[str, Any]:
        """Gives JSON-ready values; images by their numbers, or none of them."""
        listed = {"new_misses": self.new_misses, "new_false_alarms": self.new_false_alarms}
        rates = ("sensitivity_drop", "specificity_drop", "new_miss_rate", "new_false_alarm_rate")
        return {
            **{name: or_none(getattr(self, name)) for name in ("threshold", "sensitivity", "specificity")},
            **{name: interval_dict(getattr(self, name)) for name in rates},
            "rates_per_images": PER,
            **({} if images is None else {name: images[list(places)].tolist() for name, places in listed.items()}),
            "flips": self.flips,
            "flips_within_a_step": self.near,
        }


@dataclass(frozen=True)
class FindingChange:
    """One finding, before and after.

    Attributes:
        before: score of the reference.
        after: score of the candidate.
        auroc_drop: before minus after, on the same resampled patients, like what follows.
        ap_drop: of the average precision.
        judged: what the drop shows; None without labels.
        decided: `INHERITED` (the reference's threshold on the candidate's probability) and `OWN` (the candidate's
            threshold, as its file has it) -> what is decided then; without what the models do not have.
        note: what a reader has to know of this row; "" for nothing.
    """

    before: FindingScore
    after: FindingScore
    auroc_drop: Interval
    ap_drop: Interval
    judged: Judged | None
    decided: Mapping[str, Decided]
    note: str = ""

    @property
    def finding(self) -> str:
        """Its name."""
        return self.before.finding


@dataclass(frozen=True, eq=False)
class Comparison:
    """A candidate beside its reference.

    Attributes:
        name: of the candidate.
        images: int64 (n,) their numbers.
        own_patients: every image counts as a patient of its own, because nobody said otherwise.
        margin: of the verdicts.
        findings: one change each.
        degradation: over all findings; None without labels.
        agreement: of logits and decisions, labels or not; None where a model decides nothing.
    """

    name: str
    images: npt.NDArray[np.int64]
    own_patients: bool
    margin: float
    findings: tuple[FindingChange, ...]
    degradation: Degradation | None
    agreement: Agreement | None
    notes: tuple[str, ...] = field(default=())

    @property
    def labeled(self) -> bool:
        """Whether anything is known of the images."""
        return self.degradation is not None

    def to_dict(self, *, list_images: bool = True) -> dict[str, Any]:
        """Gives JSON-ready values: summaries, and the images that are decided otherwise, by their numbers.

        Args:
            list_images: without it nothing of a single image is among them.
        """
        numbers = self.images if list_images else None
        agreed = {} if self.agreement is None else self.agreement.findings
        rows = {}
        for change in self.findings:
            before, after = change.before, change.after
            rows[change.finding] = {
                "positives": before.positives,
                "negatives": before.negatives,
                "auroc_before": interval_dict(before.auroc),
                "auroc_after": interval_dict(after.auroc),
                "auroc_drop": interval_dict(change.auroc_drop),
                "average_precision_drop": interval_dict(change.ap_drop),
                **({} if change.judged is None else change.judged.to_dict()),
                "before": {
                    name: or_none(getattr(before, name)) for name in ("threshold", "sensitivity", "specificity")
                },
                "at_threshold": {rule: decided.to_dict(numbers) for rule, decided in change.decided.items()},
                "ece_before": or_none(before.ece),
                "ece_after": or_none(after.ece),
                "agreement": agreed[change.finding].to_dict() if change.finding in agreed else None,
                "note": change.note,
            }
        return {
            "name": self.name,
            "images": len(self.images),
            "labeled": self.labeled,
            "patients": "none given: images are resampled" if self.own_patients else RESAMPLED,
            "notes": list(self.notes),
            "mean": None if self.degradation is None else self.degradation.to_dict(),
            "findings": rows,
        }


def compare_models(
    name: str, reference: Evaluation, candidate: Evaluation, images: npt.NDArray[np.int64], *, margin: float
) -> Comparison:
    """Compare two models that were scored on the same images with the same resampling.

    Args:
        name: of the candidate.
        reference: the model before compression.
        candidate: what came of it.
        images: int64 (n,) the numbers of the images, by which they are listed.
        margin: what the AUROC of a finding may lose.

    Raises:
        DataError: as `compare`; or other resampled patients.
    """
    if (reference.samples, reference.seed) != (candidate.samples, candidate.seed):
        raise DataError("a comparison needs two evaluations with one number of resamplings and one seed: score both so")
    labeled = bool(np.isfinite(reference.labels).any())
    check_comparable(candidate, reference)
    changes = _changes(reference, candidate, margin, labeled=labeled)
    agreement = None
    if reference.decisions is not None and candidate.decisions is not None:
        agreement = measure_agreement(
            _answers(candidate),
            _answers(reference),
            reference.patients,
            reference.findings,
            samples=reference.samples,
            seed=reference.seed,
        )
    return Comparison(
        name,
        np.asarray(images, np.int64),
        len(set(reference.patients)) == len(images),
        margin,
        tuple(changes),
        compare(candidate, reference) if labeled else None,
        agreement,
        tuple(_notes(reference, candidate)),
    )


def _answers(scored: Evaluation) -> Answers:
    return Answers(scored.logits, scored.shares, scored.decisions, scored.activation)


def _notes(reference: Evaluation, candidate: Evaluation) -> list[str]:
    """What keeps parts of the comparison from being there."""
    notes = []
    if reference.decisions is None or candidate.decisions is None:
        notes.append("a model without thresholds decides nothing, so decisions are not compared")
    elif reference.shares is None:
        same = [
            before.threshold == after.threshold
            for before, after in zip(reference.scores, candidate.scores, strict=True)
        ]
        if all(same):
            notes.append("the candidate has the thresholds of the reference: none were derived again")
        if (reference.probabilities is None) != (candidate.probabilities is None):
            which = "reference" if reference.probabilities is None else "candidate"
            notes.append(f"the {which} gives no calibrated probability: an inherited threshold may mean another thing")
    return notes


def _changes(reference: Evaluation, candidate: Evaluation, margin: float, *, labeled: bool) -> list[FindingChange]:
    """The changes, finding by finding."""
    if reference.drawn is None or candidate.drawn is None:
        raise DataError("a comparison needs evaluations that keep what they resampled: score both with score_logits")
    drops = reference.drawn.auroc - candidate.drawn.auroc
    ap_drops = reference.drawn.average_precision - candidate.drawn.average_precision
    losses, reasons, intervals, carriers, decided = [], [], [], [], []
    for k, (before, after) in enumerate(zip(reference.scores, candidate.scores, strict=True)):
        same = same_order(reference.ranking[:, k], candidate.ranking[:, k])
        images = min(before.positives, before.negatives)
        carriers.append(count_carriers(reference.labels[:, k], reference.patients))
        losses.append(Loss.of(before.auroc.value - after.auroc.value, drops[:, k], images, carriers[k], same=same))
        intervals.append(interval(losses[k].value, drops[:, k], carriers=carriers[k]))
        few = "" if before.enough_data else f"{NOT_ENOUGH_DATA} ({images} of the rarer class)"
        reasons.append(few or no_better_than_chance(before.auroc))
        decided.append(_decide(reference, candidate, k))
    verdicts = judge(losses, margin, reasons) if labeled else [None] * len(losses)
    return [
        FindingChange(
            before,
            after,
            intervals[k],
            interval(
                before.average_precision.value - after.average_precision.value, ap_drops[:, k], carriers=carriers[k]
            ),
            verdicts[k],
            decided[k],
            (reasons[k] or _note(intervals[k])) if labeled else "",
        )
        for k, (before, after) in enumerate(zip(reference.scores, candidate.scores, strict=True))
    ]


def _note(drop: Interval) -> str:
    return "better than its reference" if drop.high < 0 else ""


def _decide(reference: Evaluation, candidate: Evaluation, k: int) -> dict[str, Decided]:
    """What one finding is decided to be, by the threshold of either model."""
    if reference.decisions is None or candidate.decisions is None:
        return {}
    ways = {OWN: (candidate.decisions[:, k], candidate.scores[k].threshold)}
    if reference.shares is None:
        inherited = reference.scores[k].threshold
        calls = _chances(candidate, k) >= np.float32(inherited)
        ways = {INHERITED: (calls, inherited), **ways}
    return {rule: _decided(reference, candidate, k, calls, threshold) for rule, (calls, threshold) in ways.items()}


def _chances(scored: Evaluation, k: int) -> Floats:
    """What thresholds are on: (n,)."""
    if scored.probabilities is not None:
        return scored.probabilities[:, k]
    return probabilities_of(scored.logits[:, k], "sigmoid")


def _decided(reference: Evaluation, candidate: Evaluation, k: int, calls: Flags, threshold: float) -> Decided:
    truth = reference.labels[:, k]
    before = np.zeros(len(truth), bool) if reference.decisions is None else reference.decisions[:, k]
    options: dict[str, Any] = {"samples": reference.samples, "seed": reference.seed}
    known = np.isfinite(truth)
    misses, alarms = (truth == 1) & before & ~calls, (truth == 0) & ~before & calls
    changes = calls != before
    near = _near(candidate, k, threshold)
    sensitivity, specificity = sensitivity_specificity(truth, calls)
    patients = [patient for patient, flag in zip(reference.patients, known, strict=True) if flag]

    def rate(new: Flags) -> Interval:
        return _per_thousand(share_of(new[known][:, None], patients, **options)) if patients else UNDEFINED

    return Decided(
        threshold=threshold,
        sensitivity=sensitivity,
        specificity=specificity,
        sensitivity_drop=_drop(truth == 1, before, calls, reference),
        specificity_drop=_drop(truth == 0, ~before, ~calls, reference),
        new_misses=tuple(np.flatnonzero(misses).tolist()),
        new_false_alarms=tuple(np.flatnonzero(alarms).tolist()),
        new_miss_rate=rate(misses),
        new_false_alarm_rate=rate(alarms),
        flips=int(changes.sum()),
        near=None if near is None else int((changes & near).sum()),
    )


def _drop(of_class: Flags, right_before: Flags, right_after: Flags, reference: Evaluation) -> Interval:
    """How much rarer images of one class are decided rightly, with its paired interval."""
    if not of_class.any():
        return UNDEFINED
    lost = np.where(of_class, right_before.astype(np.float64) - right_after, np.nan)
    drawn = mean_samples(lost[:, None], reference.patients, samples=reference.samples, seed=reference.seed)
    carriers = len(np.unique(np.asarray(reference.patients)[of_class]))
    return interval(float(np.nanmean(lost)), drawn[:, 0], carriers=carriers)


def _per_thousand(share: Interval) -> Interval:
    return Interval(PER * share.value, PER * share.low, PER * share.high)


def _near(scored: Evaluation, k: int, threshold: float) -> Flags | None:
    """Which images score within one quantization step of a threshold; None where the scores have no such step."""
    step = _step(scored.logits)
    if step is None or not 0 < threshold < 1:
        return None
    z, chances = scored.logits[:, k].astype(np.float64), _chances(scored, k).astype(np.float64)
    likely = np.flatnonzero((chances > _LIKELY) & (chances < 1 - _LIKELY))
    if not len(likely) or np.ptp(z[likely]) == 0:
        return None
    low, high = likely[np.argmin(z[likely])], likely[np.argmax(z[likely])]
    odds = np.log(chances[[low, high]]) - np.log1p(-chances[[low, high]])
    slope = (odds[1] - odds[0]) / (z[high] - z[low])  # of the calibration, which is a line on the logits
    if slope == 0:
        return None
    cut = z[low] + (math.log(threshold / (1 - threshold)) - odds[0]) / slope
    return np.asarray(np.abs(z - cut) <= step)


def _step(logits: Floats) -> float | None:
    """The value of one code of an int8 output, whose logits lie on a grid of at most 256 values; None of others."""
    codes = np.unique(logits).astype(np.float64)
    if not 1 < len(codes) <= _MOST_CODES:
        return None
    spread = codes[-1] - codes[0]
    step = float(spread / np.round(spread / np.diff(codes).min()))  # of the whole span: one difference is rounded more
    places = (codes - codes[0]) / step
    on_grid = np.abs(places - np.round(places)).max() <= _ON_GRID and places[-1] < _MOST_CODES
    return step if on_grid else None

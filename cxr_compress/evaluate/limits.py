"""Whether a candidate is within what the user allows it to lose, over all findings and groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.evaluate.agreement import BROKEN, HOLDS, TOO_FEW, check_limit
from cxr_compress.evaluate.comparison import Comparison
from cxr_compress.evaluate.group_changes import GroupingChange
from cxr_compress.evaluate.verdict import NOT_INFERIOR, WORSE
from cxr_compress.metrics import LEVEL, holm


@dataclass(frozen=True)
class Limits:
    """What a candidate may lose beside the margin of its verdicts; None: no limit.

    Attributes:
        max_auroc_drop: of the mean over findings, as measured.
        max_new_miss_rate: new misses of a finding per 1,000 images, at the candidate's own threshold.
        max_group_drop: of the AUROC of a finding in a group.
        max_ece: expected calibration error of a finding, as measured.
    """

    max_auroc_drop: float | None = None
    max_new_miss_rate: float | None = None
    max_group_drop: float | None = None
    max_ece: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate.

    Attributes:
        verdict: `HOLDS`, `BROKEN` or `TOO_FEW`.
        broken: what is, a sentence each.
        undecided: what the images are too few to tell, likewise.
    """

    verdict: str
    broken: tuple[str, ...]
    undecided: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {"verdict": self.verdict, "broken": list(self.broken), "undecided": list(self.undecided)}


def check_limits(comparison: Comparison, groupings: Sequence[GroupingChange], limits: Limits) -> Outcome:
    """Sum up a comparison with labels; without them nothing can hold, and nothing is broken.

    What has an interval is broken where all of it is beyond the limit, and undecided where the limit lies inside.
    """
    if not comparison.labeled:
        return Outcome(TOO_FEW, (), ("there are no labels: agreement says nothing about who is right",))
    states = [
        *_of_findings(comparison),
        *_of_mean(comparison, limits),
        *_of_misses(comparison, limits),
        *_of_calibration(comparison, limits),
        *(state for grouping in groupings for state in _of_groups(grouping, limits)),
    ]
    broken, undecided = (tuple(text for state, text in states if state == which) for which in (BROKEN, TOO_FEW))
    return Outcome(BROKEN if broken else TOO_FEW if undecided else HOLDS, broken, undecided)


State = tuple[str, str]


def _of_findings(comparison: Comparison) -> Iterator[State]:
    """The verdicts of all findings."""
    for change in comparison.findings:
        if change.judged is None:
            continue
        verdict = change.judged.verdict
        state = {NOT_INFERIOR: HOLDS, WORSE: BROKEN}.get(verdict, TOO_FEW)
        more = change.judged.more_positives
        needed = f", {more:,} more of the rarer class would probably tell" if more else ""
        yield state, f"{change.finding}: {verdict}{needed}"


def _of_mean(comparison: Comparison, limits: Limits) -> Iterator[State]:
    if limits.max_auroc_drop is None or comparison.degradation is None:
        return
    drop = comparison.degradation.auroc_drop.value
    yield (
        TOO_FEW if math.isnan(drop) else BROKEN if drop > limits.max_auroc_drop else HOLDS,
        f"mean AUROC drop {drop:.4f}, at most {limits.max_auroc_drop:g}",
    )


def _of_misses(comparison: Comparison, limits: Limits) -> Iterator[State]:
    if limits.max_new_miss_rate is None:
        return
    for change in comparison.findings:
        decided = change.decided.get("own")
        if decided is None:
            yield TOO_FEW, f"{change.finding}: new misses are unknown, for want of thresholds"
            continue
        rate = decided.new_miss_rate
        text = f"{rate.value:.1f} new misses [{rate.low:.1f}, {rate.high:.1f}] per 1,000 images"
        yield (
            check_limit(rate, limits.max_new_miss_rate),
            f"{change.finding}: {text}, at most {limits.max_new_miss_rate:g}",
        )


def _of_calibration(comparison: Comparison, limits: Limits) -> Iterator[State]:
    if limits.max_ece is None:
        return
    for change in comparison.findings:
        ece = change.after.ece
        if math.isnan(ece):
            yield TOO_FEW, f"{change.finding}: no calibrated probability, so its error is unknown"
        else:
            text = f"{change.finding}: calibration error {ece:.3f}, at most {limits.max_ece:g}"
            yield (BROKEN if ece > limits.max_ece else HOLDS), text


def _of_groups(grouping: GroupingChange, limits: Limits) -> Iterator[State]:
    """A group that is worse is broken with or without a limit; one of many that is merely uncertain is no news."""
    beyond = []
    if limits.max_group_drop is not None:
        beyond = holm([one.judged.loss.chance_if(limits.max_group_drop, so_small=False) for one in grouping.changes])
    for place, change in enumerate(grouping.changes):
        where, drop = f"{change.finding} in {change.group} ({grouping.by})", change.auroc_drop
        text = f"{where}: AUROC drop {drop.value:.3f} [{drop.low:.3f}, {drop.high:.3f}]"
        if change.judged.verdict == WORSE:
            yield BROKEN, f"{text}, worse"
        elif beyond and beyond[place] <= LEVEL:
            yield BROKEN, f"{text}, at most {limits.max_group_drop:g}"
        elif limits.max_group_drop is not None and not drop.high <= limits.max_group_drop:
            yield TOO_FEW, f"{text}, at most {limits.max_group_drop:g}"

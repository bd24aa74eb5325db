"""A comparison of models as text for a terminal and as flat rows for a spreadsheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.evaluate import (
    INHERITED,
    OWN,
    Comparison,
    Decided,
    FindingChange,
    GroupChange,
    GroupingChange,
    MovedImages,
    Onset,
    Outcome,
)
from cxr_compress.evaluate.agreement import SAYS_NOTHING
from cxr_compress.evaluate.finding import interval_dict
from cxr_compress.metrics import ENOUGH_IMAGES, Interval
from cxr_compress.report.cells import UNKNOWN, draw_table, interval

COLUMNS = (
    *("candidate", "by", "group", "finding", "positives", "negatives", "auroc_before", "auroc_after"),
    *("auroc_drop", "auroc_drop_low", "auroc_drop_high", "ap_drop", "ap_drop_low", "ap_drop_high"),
    *("verdict", "margin", "p_not_inferior", "p_worse", "power_if_equal", "more_of_the_rarer_class"),
    *("sensitivity_before", "sensitivity_inherited", "sensitivity_own", "sensitivity_drop_own"),
    *("sensitivity_drop_own_low", "sensitivity_drop_own_high"),
    *("specificity_before", "specificity_inherited", "specificity_own"),
    *("new_misses_per_1000_inherited", "new_misses_per_1000_own"),
    *("new_false_alarms_per_1000_inherited", "new_false_alarms_per_1000_own", "flips", "flips_within_a_step"),
    *("ece_before", "ece_after", "spearman", "kappa", "logit_distance", "note"),
)


@dataclass(frozen=True, eq=False)
class Compared:
    """A candidate with all that was found.

    Attributes:
        comparison: finding by finding.
        groupings: group by group.
        outcome: what came of it.
    """

    comparison: Comparison
    groupings: tuple[GroupingChange, ...]
    outcome: Outcome


def render_compared(compared: Compared) -> str:
    """The outcome, a table of findings, one of decisions, one of agreement, and the worst of each grouping."""
    comparison = compared.comparison
    parts = [f"{comparison.name}: {_headline(compared.outcome)}"]
    if comparison.labeled:
        parts += [_mean(comparison), _findings(comparison.findings)]
    else:
        parts.append(f"There are no labels: {SAYS_NOTHING}.")
    if any(change.decided for change in comparison.findings):
        parts.append(_decisions(comparison))
    if comparison.agreement is not None:
        parts.append(_agreement(comparison))
    if compared.groupings:
        parts.append(_groups(compared.groupings))
    notes = list(comparison.notes)
    if comparison.own_patients:
        notes.append("each image counts as a patient of its own: where patients have several, intervals are too narrow")
    if notes:
        parts.append("\n".join(f"note: {note}" for note in notes))
    return "\n\n".join(parts)


def _headline(outcome: Outcome) -> str:
    """The verdict and its reasons."""
    titles = {"broken": "BROKEN", "holds": "holds"}
    title = titles.get(outcome.verdict, "UNDECIDED, not enough images to tell")
    reasons = outcome.broken or outcome.undecided
    return "\n".join([title, *(f"  {reason}" for reason in reasons)])


def _mean(comparison: Comparison) -> str:
    """The means over findings, and of classes that exclude one another the accuracies."""
    degradation = comparison.degradation
    if degradation is None:
        return ""
    drops = {
        "AUROC, mean over findings": degradation.auroc_drop,
        "accuracy": degradation.accuracy_drop,
        "balanced accuracy": degradation.balanced_accuracy_drop,
    }
    lines = [f"drop of {what}: {_signed(drop)}" for what, drop in drops.items() if drop is not None]
    return "\n".join(lines)


def _findings(changes: Sequence[FindingChange]) -> str:
    rows = []
    for change in changes:
        before, after, judged = change.before, change.after, change.judged
        more = None if judged is None else judged.more_positives
        rows.append(
            [
                change.finding,
                f"{before.positives:,}/{before.images:,}",
                f"{_number(before.auroc.value)} -> {_number(after.auroc.value)}",
                _signed(change.auroc_drop),
                _signed(change.ap_drop),
                UNKNOWN if judged is None else judged.verdict,
                f"{more:,}" if more is not None else "",
                change.note,
            ]
        )
    margin = next((change.judged.margin for change in changes if change.judged is not None), math.nan)
    titles = ["finding", "with it/images", "AUROC", "drop [95 % CI]", "drop of AP [95 % CI]", "verdict", "more", "note"]
    return "\n".join(
        [
            _filled(rows, titles),
            f"not inferior: a drop of {margin:g} or more is ruled out, after Holm over the findings; more: images of "
            "the rarer class that would probably tell.",
        ]
    )


def _decisions(comparison: Comparison) -> str:
    rows = []
    for change in comparison.findings:
        for place, (rule, decided) in enumerate(change.decided.items()):
            rows.append([change.finding if place == 0 else "", *_decision_cells(change, rule, decided)])
    titles = [
        *("finding", "threshold", "sensitivity", "drop [95 % CI]", "specificity", "drop [95 % CI]"),
        *("new misses per 1,000", "new false alarms per 1,000", "flips", "within a step"),
    ]
    return "\n".join(
        [
            _filled(rows, titles),
            "inherited: the reference's threshold on the candidate's probability; own: that of the candidate's file.",
        ]
    )


def _decision_cells(change: FindingChange, rule: str, decided: Decided) -> list[str]:
    before = change.before
    threshold = rule if math.isnan(decided.threshold) else f"{rule} {decided.threshold:.3f}"
    return [
        threshold,
        _pair(before.sensitivity, decided.sensitivity),
        _signed(decided.sensitivity_drop),
        _pair(before.specificity, decided.specificity),
        _signed(decided.specificity_drop),
        _rate(len(decided.new_misses), decided.new_miss_rate),
        _rate(len(decided.new_false_alarms), decided.new_false_alarm_rate),
        f"{decided.flips:,}",
        "" if decided.near is None else f"{decided.near:,}",
    ]


def _agreement(comparison: Comparison) -> str:
    rows = []
    agreed = {} if comparison.agreement is None else comparison.agreement.findings
    for change in comparison.findings:
        one = agreed[change.finding]
        ece = _pair(change.before.ece, change.after.ece)
        rows.append(
            [
                change.finding,
                ece,
                *(interval(interval_dict(found)) for found in (one.spearman, one.kappa, one.logit_distance)),
            ]
        )
    return _filled(rows, ["finding", "calibration error", "Spearman", "kappa", "logits apart"])


def _groups(groupings: Sequence[GroupingChange]) -> str:
    rows = []
    for grouping in groupings:
        worst = grouping.worst
        small = f"{len(grouping.too_small)} groups too small" if grouping.too_small else ""
        if worst is None:
            rows.append([grouping.by, UNKNOWN, "", "", "", "", "", small])
            continue
        verdicts = [change.judged.verdict for change in grouping.changes]
        counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        rows.append([grouping.by, *_group_cells(worst), counted, small])
    titles = ["by", "worst group", "finding", "AUROC drop [95 % CI]", "TPR drop [95 % CI]", "verdict", "all", "note"]
    return "\n".join(
        [
            _filled(rows, titles),
            f"Groups with {ENOUGH_IMAGES} images or more with and without a finding; Holm over all of a row's.",
        ]
    )


def _group_cells(change: GroupChange) -> list[str]:
    return [
        change.group,
        f"{change.finding} ({change.positives:,}/{change.positives + change.negatives:,})",
        _signed(change.auroc_drop),
        _signed(change.tpr_drop),
        change.judged.verdict,
    ]


def render_ladder(onsets: Sequence[Onset], moved: MovedImages) -> str:
    """Where harm begins on a ladder of candidates, and what the most moved images have in common."""
    parts = []
    if onsets:
        rows = [[one.finding, one.last_good or "none", one.first_worse or "none"] for one in onsets]
        titles = ["finding", "last candidate shown not inferior", "first shown worse"]
        parts.append(draw_table(rows, titles, left=len(titles)))
    findings = ""
    if not math.isnan(moved.findings_of_moved):
        findings = f": {moved.findings_of_moved:.2f} findings an image, the rest {_number(moved.findings_of_rest, 2)}"
    parts.append(f"The {len(moved.images):,} images whose rank changes most{findings}.")
    return "\n\n".join(parts)


def comparison_rows(compared: Compared) -> list[list[Any]]:
    """A row per finding of all images and of every group, under `COLUMNS`; None where undefined."""
    comparison = compared.comparison
    rows = [_flat_finding(comparison, change) for change in comparison.findings]
    for grouping in compared.groupings:
        rows += [_flat_group(comparison.name, change) for change in grouping.changes]
    return [[_plain(row.get(column)) for column in COLUMNS] for row in rows]


def _flat_finding(comparison: Comparison, change: FindingChange) -> dict[str, Any]:
    before, after = change.before, change.after
    agreed = None if comparison.agreement is None else comparison.agreement.findings[change.finding]
    row = {
        "candidate": comparison.name,
        "by": "all",
        "group": "all",
        "finding": change.finding,
        "positives": before.positives,
        "negatives": before.negatives,
        "auroc_before": before.auroc.value,
        "auroc_after": after.auroc.value,
        **_bounds("auroc_drop", change.auroc_drop),
        **_bounds("ap_drop", change.ap_drop),
        **({} if change.judged is None else change.judged.to_dict()),
        "sensitivity_before": before.sensitivity,
        "specificity_before": before.specificity,
        "ece_before": before.ece,
        "ece_after": after.ece,
        "note": change.note,
    }
    if agreed is not None:
        row |= {name: getattr(agreed, name).value for name in ("spearman", "kappa", "logit_distance")}
    for rule, decided in change.decided.items():
        row |= {f"{name}_{rule}": getattr(decided, name) for name in ("sensitivity", "specificity")}
        row[f"new_misses_per_1000_{rule}"] = decided.new_miss_rate.value
        row[f"new_false_alarms_per_1000_{rule}"] = decided.new_false_alarm_rate.value
    if OWN in change.decided:
        own = change.decided[OWN]
        row |= _bounds("sensitivity_drop_own", own.sensitivity_drop)
        row |= {"flips": own.flips, "flips_within_a_step": own.near}
    return row


def _flat_group(candidate: str, change: GroupChange) -> dict[str, Any]:
    return {
        **change.to_dict(),
        "candidate": candidate,
        **_bounds("auroc_drop", change.auroc_drop),
        **_bounds("sensitivity_drop_own", change.tpr_drop),
        "note": change.judged.reason,
    }


def changed_rows(ladder: Sequence[Compared]) -> list[list[Any]]:
    """A header, and a row per image that one threshold or both newly decide wrongly: for a radiologist to look at."""
    rows: list[list[Any]] = [["candidate", "finding", "what", "image", INHERITED, OWN]]
    for compared in ladder:
        numbers = compared.comparison.images
        for change in compared.comparison.findings:
            for what, name in (("new miss", "new_misses"), ("new false alarm", "new_false_alarms")):
                by_rule = {rule: set(getattr(decided, name)) for rule, decided in change.decided.items()}
                for place in sorted(set().union(*by_rule.values())):
                    flags = [int(place in by_rule[rule]) if rule in by_rule else None for rule in (INHERITED, OWN)]
                    rows.append([compared.comparison.name, change.finding, what, int(numbers[place]), *flags])
    return rows


def _bounds(name: str, measured: Interval) -> dict[str, float]:
    return {name: measured.value, f"{name}_low": measured.low, f"{name}_high": measured.high}


def _plain(cell: Any) -> Any:
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _filled(rows: Sequence[Sequence[str]], titles: Sequence[str]) -> str:
    """A table without the columns that no row fills."""
    kept = [place for place in range(len(titles)) if any(row[place] not in ("", UNKNOWN) for row in rows)]
    return draw_table([[row[place] for place in kept] for row in rows], [titles[place] for place in kept])


def _pair(before: float, after: float) -> str:
    return UNKNOWN if math.isnan(before) and math.isnan(after) else f"{_number(before)} -> {_number(after)}"


def _rate(count: int, rate: Interval) -> str:
    if math.isnan(rate.value):
        return UNKNOWN
    return f"{rate.value:.1f} [{rate.low:.1f}, {rate.high:.1f}] ({count:,})"


def _signed(measured: Interval) -> str:
    return interval(interval_dict(measured), signed=True)


def _number(value: float, digits: int = 3) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.{digits}f}"

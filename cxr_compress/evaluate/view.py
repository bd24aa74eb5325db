"""An evaluation as text for a terminal and as flat rows for a spreadsheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from cxr_compress.evaluate.finding import NOT_ENOUGH_DATA, WORDS, ClassScore, FindingScore
from cxr_compress.evaluate.groups import Group, GroupFinding, Grouping
from cxr_compress.evaluate.score import Evaluation
from cxr_compress.metrics import ENOUGH_IMAGES, Interval

Cell = str | int | float | None
FLAT_COLUMNS = (
    "by",
    "group",
    "finding",
    "images",
    "positives",
    "auroc",
    "auroc_low",
    "auroc_high",
    "average_precision",
    "sensitivity",
    "specificity",
    "sensitivity_at_95_specificity",
    "specificity_at_95_sensitivity",
    "threshold",
    "brier",
    "ece",
    "mark",
)
_OF_CLASSES = tuple(f"{name}{end}" for name in ("accuracy", "balanced_accuracy") for end in ("", "_low", "_high"))
_MISSING = "-"


def render_evaluation(scored: Evaluation, groupings: Sequence[Grouping] = ()) -> str:
    """A table of findings, the means, and a table for each way to divide the images.

    Of classes that exclude one another the accuracies and the confusion matrix come first.

    Args:
        scored: all images.
        groupings: as `score_groups` gives them.
    """
    parts = [] if scored.classes is None else [render_classes(scored.classes)]
    parts += [render_findings(scored), *_means(scored)]
    parts += [render_grouping(grouping, scored.findings) for grouping in groupings]
    return "\n\n".join(parts)


def render_classes(measured: ClassScore) -> str:
    """Accuracy, balanced accuracy, and a table of true classes (rows) by predicted ones (columns)."""
    rows = [
        [name, *(f"{count:,}" for count in counts)]
        for name, counts in zip(measured.classes, measured.confusion.tolist(), strict=True)
    ]
    titles = ["true class", *(f"called {name}" for name in measured.classes)]
    return "\n".join(
        [
            f"{WORDS[0].upper()}{WORDS[1:]}.",
            f"accuracy {_interval(measured.accuracy) or _MISSING}, balanced accuracy "
            f"{_interval(measured.balanced_accuracy) or _MISSING} [95 % CI], {measured.images:,} images",
            "",
            _table(titles, rows, text_columns=titles[:1]),
        ]
    )


def render_findings(scored: Evaluation) -> str:
    """One line per finding; columns that no finding fills are left out."""
    rows = [_finding_row(score, exclusive=scored.shares is not None) for score in scored.scores]
    kept = [title for title in rows[0] if any(row[title] for row in rows)]
    return _table(
        kept,
        [[row[title] or ("" if title == "note" else _MISSING) for title in kept] for row in rows],
        text_columns=("finding", "class", "note"),
    )


def render_grouping(grouping: Grouping, findings: Sequence[str]) -> str:
    """One column per group: AUROC, and how many images with the finding of how many it rests on.

    Groups in which nothing can be given are named under the table instead.
    """
    empty = [group for group in grouping.groups if not _count_scored(group)]
    groups = [*(group for group in grouping.groups if _count_scored(group)), grouping.within]
    titles = [f"by {grouping.by}", *(group.name for group in groups)]
    rows = [[finding, *(_group_cell(group.scores[k]) for group in groups)] for k, finding in enumerate(findings)]
    if len(findings) > 1:
        rows.append(["mean of those given", *(_mean_cell(group) for group in groups)])
    rows.append(["images / patients", *(f"{group.images:,} / {group.patients:,}" for group in groups)])
    legend = [
        f"AUROC (images with the finding / images). {_MISSING} {NOT_ENOUGH_DATA}: fewer than {ENOUGH_IMAGES} images "
        "with or without it.",
        f"within {grouping.by}: an image is compared only with images of its own {grouping.by}.",
    ]
    if empty:
        named = ", ".join(f"{group.name} ({group.images:,} images)" for group in empty)
        legend.append(f"{NOT_ENOUGH_DATA} for any finding: {named}")
    return "\n".join([_table(titles, rows, text_columns=titles[:1]), *legend])


def flat_columns(scored: Evaluation) -> tuple[str, ...]:
    """The titles of `flat_rows`: of classes that exclude one another also the accuracies and what each was called."""
    if scored.classes is None:
        return FLAT_COLUMNS
    return (*FLAT_COLUMNS, *_OF_CLASSES, *(f"called_{name}" for name in scored.classes.classes))


def flat_rows(scored: Evaluation, groupings: Sequence[Grouping] = ()) -> list[list[Cell]]:
    """A row per finding of all images and of every group, under `flat_columns`; None where undefined."""
    rows = [[*_flat_finding(score), *_flat_class(scored.classes, k)] for k, score in enumerate(scored.scores)]
    for grouping in groupings:
        for group in (*grouping.groups, grouping.within):
            empty = [None] * (len(flat_columns(scored)) - len(FLAT_COLUMNS))
            rows += [[*_flat_group(grouping.by, group, score), *empty] for score in group.scores]
    return [[None if isinstance(cell, float) and np.isnan(cell) else cell for cell in row] for row in rows]


def _flat_class(measured: ClassScore | None, k: int) -> list[Cell]:
    """The accuracies, which are of all classes and stand in every row, and what the images of class k were called."""
    if measured is None:
        return []
    accuracies = [
        cell
        for found in (measured.accuracy, measured.balanced_accuracy)
        for cell in (found.value, found.low, found.high)
    ]
    return [*accuracies, *measured.confusion[k].tolist()]


def _finding_row(score: FindingScore, *, exclusive: bool) -> dict[str, str]:
    """The cells of one finding, "" where there is nothing to say."""
    return {
        "class" if exclusive else "finding": score.finding,
        "images": f"{score.images:,}",
        "positives": f"{score.positives:,}",
        "unknown": f"{score.unknown:,}" if score.unknown else "",
        f"{'one-vs-rest ' if exclusive else ''}AUROC [95 % CI]": _interval(score.auroc),
        "AP": _number(score.average_precision.value),
        "threshold": _number(score.threshold),
        "sensitivity": _number(score.sensitivity),
        "specificity": _number(score.specificity),
        "sens. at 95 % spec.": _number(score.sensitivity_at.value),
        "spec. at 95 % sens.": _number(score.specificity_at.value),
        "Brier": _number(score.brier.value),
        "ECE": _number(score.ece),
        "note": "" if score.enough_data else NOT_ENOUGH_DATA,
    }


def _means(scored: Evaluation) -> list[str]:
    """The two means, where several findings make one."""
    defined = sum(not np.isnan(score.auroc.value) for score in scored.scores)
    enough = sum(score.enough_data for score in scored.scores)
    if len(scored.scores) == 1:
        return []
    what = "one-vs-rest AUROC over classes" if scored.shares is not None else "AUROC over findings"
    lines = [f"mean {what} with enough data ({enough}): {_interval(scored.mean_auroc_enough_data) or _MISSING}"]
    if defined != enough:
        lines.append(f"mean AUROC over all defined findings ({defined}): {_interval(scored.mean_auroc) or _MISSING}")
    return ["\n".join(lines)]


def _group_cell(score: GroupFinding) -> str:
    counts = f"({score.positives:,}/{score.positives + score.negatives:,})"
    return f"{_number(score.auroc.value) if score.enough_data else _MISSING} {counts}"


def _mean_cell(group: Group) -> str:
    count = _count_scored(group)
    return f"{_number(group.mean_auroc.value)} ({count} findings)" if count else _MISSING


def _count_scored(group: Group) -> int:
    """For how many findings the group has enough images."""
    return sum(score.enough_data for score in group.scores)


def _flat_finding(score: FindingScore) -> list[Cell]:
    auroc, mark = score.auroc, "" if score.enough_data else NOT_ENOUGH_DATA
    measured: list[Cell] = [
        auroc.value,
        auroc.low,
        auroc.high,
        score.average_precision.value,
        score.sensitivity,
        score.specificity,
        score.sensitivity_at.value,
        score.specificity_at.value,
    ]
    tail: list[Cell] = [score.threshold, score.brier.value, score.ece, mark]
    return ["all", "all", score.finding, score.images, score.positives, *measured, *tail]


def _flat_group(by: str, group: Group, score: GroupFinding) -> list[Cell]:
    auroc, mark = score.auroc, "" if score.enough_data else NOT_ENOUGH_DATA
    images = score.positives + score.negatives
    counted: list[Cell] = [by, group.name, score.finding, images, score.positives, auroc.value, auroc.low, auroc.high]
    return [*counted, *[None] * (len(FLAT_COLUMNS) - len(counted) - 1), mark]


def _interval(measured: Interval) -> str:
    if np.isnan(measured.value):
        return ""
    bounds = "" if np.isnan(measured.low) else f" [{measured.low:.3f}, {measured.high:.3f}]"
    return f"{measured.value:.3f}{bounds}"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: Sequence[str]) -> str:
    aligned = ["left" if title in text_columns else "right" for title in titles]
    return tabulate(rows, titles, tablefmt="simple", disable_numparse=True, colalign=aligned)

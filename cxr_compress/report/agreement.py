"""What a report says of a run without labels: how far its files agree with the original, and what that does not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cxr_compress.evaluate.agreement import BROKEN, SAYS_NOTHING, TOO_FEW
from cxr_compress.report.cells import COST_HEADERS, cost_cells, count, draw_table, inside, interval

_MEASURES = {
    "spearman": "Spearman",
    "kappa": "kappa",
    "flips": "decisions changed",
    "logit_distance": "logits apart",
    "cam": "maps",
}
CAPTION = (
    "Agreement with the first row: share of the decisions that change; root mean square of the logits' difference in "
    "standard deviations of the original's; rank correlation; Cohen's kappa; mean correlation of the class activation "
    "maps"
)


def says_nothing() -> str:
    """The sentence that every text on agreement carries."""
    return f"There are no labels: {SAYS_NOTHING}."


def render_agreement_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per file: what it costs, and how far it is from the first."""
    body = [
        [
            *cost_cells(row),
            *(interval(inside(row, "agreement", name)) if index else "" for name in ("logit_distance", "flips")),
        ]
        for index, row in enumerate(rows)
    ]
    return draw_table(body, [*COST_HEADERS, "logits apart [95 % CI]", "decisions changed [95 % CI]"])


def render_finding_agreements(rows: Sequence[Mapping[str, Any]], findings: Sequence[str]) -> str:
    """One line per finding and file, and below it why a number is not there."""
    body, missing = [], dict[tuple[str, str], list[str]]()
    for finding in findings:
        for index, row in enumerate(rows[1:]):
            found = inside(row, "agreement", "findings", finding) or {}
            first = [finding, count(found.get("positives"))] if index == 0 else ["", ""]
            body.append([*first, row["name"], *(interval(found.get(name)) for name in _MEASURES)])
            for what, why in found.get("reasons", {}).items():
                missing.setdefault((f"no {_MEASURES[what]} of {row['name']}", why), []).append(finding)
    table = draw_table(body, ["finding", "original: with it", "file", *_MEASURES.values()])
    notes = "\n".join(
        f"  {what}{'' if where == list(findings) else ' for ' + ', '.join(where)}: {why}."
        for (what, why), where in missing.items()
    )
    return f"{table}\n{notes}" if notes else table


def render_agreement_gate(gate: Mapping[str, Any]) -> str:
    """Whether the compressed file agrees enough, or the images are too few to tell, in one line or two."""
    verdict = {BROKEN: "BROKEN", TOO_FEW: f"undecided, {TOO_FEW}"}.get(gate["verdict"], gate["verdict"])
    words = {"flips": "decisions changed", "logit_distance": "logits apart"}
    parts = [f"{text} {interval(gate[name])} (at most {gate[name]['max']:g})" for name, text in words.items()]
    text = f"Gate {verdict}: {'; '.join(parts)}.\n"
    if gate["verdict"] != TOO_FEW:
        return text
    needed = gate["patients_needed"]
    if gate["lacking"]:
        text += "  What the images lack (see the warnings) keeps anything from being shown.\n"
    if gate["patients"] >= needed:
        return text
    return (
        f"{text}  {gate['patients']} patients are held out; {needed} could show it if no decision of theirs changed: "
        f"give more images, about {10 * needed:,} in all, or another --max_flips.\n"
    )


def warnings_of(look: Mapping[str, Any]) -> Iterator[str]:
    """What the images that everything was fitted on lack, a line each."""
    for warning in look.get("warnings", ()):
        yield f"  WARNING: {warning}.\n"

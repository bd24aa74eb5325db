"""A comparison as one HTML page for people who decide: the verdict first, and what was not tested in plain words.

It is made of the JSON of `cxr_compare` alone, so it can be made again of a file that was kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.evaluate import GROUPINGS, INHERITED, NOT_INFERIOR, OWN, UNDECIDED, WORSE
from cxr_compress.evaluate.agreement import BROKEN, HOLDS, TOO_FEW
from cxr_compress.evaluate.comparison import RESAMPLED
from cxr_compress.evaluate.finding import NOT_ENOUGH_DATA
from cxr_compress.evaluate.group_changes import AND
from cxr_compress.report.cells import UNKNOWN, count, inside, interval, millions
from cxr_compress.report.forest import ForestRow, draw_forest

Document = Mapping[str, Any]
GENERATOR = "cxr_compare"  # in the page's head, by which an earlier one is known
PATIENTS_UNKNOWN = (
    "Which images are of one patient is not known: if patients have several, the intervals are too narrow."
)
_MOST_NAMED = 3  # findings in a sentence
_MOST_LISTED = 50  # images in a list
_TITLES = {HOLDS: "Keeps what was asked", BROKEN: "Does not keep what was asked", TOO_FEW: "Not settled"}
_CLASSES = {
    **{HOLDS: "good", BROKEN: "bad", TOO_FEW: "open"},
    **{NOT_INFERIOR: "good", WORSE: "bad", UNDECIDED: "open"},
}
_RULES = {
    INHERITED: "of the original",
    OWN: "its own",
}
_LIMITS = {
    "max_auroc_drop": "the drop of the mean AUROC",
    "max_new_miss_rate": "new misses per 1,000 images",
    "max_group_drop": "the drop of the AUROC in a group",
    "max_ece": "the calibration error",
}


def render_page(document: Document) -> str:
    """The page, without anything that has to be loaded from elsewhere.

    Args:
        document: what `cxr_compare --output_file` writes, as JSON says it.

    Raises:
        ModuleNotFoundError: jinja2 or matplotlib is not installed (extra `report`).
    """
    from markupsafe import Markup

    candidates, margin, original = document["candidates"], document["margin"], document["reference"]["file"]
    return (
        page_templates()
        .get_template("comparison.html.j2")
        .render(
            document=document,
            generator=GENERATOR,
            headline=_headline(document),
            sentences=[verdict_sentence(document, candidate) for candidate in candidates],
            forests=[Markup(forest_of(candidate["comparison"], margin, original)) for candidate in candidates],
            models=[document["reference"], *(candidate["model"] for candidate in candidates)],
            not_tested=list(say_what_was_not_tested(document)),
            synthetic=_is_synthetic(document),
        )
    )


def page_templates() -> Any:
    """The jinja2 environment of all pages: everything is escaped, and what is not given is an error.

    Raises:
        ModuleNotFoundError: jinja2 is not installed (extra `report`).
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cxr_compress", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        interval=interval,
        signed=partial(interval, signed=True),
        count=count,
        millions=millions,
        number=_number,
        rate=_rate,
        joined=joined,
    )
    environment.globals.update(
        unknown=UNKNOWN, classes=_CLASSES, titles=_TITLES, rules=_RULES, limit_names=_LIMITS, most_listed=_MOST_LISTED
    )
    environment.globals.update(inside=inside, intended_use=INTENDED_USE)
    return environment


def verdict_sentence(document: Document, candidate: Document) -> str:
    """What came of one candidate, in a sentence for people who know no statistics."""
    name, original, margin = candidate["comparison"]["name"], document["reference"]["file"], document["margin"]
    findings = candidate["comparison"]["findings"]
    if not candidate["comparison"]["labeled"]:
        return (
            f"Nobody can say from these images whether {name} is as good as {original}, because they have no labels: "
            "all that is shown is how far the two agree."
        )
    kept, worse, undecided = (
        [finding for finding, row in findings.items() if row["verdict"] == verdict]
        for verdict in (NOT_INFERIOR, WORSE, UNDECIDED)
    )
    outcome = candidate["outcome"]
    if outcome["verdict"] == HOLDS:
        return (
            f"{name} keeps what was asked of it: for {_all_of(len(findings))} these images rule out that it lost "
            f"{margin:g} AUROC or more beside {original}."
        )
    if outcome["verdict"] == BROKEN:
        others = [reason for reason in outcome["broken"] if reason not in {f"{one}: {WORSE}" for one in worse}]
        reasons = [f"it is shown to be worse than {original} for {joined(worse)}"] if worse else []
        if others:
            first = "" if len(others) == 1 else "the first of them: "
            broken = f"{len(others)} {_plural(len(others), 'group or limit is', 'groups or limits are')} broken"
            reasons.append(f"{broken} ({first}{others[0]})")
        return f"{name} does not keep what was asked of it: {' and '.join(reasons)}."
    parts = [
        f"a loss of {margin:g} AUROC or more is ruled out for {len(kept) or 'none'} of {_plural_of(len(findings))}"
    ]
    if undecided:
        parts.append(f"the images are too few to tell for {joined(undecided)}")
    if unchecked := len(outcome["undecided"]) - len(undecided):
        parts.append(f"{unchecked} {_plural(unchecked, 'limit', 'limits')} cannot be checked with these images")
    return f"It is not settled whether {name} can take the place of {original}: {', and '.join(parts)}."


def _headline(document: Document) -> str:
    """One sentence over all candidates; "" of a single one, whose own says all."""
    candidates = document["candidates"]
    if len(candidates) == 1:
        return ""
    names: dict[str, list[str]] = {verdict: [] for verdict in _TITLES}
    for candidate in candidates:
        names[candidate["outcome"]["verdict"]].append(candidate["comparison"]["name"])
    words = {
        HOLDS: ("keeps what was asked", "keep what was asked"),
        BROKEN: ("does not keep it", "do not keep it"),
        TOO_FEW: ("is not settled", "are not settled"),
    }
    parts = [
        f"{len(members)} {_plural(len(members), *words[verdict])} ({joined(members)})"
        for verdict, members in names.items()
        if members
    ]
    return f"Of {len(candidates)} compressed models {joined(parts)}."


def say_what_was_not_tested(document: Document) -> Iterator[str]:
    """What a reader might think was tested, and was not: a sentence each."""
    candidates = document["candidates"]
    first = candidates[0]
    for finding, row in first["comparison"]["findings"].items():
        if row.get("reason"):
            yield f"{finding}: {row['reason']}, so it cannot be judged."
    for name in sorted(set(GROUPINGS) - set(first["groups"])):
        yield f"Groups by {name}: the images do not say it, or it does not divide them, or it was not asked for."
    yield from small_groups(first["groups"])
    if not any(_maps(candidate) for candidate in candidates):
        yield "Where in an image the models look: their activation maps were not compared."
    models = [document["reference"], *(candidate["model"] for candidate in candidates)]
    if not all(model.get("latency") for model in models):
        yield "How long the models take: they were not timed (cxr_compare --timed_runs)."
    yield "How much memory the models need while they run."
    if unset := [name for limit, name in _LIMITS.items() if document["limits"][limit] is None]:
        yield f"No limit was set for {', '.join(unset)}."
    yield from dict.fromkeys(
        f"{note[0].upper()}{note[1:]}." for candidate in candidates for note in candidate["comparison"]["notes"]
    )
    if first["comparison"]["patients"] != RESAMPLED:
        yield PATIENTS_UNKNOWN


def small_groups(groupings: Document) -> Iterator[str]:
    """Groups that are too small, by name; of crossed ones, which are many, how many."""
    crossed = 0
    for by, grouping in groupings.items():
        small = grouping[NOT_ENOUGH_DATA]
        if AND in by:
            crossed += len(small)
        elif small:
            listed = ", ".join(f"{group} ({images:,} images)" for group, images in small.items())
            yield f"Groups by {by} with too few images with or without every finding: {listed}."
    if crossed:
        yield f"{crossed} {_plural(crossed, 'group', 'groups')} of two ways to divide at once, with too few images."


def _maps(candidate: Document) -> bool:
    rows = candidate["comparison"]["findings"].values()
    return any(inside(row, "agreement", "cam", "value") is not None for row in rows)


def _is_synthetic(document: Document) -> bool:
    """Whether images or the original model are of drawn images."""
    return bool(document["dataset"].get("synthetic") or document["reference"].get("synthetic"))


def forest_of(comparison: Document, margin: float, original: str) -> str:
    """The picture of one comparison as markup; "" without labels."""
    if not comparison["labeled"]:
        return ""
    rows = [
        ForestRow(finding, **_ends(row["auroc_drop"]), verdict=row["verdict"])
        for finding, row in comparison["findings"].items()
    ]
    label = (
        f"Drop of the AUROC of each finding from {original} to {comparison['name']}, with its "
        "95 % interval, beside the margin; the table below has the numbers"
    )
    return draw_forest(rows, margin, label=label)


def _ends(drop: Mapping[str, float | None]) -> dict[str, float | None]:
    return {"drop": drop["value"], "low": drop["low"], "high": drop["high"]}


def joined(names: Sequence[str]) -> str:
    """a, b, c and 4 more."""
    shown, rest = list(names[:_MOST_NAMED]), len(names) - _MOST_NAMED
    if rest > 0:
        shown.append(f"{rest} more")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _plural(number: int, one: str, many: str) -> str:
    return one if number == 1 else many


def _plural_of(findings: int) -> str:
    return f"{findings} {_plural(findings, 'finding', 'findings')}"


def _all_of(findings: int) -> str:
    return "the one finding" if findings == 1 else f"each of the {findings} findings"


def _number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _rate(measured: Mapping[str, float | None]) -> str:
    """3.1 [0.4, 8.0]."""
    value, low, high = (_number(measured[end], 1) for end in ("value", "low", "high"))
    return UNKNOWN if value == UNKNOWN else f"{value} [{low}, {high}]"

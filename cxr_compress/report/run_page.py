"""A run as one HTML page for people who decide whether its file may be used: the verdict first, in plain words.

It is made of what lies in the run's folder, so it can be made again (`cxr_report`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cxr_compress.device.modelfile import ModelFile
from cxr_compress.evaluate import GROUPINGS, NOT_INFERIOR, UNDECIDED, WORSE
from cxr_compress.evaluate.agreement import BROKEN, HOLDS, TOO_FEW
from cxr_compress.evaluate.comparison import RESAMPLED
from cxr_compress.report.cards import MISSING, transparency_fields
from cxr_compress.report.cells import COST_HEADERS, cost_cells, inside, interval, share
from cxr_compress.report.curves import draw_reliability, draw_sizes
from cxr_compress.report.page import PATIENTS_UNKNOWN, forest_of, joined, page_templates, small_groups
from cxr_compress.report.report import change_of, is_labeled, render_gate

GENERATOR = "cxr_report"  # in the page's head, by which an earlier one is known
Report = Mapping[str, Any]


def render_run_page(
    report: Report, model: ModelFile, *, plan: Mapping[str, Any] | None = None, stages: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The page, without anything that has to be loaded from elsewhere.

    Args:
        report: what `read_report` gave.
        model: the compressed file, the last row of the report.
        plan: the run's `plan.json`; None where nothing was removed.
        stages: the run's manifests, in the order of the stages: what each read and wrote.

    Raises:
        ModuleNotFoundError: jinja2 or matplotlib is not installed (extra `report`).
    """
    from markupsafe import Markup

    rows, original = report["rows"], report["rows"][0]["file"]
    compared = [row for row in reversed(rows) if row.get("comparison")]
    margin = inside(report, "facts", "recipe", "gate", "margin")
    fields = transparency_fields(report, model)
    page = page_templates().get_template("run.html.j2")
    text: str = page.render(
        generator=GENERATOR,
        report=report,
        compressed=rows[-1],
        original=rows[0],
        labeled=is_labeled(report),
        synthetic=report["dataset"]["synthetic"] or model.info.synthetic,
        verdict=_verdict(report),
        gate=render_gate(report["facts"].get("gate")),
        headers=COST_HEADERS,
        costs=[cost_cells(row) for row in rows],
        quality=[_quality(row, first=row is rows[0], labeled=is_labeled(report)) for row in rows],
        sizes=Markup(_sizes(rows)),
        compared=compared,
        forests=[Markup(forest_of(row["comparison"], margin, original)) for row in compared],
        margin=margin,
        reliability=Markup(_reliability(rows)),
        model=model,
        patients=_patients(rows[-1]),
        plan=plan,
        removed=_removed(plan),
        zeros=inside(report, "facts", "quantization", "audit", "sparsity", "layers") or {},
        versions=_versions(stages),
        stages=stages,
        fields=fields,
        filled=sum(text != MISSING for text in fields.values()),
        not_tested=list(_not_tested(report)),
        harms=_harms(rows[-1]),
    )
    return text


def _verdict(report: Report) -> dict[str, str]:
    """Class, title and sentence of what came of the run."""
    gate, file = report["facts"].get("gate") or {}, report["rows"][-1]["file"]
    if not gate:
        return {"kind": TOO_FEW, "sentence": f"Nothing was asked of {file}, so there is no verdict."}
    if not is_labeled(report):
        return {
            "kind": gate["verdict"],
            "sentence": f"Nobody can say from these images whether {file} is as good as the original model, because "
            f"they have no labels. Of {inside(report, 'dataset', 'splits', 'test', 'images'):,} images that no stage "
            f"had seen, {share(inside(gate, 'flips', 'value'))} are decided otherwise than by the original (at most "
            f"{share(inside(gate, 'flips', 'max'))} was allowed).",
        }
    if gate["loss"] is None:
        return {"kind": TOO_FEW, "sentence": f"{file} cannot be judged: these images give no AUROC."}
    lost = f"of its mean AUROC it lost {gate['loss']:.4f}, where at most {gate['max_loss']:g} was allowed"
    if gate.get("reason"):
        kind, sentence = BROKEN, f"{file} cannot be judged: {gate['reason']}."
    elif gate["holds"]:
        kind = HOLDS
        sentence = f"{file} keeps what was asked of it: {lost}, and a loss of {gate['margin']:g} or more is ruled out."
    elif not gate["small_loss"] or inside(gate, "balanced_accuracy", "small_loss") not in {True, None}:
        kind, sentence = BROKEN, f"{file} does not keep what was asked of it: {lost}."
    else:
        kind = TOO_FEW
        sentence = (
            f"It is not settled whether {file} can take the place of the original: {lost}, but these images cannot "
            f"rule out a loss of {gate['margin']:g} or more."
        )
    harmed = _harms(report["rows"][-1])
    if harmed:
        kind, sentence = BROKEN, f"{sentence} It is shown to be worse for {joined(harmed)}."
    return {"kind": kind, "sentence": f"{sentence} {_by_finding(report['rows'][-1])}".strip()}


def _by_finding(row: Mapping[str, Any]) -> str:
    """How many findings are kept, and how many cannot be told."""
    changes = inside(row, "comparison", "findings") or {}
    if len(changes) <= 1:
        return ""
    verdicts = [change["verdict"] for change in changes.values()]
    few = [finding for finding, change in changes.items() if change["verdict"] == UNDECIDED]
    text = f"By finding, it is not inferior for {verdicts.count(NOT_INFERIOR)} of {len(changes)}"
    return f"{text}; the images are too few to tell for {joined(few)}." if few else f"{text}."


def _harms(row: Mapping[str, Any]) -> list[str]:
    """Findings, and findings in groups, for which the file is shown to be worse."""
    changes = inside(row, "comparison", "findings") or {}
    groups = inside(row, "comparison", "groups") or {}
    return [finding for finding, change in changes.items() if change["verdict"] == WORSE] + [
        f"{change['finding']} in the group {change['group']} of {by}"
        for by, grouping in groups.items()
        for change in grouping["changes"]
        if change["verdict"] == WORSE
    ]


def _quality(row: Mapping[str, Any], *, first: bool, labeled: bool) -> list[str]:
    """What a file is worth, and what it lost."""
    if labeled:
        return [
            interval(inside(row, "evaluation", "mean_auroc")),
            "" if first else change_of(inside(row, "degradation", "auroc_drop")),
        ]
    return ["" if first else interval(inside(row, "agreement", name)) for name in ("logit_distance", "flips")]


def _sizes(rows: Sequence[Mapping[str, Any]]) -> str:
    """AUROC against bytes; "" without labels."""
    points = [
        (row["name"], row["tflite_bytes"], auroc)
        for row in rows
        if (auroc := inside(row, "evaluation", "mean_auroc")) and auroc["value"] is not None
    ]
    label = "AUROC of each file, with its 95 % interval, over its size; the table above has the numbers"
    return draw_sizes(points, label=label) if points else ""


def _reliability(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the original and the compressed file promise; "" where the report has no bins."""
    shown = {"original": rows[0], "compressed": rows[-1]}
    findings = {
        finding: {
            name: inside(row, "evaluation", "findings", finding, "reliability") or [] for name, row in shown.items()
        }
        for finding in inside(rows[0], "evaluation", "findings") or {}
    }
    findings = {finding: models for finding, models in findings.items() if all(models.values())}
    label = (
        "Share of the images that has a finding, over the probability that the original and the compressed file give"
    )
    return draw_reliability(findings, label=label) if findings else ""


def _removed(plan: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Each set of channels that was looked at, with what stays of it."""
    return [
        {
            "name": name,
            "others": len(group["members"]) - 1,
            "channels": group["channels"],
            "kept": group["channels"] - group["removed"],
            "share": (group["channels"] - group["removed"]) / group["channels"],
        }
        for name, group in (plan or {}).get("groups", {}).items()
    ]


def _patients(row: Mapping[str, Any]) -> str:
    """What is known of patients: a set without them counts each image as one of its own."""
    if inside(row, "comparison", "patients") == RESAMPLED:
        return "no patient is in two parts"
    return "which images are of one patient is not recorded here"


def _versions(stages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Package -> the versions that the stages ran with."""
    versions: dict[str, dict[str, None]] = {}
    for stage in stages:
        for package, version in stage.get("versions", {}).items():
            versions.setdefault(package, {})[version] = None
    return {package: ", ".join(found) for package, found in versions.items()}


def _not_tested(report: Report) -> Iterator[str]:
    """What a reader might think was tested, and was not: a sentence each."""
    row = report["rows"][-1]
    groups = inside(row, "comparison", "groups") or {}
    if not is_labeled(report):
        yield "Whether the file is right: there are no labels. It was compared with the original model alone."
    elif not row.get("comparison"):
        yield "Each finding and group alone: the run was scored before that was done; run it again."
    else:
        for name in sorted(set(GROUPINGS) - set(groups)):
            yield f"Groups by {name}: the images do not say it, or it does not divide them."
        yield from small_groups(groups)
        if row["comparison"]["patients"] != RESAMPLED:
            yield PATIENTS_UNKNOWN
        for finding, change in (inside(row, "comparison", "findings") or {}).items():
            if change.get("reason"):
                yield f"{finding}: {change['reason']}, so it cannot be judged."
        yield "Where in an image the models look: their activation maps were not compared."
    yield "Images of other hospitals, machines and ages than those of this data set."
    yield "The device it will run on: times are those of the machine named above."
    yield "How much memory the file needs while it runs."
    yield "How well people work with it."
    for finding, score in (inside(report["rows"][0], "evaluation", "findings") or {}).items():
        if score.get("mark"):
            yield f"{finding}: {score['mark']}."

"""Model cards with results, as Markdown: of a file that a run delivered, and of the weights that runs start from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cxr_compress.device.card import card_facts, card_notice, render_calibration, render_card, render_table
from cxr_compress.device.modelfile import ModelFile
from cxr_compress.device.modelinfo import INTENDED_USE, NOT_STATED
from cxr_compress.device.spec import PreprocessSpec, preset_name
from cxr_compress.errors import DataError
from cxr_compress.evaluate import NOT_INFERIOR
from cxr_compress.report.agreement import says_nothing
from cxr_compress.report.cells import inside, interval, millions
from cxr_compress.report.report import is_labeled, render_results

MISSING = ""
_CHANCE = 0.5
_RATES = ("sensitivity", "specificity")
_TEST = """\
## What was measured

Test split, {images:,} images of {patients:,} patients, scored once through the code that runs on the device; 95 %
intervals resample patients. The first row is the same network before compression.

```
{table}
```

{what}, on test:

{operating_points}

What one of them is at 95 % of the other is read off these very images: it compares models, and is not what a threshold
that was chosen before gives.

Latency is that of the machine the table was made on; compare rows, not machines. Zeroed weights make the file neither
smaller nor faster as it lies on disk; they show in the deflated size alone."""
_AGREEMENT = """\
## What was measured

How far the file agrees with the original model on {images:,} images of {patients:,} patients without labels, which no
stage had seen, through the code that runs on the device; 95 % intervals resample patients. The first row is the
original network. {nothing}

```
{table}
```

Latency is that of the machine the table was made on; compare rows, not machines. Zeroed weights make the file neither
smaller nor faster as it lies on disk; they show in the deflated size alone."""
_LIMITS = """\
## Known limits

- Labels come with the data set and were not checked again; a network learns their errors too.
- What external validation does not name (other hospitals, machines, ages, photographs of a screen) was not tested.
- Compression was checked on average, per finding, and in the groups that are named above, if any; not per machine."""
_LIMITS_OF_AGREEMENT = """\
## Known limits

- Where the original model is wrong, this file is wrong too; no label was seen.
- Findings that the images do not show were not compared: see how often the original decides for each.
- What external validation does not name (other hospitals, machines, ages, photographs of a screen) was not tested."""
_EXTERNAL = """\
With the thresholds in this file; nothing was fitted or chosen on these images. 95 % intervals resample
patients. Where the view alone tells sick from healthy, the AUROC within one view is the one to believe.
"""


def render_delivered_card(
    report: Mapping[str, Any],
    model: ModelFile,
    *,
    file_name: str,
    population: str = "",
    external: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card of one file of a run: what the file says about itself, and what was measured of it.

    Args:
        report: what `read_report` gave.
        model: the file; it must be one of the report's rows.
        file_name: what the file is called where the card lies.
        population: whose images these are, in words: what no one should have to guess.
        external: what `experiments/external_validation.py` measured of this very file on images of other hospitals.

    Raises:
        DataError: the report is of another run, or a validation of another file.
    """
    row = next((row for row in report["rows"] if row["name"] == model.info.model_name), None)
    if row is None or model.sha256 not in report["facts"].get("sha256", {}).values():
        raise DataError(
            f"the report is not of the run that made {model.info.model_name}: give the report.json beside it"
        )
    info, splits = model.info, report["dataset"]["splits"]
    counts = "; ".join(
        f"{name} {splits[name]['images']:,} images of {splits[name]['patients']:,} patients"
        for name in ("train", "dev")
    )
    facts = card_facts(info)
    facts["trained on"] += f"{f' ({population})' if population else ''}: {counts}"
    facts["license"] = "Apache-2.0 for the file; the data have their own"
    if not is_labeled(report):
        measured = _AGREEMENT.format(**splits["test"], table=render_results(report), nothing=says_nothing())
        tested = "It was compared with the model that it was made from, and with no label: see what was measured."
        return _card(report, model, facts, file_name, tested, measured, external)
    measured = _TEST.format(
        **splits["test"],
        table=render_results(report),
        what=(
            "How often each class is called where it is there, and not called where it is not"
            if info.exclusive
            else "Sensitivity and specificity at the thresholds in this file"
        ),
        operating_points=_operating_points(row["evaluation"]["findings"]),
    )
    return _card(report, model, facts, file_name, "It has been tested on one public data set only.", measured, external)


def transparency_fields(report: Mapping[str, Any], model: ModelFile) -> dict[str, str]:
    """Seventeen fields that people who decide ask a model card for; `MISSING` where a run cannot know.

    They follow the headings of the Applied Model Card of the Coalition for Health AI (2024), as far as they can be
    asked of a classifier. Nothing is guessed in place of what only who deploys a model can say.

    Args:
        report: what `read_report` gave.
        model: the compressed file, the last row of the report.
    """
    info, row, first = model.info, report["rows"][-1], report["rows"][0]
    facts, splits = card_facts(info), report["dataset"]["splits"]
    counted = {name: f"{one['images']:,} images of {one['patients']:,} patients" for name, one in splits.items()}
    measured = inside(row, "evaluation", "mean_auroc")
    changes = inside(row, "comparison", "findings") or {}
    kept = sum(change["verdict"] == NOT_INFERIOR for change in changes.values())
    groups = inside(row, "comparison", "groups") or {}
    return {
        "Name and version": f"{info.model_name}, sha256 {model.sha256}",
        "Developer and contact": MISSING,
        "Release stage and date": MISSING,
        "Intended use": info.intended_use,
        "Intended users and workflow": MISSING,
        "Patients it is meant for": MISSING,
        "Uses it is not for": "Deciding about a patient; images of another kind than those it was trained on.",
        "Input": facts["input"],
        "Output": facts["output"],
        "Model type and what it was made from": (
            f"{millions(first.get('macs'))} multiplications before compression, {millions(row.get('macs'))} after, "
            f"{info.quant_type}; made from {facts['made from'] or NOT_STATED}"
        ),
        "Training data": f"{info.training_data}: {counted.get('train', 'size not recorded')}; {info.attribution}",
        "Test data": f"{report['dataset']['name']}: {counted['test']}" if "test" in counted else MISSING,
        "Performance": f"mean AUROC {interval(measured)} on test" if measured else MISSING,
        "Performance beside the original model": (
            f"not inferior for {kept} of {len(changes)} findings (margin {next(iter(changes.values()))['margin']:g})"
            if changes
            else MISSING
        ),
        "Performance in groups of patients": f"compared by {', '.join(groups)}" if groups else MISSING,
        "Known risks and limits": "What was not tested, and the limits, are listed on this page.",
        "Maintenance and monitoring": MISSING,
    }


def _card(  # noqa: PLR0917 - the parts of a card
    report: Mapping[str, Any],
    model: ModelFile,
    facts: Mapping[str, str],
    file_name: str,
    tested: str,
    measured: str,
    external: Sequence[Mapping[str, Any]],
) -> str:
    info = model.info
    warnings = list(inside(report, "facts", "original", "warnings") or ())
    fitted_on = ["## What the images lack\n\n" + "\n".join(f"- {warning}." for warning in warnings)] if warnings else []
    return render_card(
        info.model_name,
        f"{card_notice(info)} {tested}",
        {"file": f"`{file_name}`, {model.file_bytes:,} bytes", "sha256": f"`{model.sha256}`", **facts},
        [
            render_calibration(info),
            measured,
            *fitted_on,
            f"## External validation\n\n{external_validation(model, external)}",
            _LIMITS if is_labeled(report) else _LIMITS_OF_AGREEMENT,
            f"## Made with\n\n```json\n{json.dumps(info.recipe, indent=1)}\n```",
        ],
    )


def _operating_points(findings: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, score in findings.items():
        fixed = (_interval(score.get(f"{one}_at_95_{other}")) for one, other in (_RATES, _RATES[::-1]))
        counts = f"{score['positives']:,} / {score['negatives']:,}"
        rows.append([name, counts, *(_number(score[key]) for key in _RATES), *fixed])
    titles = [*_RATES, *(f"{one} at 95 % {other}" for one, other in (_RATES, _RATES[::-1]))]
    return render_table(["finding", "images with / without", *titles], rows)


def external_validation(model: ModelFile, rows: Sequence[Mapping[str, Any]]) -> str:
    """What a file is worth on images of other hospitals, as Markdown; that nobody knows it, where nobody looked.

    Raises:
        DataError: a row is of another file.
    """
    if not rows:
        return (
            "None: nobody has tested this file on images of another hospital, where such models usually score worse, "
            "often no better than chance."
        )
    body = []
    for row in rows:
        if row["sha256"] != model.sha256:
            raise DataError(f"the external validation on {row['set']} is of another file: measure this one")
        within = row["groups"].get("view", {}).get("within_view", {}).get("findings", {})
        for finding, score in row["evaluation"]["findings"].items():
            counts = f"{score['positives']:,} / {score['negatives']:,}"
            aurocs = (score["auroc"], within.get(finding, {}).get("auroc"))
            rates = (score.get("sensitivity"), score.get("specificity"))
            body.append([row["words"], finding, counts, *map(_auroc, aurocs), *map(_number, rates)])
    titles = ["set", "finding", "images with / without", "AUROC", "within one view", "sensitivity", "specificity"]
    return f"{_EXTERNAL}\n{render_table(titles, body)}"


def render_baseline_card(
    name: str,
    training: Mapping[str, Any],
    test: Mapping[str, Any],
    *,
    weights: Mapping[str, Any],
    commands: str,
    remarks: str = "",
) -> str:
    """The card of weights that compressions start from.

    Args:
        name: what they are called.
        training: the `training.json` of `cxr_train`.
        test: the JSON of `cxr_evaluate` on the test split.
        weights: `network`, `file`, `file_bytes`, `sha256` and `parameters` of what is kept.
        commands: what made them, a command a line.
        remarks: what a reader must know before the numbers.
    """
    plan, stages, scored = training["plan"], training["stages"], test["evaluation"]
    images = {part: f"{counts['images']:,} images" for part, counts in training["images"].items()}
    exclusive = scored.get("activation") == "softmax"
    facts = {
        "network": f"{weights['network']}, {weights['parameters']:,} numbers, float16 in `{weights['file']}` "
        f"({weights['file_bytes']:,} bytes)",
        "sha256": f"`{weights['sha256']}`",
        "findings": ", ".join(scored["findings"]),
        "input": f"one image, resized to {plan['sizes'][-1]} x {plan['sizes'][-1]} (area averaging), preset "
        f"`{preset_name(PreprocessSpec.from_dict(test['model']['preprocess']))}`",
        "output": "one logit per class; the classes exclude one another: probabilities = softmax(logit - log(class "
        "weight))"
        if exclusive
        else "one logit per finding; probability = sigmoid(logit - log(positive weight))",
        "trained on": f"{test['dataset']['name'] if plan['dataset'] != 'csv' else 'a table of images'}: "
        f"{images['train']}; the best epoch chosen on {images['dev']} of other patients",
        "training": f"{training['training_seconds'] / 60:.0f} minutes on {training['versions']['machine']}; image "
        f"sizes {_listed(stage['size'] for stage in stages)}, epochs "
        f"{_listed(len(stage['history']) for stage in stages)}, best "
        f"{_listed(stage['best_epoch'] for stage in stages)}",
        "data": training["attribution"],
    }
    findings = [
        [name, score["positives"], _auroc(score["auroc"]), "yes" if score["enough_data"] else "no: not enough data"]
        for name, score in scored["findings"].items()
    ]
    within = [
        [by, len(groups[f"within_{by}"]["mean_over"]), _auroc(groups[f"within_{by}"]["mean_auroc"])]
        for by, groups in test.get("groups", {}).items()
    ]
    titles = ["compared only within the same", "findings with enough data", "mean AUROC"]
    return render_card(
        name,
        f"**{INTENDED_USE}** Never let it decide about a patient. It is the original network that compressions start "
        "from.",
        facts,
        [
            *([remarks] if remarks else []),
            f"## On test: {scored['images']:,} images of {scored['patients']:,} patients, scored once, with these "
            "float16 weights",
            f"95 % intervals resample patients. Means: all findings {_auroc(scored['mean_auroc'])}; those with enough "
            f"data {_auroc(scored['mean_auroc_enough_data'])}.",
            render_table(["finding", "positives", "AUROC", "enough data"], findings),
            *([render_table(titles, within)] if within else []),
            f"## Again\n\n```\n{commands}\n```",
        ],
    )


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _auroc(measured: Mapping[str, float | None] | None) -> str:
    """With its interval, and in words what it means where that reaches down to a coin."""
    low = measured["low"] if measured else None
    return _interval(measured) + (" (no better than a coin)" if low is not None and low <= _CHANCE else "")


def _interval(measured: Mapping[str, float | None] | None) -> str:
    if not measured or measured["value"] is None:
        return "?"
    if measured["low"] is None or measured["high"] is None:
        return f"{measured['value']:.3f}"
    return f"{measured['value']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"

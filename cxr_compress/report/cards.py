"""The model card of a delivered file, as Markdown: what it is, what it was measured on, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from cxr_compress.device.modelfile import ModelFile, ModelInfo
from cxr_compress.device.spec import PreprocessSpec, preset_name
from cxr_compress.errors import DataError
from cxr_compress.report.table import is_exclusive, render_confusion, render_findings, render_table

_TEMPLATE = """\
# {name}

**{intended_use}** {synthetic}Never let it decide about a patient: it has been tested on one public data set only, its
probabilities are rough{chosen}.

| | |
|---|---|
| file | `{file}`, {file_bytes:,} bytes |
| sha256 | `{sha256}` |
| findings | {labels} |
| input | one frontal chest X-ray, resized to {height} x {width} (8-bit gray, area averaging), ImageNet mean and std |
| output | {output} |
| quantization | {quant_type} |
| trained on | {training_data}{population}: {counts} |
| thresholds | {thresholds}; {threshold_source} |
| license | Apache-2.0 for the file; data: {attribution} |

## What was measured

Official test split, {test_images} images of {test_patients} patients, scored once through the code that runs on the
device; 95 % intervals resample patients. The first row is the same network before compression.

```
{table}
```

{operating_heading}, on test:

```
{operating_points}
```

Latency is that of the machine the table was made on; compare rows, not machines. Zeroed weights make the file neither
smaller nor faster as it lies on disk; they show in the deflated size alone.

## External validation

{external}

## Known limits

- Labels come with the data set and were not checked again; a network learns their errors too.
- What external validation does not name (other hospitals, machines, ages, photographs of a screen) was not tested.
- Compression was judged on average and per finding, not per age, sex or machine: the data set does not say them.

## Made with

```json
{recipe}
```
"""
_COIN = 0.5
_SIGMOIDS = "one logit per finding; probability = sigmoid(slope * logit + offset), both in the file"
_SOFTMAX = (
    "one logit per class; the classes exclude one another: probabilities = softmax of slope * logit + offset (both in "
    "the file) over all of them, and each image is called the likeliest class"
)


def render_card(
    report: Mapping[str, Any],
    model: ModelFile,
    *,
    file_name: str,
    population: str = "",
    external: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card of one file of a run.

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
    info, test = model.info, report["dataset"]["splits"]["test"]
    findings = report["dataset"]["findings"]
    tables = [render_table(report["rows"], several=len(findings) > 1)]
    if len(findings) > 1:
        tables.append(render_findings(report["rows"], findings))
    if is_exclusive(report["rows"]):
        tables.append(render_confusion(report["rows"]))
    return _TEMPLATE.format(
        name=info.model_name,
        intended_use=info.intended_use,
        synthetic="Trained on SYNTHETIC images: its findings say nothing about patients. " if info.synthetic else "",
        file=file_name,
        file_bytes=model.file_bytes,
        sha256=model.sha256,
        labels=", ".join(info.labels),
        height=info.preprocess.height,
        width=info.preprocess.width,
        chosen="" if info.exclusive else ", and its thresholds were chosen for that set",
        output=_SOFTMAX if info.exclusive else _SIGMOIDS,
        quant_type=info.quant_type,
        training_data=info.training_data,
        population=f" ({population})" if population else "",
        counts=_counts(report),
        thresholds=_thresholds(info),
        threshold_source=info.threshold_source,
        attribution=info.attribution,
        test_images=test["images"],
        test_patients=test["patients"],
        table="\n\n".join(tables),
        operating_heading=(
            "How often each class is called where it is there, and not called where it is not"
            if info.exclusive
            else "Sensitivity and specificity at the thresholds in this file"
        ),
        operating_points=_operating_points(row),
        external=external_validation(model, external),
        recipe=json.dumps(info.recipe, indent=1),
    )


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
    lines = [
        "With the thresholds in this file; nothing was fitted or chosen on these images. 95 % intervals resample",
        "patients. Where the view alone tells sick from healthy, the AUROC within one view is the one to believe.",
        "",
        "| set | finding | images with / without | AUROC | within one view | sensitivity | specificity |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["sha256"] != model.sha256:
            raise DataError(f"the external validation on {row['set']} is of another file: measure this one")
        within = row["groups"].get("view", {}).get("within_view", {}).get("findings", {})
        for finding, found in row["evaluation"]["findings"].items():
            counts = f"{found['positives']:,} / {found['negatives']:,}"
            cells = [row["words"], finding, counts, _auroc(found["auroc"])]
            cells += [_auroc(within.get(finding, {}).get("auroc")), _rate(found, "sensitivity")]
            lines.append("| " + " | ".join([*cells, _rate(found, "specificity")]) + " |")
    return "\n".join(lines)


def _auroc(found: Mapping[str, float | None] | None) -> str:
    """With its interval, and in words what it means where it reaches down to a coin."""
    if not found or found["value"] is None:
        return "?"
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:.3f}"
    coin = " (no better than a coin)" if found["low"] <= _COIN else ""
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]{coin}"


def _rate(found: Mapping[str, Any], name: str) -> str:
    return "?" if found.get(name) is None else f"{found[name]:.3f}"


def _thresholds(info: ModelInfo) -> str:
    """Those of the file; none where the likeliest class is called."""
    if info.exclusive:
        return "none"
    return ", ".join(f"{label} {value:.4f}" for label, value in zip(info.labels, info.thresholds, strict=True))


def _counts(report: Mapping[str, Any]) -> str:
    splits = report["dataset"]["splits"]
    return "; ".join(
        f"{name} {splits[name]['images']:,} images of {splits[name]['patients']:,} patients"
        for name in ("train", "dev")
    )


def _operating_points(row: Mapping[str, Any]) -> str:
    """One line per finding; what is undefined is "?"."""
    lines = []
    for finding, found in row["evaluation"]["findings"].items():
        shown = {
            key: "?" if found[key] is None else f"{found[key]:.3f}"
            for key in ("sensitivity", "specificity", "threshold")
        }
        at = "" if row["evaluation"].get("classes") else f" at threshold {shown['threshold']}"
        lines.append(
            f"{finding}: sensitivity {shown['sensitivity']}, specificity {shown['specificity']}{at} "
            f"({found['positives']} images with, {found['negatives']} without)"
        )
    return "\n".join(lines)


_INTENDED_USE = "Research use only; not a medical device."
_BASELINE_CARD_TEMPLATE = """\
# {name}

**{intended_use}** Never let it decide about a patient. It is the original network that compressions start from.

| | |
|---|---|
| network | {model}, {parameters:,} numbers, float16 in `{weights}` ({weights_bytes:,} bytes) |
| sha256 | `{sha256}` |
| findings | {findings} |
| input | one image, resized to {size} x {size} (area averaging), preset `{preprocess}` |
| output | {output} |
| trained on | {dataset}: {train}; the best epoch chosen on {dev} of other patients |
| training | {minutes:.0f} minutes on {machine}; image sizes {sizes}, epochs {epochs}, best {best} |
| data | {attribution} |

{remarks}

## On test: {images:,} images of {patients:,} patients, scored once, with these float16 weights

95 % intervals resample patients. Means: all findings {mean}; those with enough data {mean_enough}.

{table}
{groups}
## Again

```
{commands}
```
"""


_BASELINE_CARD_SIGMOIDS = "one logit per finding; probability = sigmoid(logit - log(positive weight))"
_BASELINE_CARD_SOFTMAX = (
    "one logit per class; the classes exclude one another: probabilities = softmax(logit - log(class weight))"
)


def render_baseline_card(
    name: str,
    training: Mapping[str, Any],
    test: Mapping[str, Any],
    *,
    weights: Mapping[str, Any],
    commands: str,
    remarks: str = "",
) -> str:
    """The card of one baseline.

    Args:
        name: what the baseline is called.
        training: the ``training.json`` of ``cxr_train``.
        test: the JSON of ``cxr_evaluate`` on the test split.
        weights: ``network``, ``file``, ``file_bytes``, ``sha256`` and ``parameters`` of the weights that are kept.
        commands: what made them, a command a line.
        remarks: what a reader must know before the numbers.
    """
    plan, stages = training["plan"], training["stages"]
    found = test["evaluation"]
    images = {part: f"{counts['images']:,} images" for part, counts in training["images"].items()}
    return _BASELINE_CARD_TEMPLATE.format(
        name=name,
        intended_use=_INTENDED_USE,
        model=weights["network"],
        parameters=weights["parameters"],
        weights=weights["file"],
        weights_bytes=weights["file_bytes"],
        sha256=weights["sha256"],
        findings=", ".join(found["findings"]),
        output=_BASELINE_CARD_SOFTMAX if found.get("activation") == "softmax" else _BASELINE_CARD_SIGMOIDS,
        size=plan["sizes"][-1],
        preprocess=preset_name(PreprocessSpec.from_dict(test["model"]["preprocess"])),
        dataset=test["dataset"]["name"] if plan["dataset"] != "csv" else "a table of images",
        train=images["train"],
        dev=images["dev"],
        minutes=training["training_seconds"] / 60,
        machine=training["versions"]["machine"],
        sizes=_list(stage["size"] for stage in stages),
        epochs=_list(len(stage["history"]) for stage in stages),
        best=_list(stage["best_epoch"] for stage in stages),
        attribution=training["attribution"],
        remarks=remarks,
        images=found["images"],
        patients=found["patients"],
        mean=_interval(found["mean_auroc"]),
        mean_enough=_interval(found["mean_auroc_enough_data"]),
        table=_findings(found["findings"]),
        groups=_within(test.get("groups", {})),
        commands=commands,
    )


def _list(values: Any) -> str:
    return ", ".join(map(str, values))


def _interval(measured: Mapping[str, float | None]) -> str:
    if measured["value"] is None:
        return "undefined"
    if measured["low"] is None:
        return f"{measured['value']:.3f}"
    return f"{measured['value']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]"


def _findings(findings: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, score["positives"], _interval(score["auroc"]), "yes" if score["enough_data"] else "no: not enough data"]
        for name, score in findings.items()
    ]
    return tabulate(rows, ["finding", "positives", "AUROC", "enough data"], tablefmt="github", disable_numparse=True)


def _within(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Means when images are compared inside their own group only."""
    rows = [
        [by, len(found[f"within_{by}"]["mean_over"]), _interval(found[f"within_{by}"]["mean_auroc"])]
        for by, found in groups.items()
    ]
    if not rows:
        return ""
    table = tabulate(
        rows,
        ["compared only within the same", "findings with enough data", "mean AUROC"],
        tablefmt="github",
        disable_numparse=True,
    )
    return f"\n{table}\n"

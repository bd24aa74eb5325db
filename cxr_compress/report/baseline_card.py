"""The model card of a trained, uncompressed network, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from cxr_compress.device.spec import PreprocessSpec, preset_name

_INTENDED_USE = "Research use only; not a medical device."
_TEMPLATE = """\
# {name}

**{intended_use}** Never let it decide about a patient. It is the uncut network that compressions start from.

| | |
|---|---|
| network | {model}, {parameters:,} numbers, float16 in `{weights}` ({weights_bytes:,} bytes) |
| sha256 | `{sha256}` |
| findings | {findings} |
| input | one image, resized to {size} x {size} (area averaging), preset `{preprocess}` |
| output | {output} |
| trained on | {dataset}: {train}; the best epoch chosen on {dev} of other patients |
| training | {minutes:.0f} minutes on {machine}; film sizes {sizes}, epochs {epochs}, best {best} |
| data | {attribution} |

{remarks}

## On test: {films:,} films of {patients:,} patients, scored once, with these float16 weights

95 % intervals resample patients. Means: all findings {mean}; those with enough data {mean_enough}.

{table}
{groups}
## Again

```
{commands}
```
"""


_SIGMOIDS = "one logit per finding; probability = sigmoid(logit - log(positive weight))"
_SOFTMAX = "one logit per class; the classes exclude one another: probabilities = softmax(logit - log(class weight))"


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
    films = {part: f"{counts['films']:,} films" for part, counts in training["films"].items()}
    return _TEMPLATE.format(
        name=name,
        intended_use=_INTENDED_USE,
        model=weights["network"],
        parameters=weights["parameters"],
        weights=weights["file"],
        weights_bytes=weights["file_bytes"],
        sha256=weights["sha256"],
        findings=", ".join(found["findings"]),
        output=_SOFTMAX if found.get("activation") == "softmax" else _SIGMOIDS,
        size=plan["sizes"][-1],
        preprocess=preset_name(PreprocessSpec.from_dict(test["model"]["preprocess"])),
        dataset=test["dataset"]["name"] if plan["dataset"] != "csv" else "a table of films",
        train=films["train"],
        dev=films["dev"],
        minutes=training["training_seconds"] / 60,
        machine=training["versions"]["machine"],
        sizes=_list(stage["size"] for stage in stages),
        epochs=_list(len(stage["history"]) for stage in stages),
        best=_list(stage["best_epoch"] for stage in stages),
        attribution=training["attribution"],
        remarks=remarks,
        films=found["films"],
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
    """Means when films are compared inside their own group only."""
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

"""The facts of one run in one JSON document, and its tables as text: what was gained, and what it cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxr_compress.data import Dataset
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.errors import DataError
from cxr_compress.evaluate import WORSE
from cxr_compress.files import write_text
from cxr_compress.report.agreement import (
    CAPTION,
    render_agreement_gate,
    render_agreement_table,
    render_finding_agreements,
    says_nothing,
    warnings_of,
)
from cxr_compress.report.cells import COST_HEADERS, UNKNOWN, cost_cells, count, draw_table, inside, interval

SCHEMA_VERSION = 2
_SYNTHETIC = "SYNTHETIC phantom images: these numbers show that the machinery works and say nothing about patients."


@dataclass(frozen=True)
class Row:
    """One delivered file. Whatever was not measured is None: it is shown as "?", never as 0.

    Attributes:
        name: as the table shows it, e.g. "int8 without pruning".
        file: name of the file, relative to the report.
        params: of the Keras model behind it.
        macs: multiply-accumulates per image at the model's input size.
        tflite_bytes: of the whole file, metadata included.
        deflated_bytes: the same after DEFLATE: the only size in which zeroed weights show.
        weight_sparsity: share of zeros among the convolution and dense kernels without the head, in [0, 1].
        latency: `p50_ms`, `p95_ms` and how they were measured (`Latency.to_dict()`).
        evaluation: `Evaluation.to_dict()` on the test split.
        degradation: `Degradation.to_dict()` against the first row; None for that row itself.
        comparison: `Comparison.to_dict()` with the first row, without single images, and `groups`, by grouping
            `GroupingChange.to_dict()`; None for that row itself.
        agreement: `Agreement.to_dict()` with the first row, where images have no labels; None for that row itself.
    """

    name: str
    file: str
    params: int | None = None
    macs: int | None = None
    tflite_bytes: int | None = None
    deflated_bytes: int | None = None
    weight_sparsity: float | None = None
    latency: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    degradation: Mapping[str, Any] | None = None
    comparison: Mapping[str, Any] | None = None
    agreement: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Gives the fields as JSON-ready values."""
        return asdict(self)


def build_report(rows: Sequence[Row], dataset: Dataset, *, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Puts the facts of a run together; nothing of a single image or patient is in it.

    Args:
        rows: the uncompressed reference first.
        dataset: what was trained and tested on; its attribution and whether it is synthetic go along.
        facts: more JSON-ready facts: the recipe, versions, hashes.

    Returns:
        A JSON-ready dict: `schema_version`, `intended_use`, `dataset`, `facts`, `rows`.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "intended_use": INTENDED_USE,
        "dataset": {
            "name": dataset.name,
            "synthetic": dataset.synthetic,
            "labeled": dataset.labeled,
            "attribution": dataset.attribution,
            "findings": list(dataset.findings),
            "splits": {
                split.name: {"images": len(split), "patients": len(set(split.patients))} for split in dataset.splits
            },
        },
        "facts": dict(facts or {}),
        "rows": [row.to_dict() for row in rows],
    }


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Writes `report.json` in one step; nan and infinity become null, which is what JSON knows.

    Raises:
        CompressionError: the file cannot be written.
    """
    write_text(Path(path), json.dumps(_without_nan(report), indent=1, allow_nan=False) + "\n")


def read_report(path: str | Path) -> dict[str, Any]:
    """Reads what `write_report` wrote.

    Raises:
        DataError: missing, not a report, or of another version.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a report ({error}); give the report.json of a run") from error
    version = report.get("schema_version") if isinstance(report, dict) else None
    if not isinstance(version, int) or not isinstance(report.get("rows"), list):
        raise DataError(f"{path}: expected a report with schema_version and rows; give the report.json of a run")
    if version != SCHEMA_VERSION:
        how = "upgrade it" if version > SCHEMA_VERSION else "run the same command again, which writes the report anew"
        raise DataError(f"{path}: has schema_version {version}, this cxr_compress reads {SCHEMA_VERSION}; {how}")
    return dict(report)


def _without_nan(value: Any) -> Any:
    """The same document with null where a number is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def render_report(report: Mapping[str, Any]) -> str:
    """Heading, table, the findings one by one if there are several, and the intended use.

    Of classes that exclude one another also the accuracies, and what each file called the images of each class.

    Args:
        report: what `build_report` or `read_report` gave.
    """
    return "\n\n".join([_heading(report["dataset"]), render_results(report), _footer(report)])


def render_results(report: Mapping[str, Any]) -> str:
    """The tables of a report: of files, of findings if there are several, of exclusive classes, and of verdicts."""
    rows, findings = report["rows"], report["dataset"]["findings"]
    if not is_labeled(report):
        return f"{render_agreement_table(rows)}\n\n{render_finding_agreements(rows, findings)}"
    tables = [render_table(rows, several=len(findings) > 1)]
    if len(findings) > 1:
        tables.append(render_findings(rows, findings))
    if is_exclusive(rows):
        tables.append(render_confusion(rows))
    if any(row.get("comparison") for row in rows):
        tables.append(render_verdicts(rows))
    return "\n\n".join(tables)


def is_labeled(report: Mapping[str, Any]) -> bool:
    """Whether the images of a report had labels; reports of before there were others do not say it."""
    return bool(report["dataset"].get("labeled", True))


def is_exclusive(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the files of a report give classes that exclude one another."""
    return any(inside(row, "evaluation", "classes") is not None for row in rows)


def render_table(rows: Sequence[Mapping[str, Any]], *, several: bool = False) -> str:
    """One line per file.

    Args:
        rows: of a report, the reference first.
        several: there are several findings, so that AUROC is a mean.
    """
    exclusive = is_exclusive(rows)
    mean = "mean one-vs-rest AUROC" if exclusive else "mean AUROC" if several else "AUROC"
    headers = [*COST_HEADERS, f"{mean} [95 % CI]", "change to the first [95 % CI]"]
    headers += ["accuracy [95 % CI]", "balanced accuracy [95 % CI]", "change of that [95 % CI]"] if exclusive else []
    body = [
        [
            *cost_cells(row),
            interval(inside(row, "evaluation", "mean_auroc")),
            "" if index == 0 else change_of(inside(row, "degradation", "auroc_drop")),
            *(_accuracies(row, first=index == 0) if exclusive else []),
        ]
        for index, row in enumerate(rows)
    ]
    return draw_table(body, headers)


def _accuracies(row: Mapping[str, Any], *, first: bool) -> list[str]:
    """How often a file's predicted class is right, over images and over classes, and the change of the latter."""
    measured = (inside(row, "evaluation", "classes", name) for name in ("accuracy", "balanced_accuracy"))
    change = "" if first else change_of(inside(row, "degradation", "balanced_accuracy_drop"))
    return [*(interval(found) for found in measured), change]


def render_confusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per true class and file: how many of its images were called each class."""
    matrices = [
        (row["name"], measured["confusion_matrix"])
        for row in rows
        if (measured := inside(row, "evaluation", "classes"))
    ]
    classes = matrices[0][1]["classes"] if matrices else []
    body = [
        [truth if index == 0 else "", name, *(count(images) for images in matrix["counts"][place])]
        for place, truth in enumerate(classes)
        for index, (name, matrix) in enumerate(matrices)
    ]
    headers = ["true class", "file", *(f"called {name}" for name in classes)]
    table = draw_table(body, headers, left=2)
    return f"Classes that exclude one another: each image is called exactly one.\n\n{table}"


def render_findings(rows: Sequence[Mapping[str, Any]], findings: Sequence[str]) -> str:
    """One line per finding: the AUROC of each file, and its change to the first."""
    headers = ["class" if is_exclusive(rows) else "finding", "positive images"]
    for index, row in enumerate(rows):
        headers += [row["name"]] if index == 0 else [row["name"], "change"]
    body = []
    for finding in findings:
        line = [finding, count(inside(rows[0], "evaluation", "findings", finding, "positives")) if rows else UNKNOWN]
        for index, row in enumerate(rows):
            line.append(interval(inside(row, "evaluation", "findings", finding, "auroc")))
            if index:
                line.append(change_of(inside(row, "degradation", "findings", finding)))
        body.append(line)
    return draw_table(body, headers)


def render_verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each file is shown to do to each finding, beside the first, and the groups in which something is worse.

    Never good news for lack of images: a finding of which too few are there says so.
    """
    body, worse, margin = [], [], math.nan
    for row in rows:
        for finding, change in (inside(row, "comparison", "findings") or {}).items():
            margin = change["margin"]
            missed = inside(change, "at_threshold", "own", "new_miss_rate")
            alarms = inside(change, "at_threshold", "own", "new_false_alarm_rate")
            more = change["more_of_the_rarer_class"]
            cells = [change["verdict"], "" if more is None else count(more), _rate(missed), _rate(alarms)]
            body.append([finding, row["name"], *cells])
        for by, grouping in (inside(row, "comparison", "groups") or {}).items():
            worse += [
                f"- {row['name']}: {change['finding']} is worse in the group {change['group']} of {by}: "
                f"{change_of(change['auroc_drop'])}"
                for change in grouping["changes"]
                if change["verdict"] == WORSE
            ]
    order = list(dict.fromkeys(line[0] for line in body))
    body.sort(key=lambda line: order.index(line[0]))
    headers = ["finding", "file", "verdict", "more images", "new misses", "new false alarms"]
    caption = (
        f"Verdicts: a finding is not inferior where a loss of AUROC of {margin:g} or more is ruled out, worse where a "
        "loss is shown (Holm over the findings); else so many more images of the rarer class would probably tell. New "
        "misses and false alarms: per 1,000 images, each file by its own thresholds."
    )
    groups = any(inside(row, "comparison", "groups") for row in rows)
    none = "No group (by sex, age, view or source, as far as the set says them) is shown to be worse."
    lines = [*worse] if worse else [none] if groups else []
    return "\n".join([caption, "", draw_table(body, headers, left=3), *(["", *lines] if lines else [])])


def _rate(measured: Mapping[str, float | None] | None) -> str:
    value = None if measured is None else measured["value"]
    return UNKNOWN if value is None else f"{value:.1f}"


def _heading(dataset: Mapping[str, Any]) -> str:
    """What was tested on."""
    test = dataset.get("splits", {}).get("test", {})
    images, patients = count(test.get("images")), count(test.get("patients"))
    if dataset.get("labeled", True):
        line = f"Test split of {dataset['name']}: {images} images of {patients} patients. {dataset['attribution']}"
    else:
        line = f"Held out, and seen by no stage before: {images} images of {patients} patients. Attribution: "
        line += f"{dataset['attribution']}.\n{says_nothing()}"
    return f"{_SYNTHETIC}\n{line}" if dataset["synthetic"] else line


def _footer(report: Mapping[str, Any]) -> str:
    """How the columns came about, and the sentence that every output carries."""
    facts = report.get("facts", {})
    caption = "AUROC: run on the exported file; 95 % intervals resample patients, those of a change in pairs"
    if not is_labeled(report):
        caption = f"{CAPTION}; 95 % intervals resample patients"
    return (
        f"{caption}. Latency: {_measured_how(report['rows'])}. Zeroed weights show in the deflated size alone.\n"
        f"{_original(facts.get('original'))}{_budgets(facts.get('budgets', {}))}"
        f"{_quantized(facts.get('quantization', {}))}{_answers(facts.get('answers'))}{render_gate(facts.get('gate'))}"
        f"{report['intended_use']}"
    )


def _original(look: Mapping[str, Any] | None) -> str:
    """What was taken for granted about the original model, and what spoke against it."""
    if not look:
        return ""
    problem = f"  WARNING, forced: {look['problem']}.\n" if look["problem"] else ""
    return f"Original model: {look['assumed']}.\n{problem}{''.join(warnings_of(look))}"


def _answers(found: Mapping[str, Any] | None) -> str:
    """How the compressed file answers beside its float twin."""
    return f"Compressed file {found['text']}.\n" if found else ""


def _quantized(facts: Mapping[str, Any]) -> str:
    """One line on how the compressed file came to int8, and why; empty for a float one."""
    if not facts.get("used"):
        return ""
    broken = "; ".join(facts.get("broken", []))
    if facts["used"] != "after training":
        return f"Int8 {facts['used']}: {'after training, ' + broken if broken else 'it was asked for'}.\n"
    if facts.get("qat_not_taken"):
        return f"Int8 after training, though {broken}: of int8 in training, {facts['qat_not_taken']}.\n"
    return f"Int8 after training: {broken or 'it keeps what it must on dev'}.\n"


def render_gate(gate: Mapping[str, Any] | None) -> str:
    """Whether the compressed file passes, in one line, or two where there is more to say; empty without a gate."""
    if not gate:
        return ""
    if gate.get("kind") == "agreement":
        return render_agreement_gate(gate)
    other = gate.get("balanced_accuracy")
    if not other:
        text = f"Gate {_holds(gate['holds'])}: AUROC {_kept(gate)}; {_power(gate)}.\n"
    else:
        # The first word is of both; which of them broke it has to be said.
        alone = bool(gate.get("small_loss") and gate.get("non_inferior"))
        text = (
            f"Gate {_holds(gate['holds'])}: mean one-vs-rest AUROC {_holds(alone)}, {_kept(gate)}; {_power(gate)}.\n"
            f"  Both must hold; balanced accuracy {_holds(other['holds'])}: {_kept(other)}; {_power(other)}.\n"
        )
    return f"{text}  {gate['reason']}\n" if gate.get("reason") else text


def _holds(holds: bool) -> str:
    return "holds" if holds else "BROKEN"


def _kept(gate: Mapping[str, Any]) -> str:
    """What was lost beside what may be."""
    # + 0.0: what is lost of nothing is 0, not -0.
    loss, bound = (UNKNOWN if gate[key] is None else f"{gate[key] + 0.0:.4f}" for key in ("loss", "upper_bound"))
    return f"lost {loss} (at most {gate['max_loss']:g}), upper bound {bound} (below {gate['margin']:g})"


def _power(gate: Mapping[str, Any]) -> str:
    chance = UNKNOWN if gate["power"] is None else f"{gate['power']:.0%}"
    return f"of models that are truly equal, {chance} pass on a test set like this"


def _budgets(budgets: Mapping[str, Mapping[str, Any]]) -> str:
    """One line that holds every bound beside what came out; empty where nothing was bounded."""
    parts = [
        f"{name} at most {budget['limit']:,.10g}, predicted {budget['predicted']:,.10g}, came out {_plain(budget)}"
        for name, budget in budgets.items()
    ]
    return f"Budget: {'; '.join(parts)}.\n" if parts else ""


def _plain(budget: Mapping[str, Any]) -> str:
    measured = budget.get("measured")
    return UNKNOWN if measured is None else f"{measured:,.10g}"


def _measured_how(rows: Sequence[Mapping[str, Any]]) -> str:
    """Runtime, threads and machine of the latencies."""
    for row in rows:
        latency = row.get("latency") or {}
        if latency.get("runtime"):
            return (
                f"{latency['runtime']}, {latency.get('num_threads', UNKNOWN)} thread(s), "
                f"{latency.get('machine', 'machine unknown')}; compare within one run only"
            )
    return "not recorded"


def change_of(drop: Mapping[str, float | None] | None) -> str:
    """A drop as the change that it is: below 0 where something was lost."""
    ends = {"value": "value", "low": "high", "high": "low"}
    known = {end: (drop or {}).get(other) for end, other in ends.items()}
    # 0.0 - 0.0 is 0.0, where the minus sign alone would give -0.0.
    return interval({end: None if number is None else 0.0 - number for end, number in known.items()}, signed=True)


def render_forecast(forecast: Mapping[str, Any]) -> str:
    """What `Forecast.to_dict` holds, as two tables: what comes out, and how long it takes.

    Args:
        forecast: `before`, `after`, `certain`, `stages` and `seconds`.
    """
    before, after = forecast["before"], forecast["after"]
    costs = [
        [name, f"{before[name]:,.10g}", f"{after[name]:,.10g}", f"{after[name] / before[name]:.1%}"]
        for name in before
        if before.get(name) and after.get(name) is not None
    ]
    stages = [[name, "done" if not seconds else f"{seconds:,.0f}"] for name, seconds in forecast["stages"].items()]
    doubt = (
        "" if forecast["certain"] else "\nPlanned on random weights: after the training layers may be cut otherwise."
    )
    return (
        f"{draw_table(costs, ['cost', 'original', 'predicted', 'left'])}\n\n"
        f"{draw_table(stages, ['stage', 'about s'])}\n\n"
        f"About {forecast['seconds'] / 60:.0f} minutes on this machine.{doubt}"
    )

"""The one table of a run, as text: what was gained, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tabulate import tabulate

_UNKNOWN = "?"
_SYNTHETIC = "SYNTHETIC phantom images: these numbers show that the machinery works and say nothing about patients."


def render_report(report: Mapping[str, Any]) -> str:
    """Heading, table, the findings one by one if there are several, and the intended use.

    Args:
        report: What ``build_report`` or ``read_report`` gave.
    """
    rows, findings = report["rows"], report["dataset"]["findings"]
    parts = [_heading(report["dataset"]), render_table(rows, several=len(findings) > 1)]
    if len(findings) > 1:
        parts.append(render_findings(rows, findings))
    return "\n\n".join([*parts, _footer(report)])


def render_table(rows: Sequence[Mapping[str, Any]], *, several: bool = False) -> str:
    """One line per file.

    Args:
        rows: Of a report, the reference first.
        several: There are several findings, so that AUROC is a mean.
    """
    mean = "mean AUROC" if several else "AUROC"
    headers = ["file", "params", "MACs", ".tflite bytes", "deflated", "zeros", "p50 ms", f"{mean} [95 % CI]"]
    headers.append("change to the first [95 % CI]")
    body = [
        [
            row["name"],
            _count(row.get("params")),
            _millions(row.get("macs")),
            _count(row.get("tflite_bytes")),
            _count(row.get("deflated_bytes")),
            _share(row.get("weight_sparsity")),
            _milliseconds(row.get("latency")),
            _interval(_inside(row, "evaluation", "mean_auroc")),
            "" if index == 0 else _interval(_inside(row, "difference", "mean_auroc"), signed=True),
        ]
        for index, row in enumerate(rows)
    ]
    return tabulate(body, headers, tablefmt="simple", disable_numparse=True, colalign=_align(len(headers)))


def render_findings(rows: Sequence[Mapping[str, Any]], findings: Sequence[str]) -> str:
    """One line per finding: the AUROC of each file, and its change to the first."""
    headers = ["finding", "positive films"]
    for index, row in enumerate(rows):
        headers += [row["name"]] if index == 0 else [row["name"], "change"]
    body = []
    for finding in findings:
        line = [finding, _count(_inside(rows[0], "evaluation", "findings", finding, "positives")) if rows else _UNKNOWN]
        for index, row in enumerate(rows):
            line.append(_interval(_inside(row, "evaluation", "findings", finding, "auroc")))
            if index:
                line.append(_interval(_inside(row, "difference", "findings", finding), signed=True))
        body.append(line)
    return tabulate(body, headers, tablefmt="simple", disable_numparse=True, colalign=_align(len(headers)))


def _heading(dataset: Mapping[str, Any]) -> str:
    """What was tested on."""
    test = dataset.get("splits", {}).get("test", {})
    films, patients = _count(test.get("films")), _count(test.get("patients"))
    line = f"Test split of {dataset['name']}: {films} films of {patients} patients. {dataset['attribution']}"
    return f"{_SYNTHETIC}\n{line}" if dataset["synthetic"] else line


def _footer(report: Mapping[str, Any]) -> str:
    """How the columns came about, and the sentence that every output carries."""
    facts = report.get("facts", {})
    return (
        "AUROC: run on the exported file; 95 % intervals resample patients, those of a change in pairs. Latency: "
        f"{_measured_how(report['rows'])}. Zeroed weights show in the deflated size alone.\n"
        f"{_budgets(facts.get('budgets', {}))}{_quantised(facts.get('quantisation', {}))}{_gate(facts.get('gate'))}"
        f"{report['intended_use']}"
    )


def _quantised(facts: Mapping[str, Any]) -> str:
    """One line on how the compressed file came to int8, and why; empty for a float one."""
    if not facts.get("used"):
        return ""
    broken = "; ".join(facts.get("broken", []))
    if facts["used"] != "after training":
        return f"Int8 {facts['used']}: {'after training, ' + broken if broken else 'it was asked for'}.\n"
    if facts.get("qat_not_taken"):
        return f"Int8 after training, though {broken}: of int8 in training, {facts['qat_not_taken']}.\n"
    return f"Int8 after training: {broken or 'it keeps what it must on dev'}.\n"


def _gate(gate: Mapping[str, Any] | None) -> str:
    """One line with the verdict on the compressed file; empty for reports that have none."""
    if not gate:
        return ""
    loss, bound, power = (_UNKNOWN if gate[key] is None else gate[key] for key in ("loss", "upper_bound", "power"))
    shown = [value if isinstance(value, str) else f"{value:.4f}" for value in (loss, bound)]
    verdict = "holds" if gate["holds"] else "BROKEN"
    chance = power if isinstance(power, str) else f"{power:.0%}"
    return (
        f"Gate {verdict}: AUROC lost {shown[0]} (at most {gate['max_loss']:g}), upper bound {shown[1]} (below "
        f"{gate['margin']:g}); of models that are truly equal, {chance} pass on a test set like this.\n"
    )


def _budgets(budgets: Mapping[str, Mapping[str, Any]]) -> str:
    """One line that holds every bound beside what came out; empty where nothing was bounded."""
    parts = [
        f"{name} at most {budget['limit']:,.10g}, predicted {budget['predicted']:,.10g}, came out {_plain(budget)}"
        for name, budget in budgets.items()
    ]
    return f"Budget: {'; '.join(parts)}.\n" if parts else ""


def _plain(budget: Mapping[str, Any]) -> str:
    measured = budget.get("measured")
    return _UNKNOWN if measured is None else f"{measured:,.10g}"


def _measured_how(rows: Sequence[Mapping[str, Any]]) -> str:
    """Runtime, threads and machine of the latencies."""
    for row in rows:
        latency = row.get("latency") or {}
        if latency.get("runtime"):
            return (
                f"{latency['runtime']}, {latency.get('num_threads', _UNKNOWN)} thread(s), "
                f"{latency.get('machine', 'machine unknown')}; compare within one run only"
            )
    return "not recorded"


def _inside(row: Mapping[str, Any], *keys: str) -> Any:
    """A value deep in a row; None if anything on the way is missing."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _count(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _millions(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value / 1e6:,.1f} M"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1%}"


def _milliseconds(latency: Mapping[str, Any] | None) -> str:
    value = (latency or {}).get("p50_ms")
    return _UNKNOWN if value is None else f"{value:.2f}"


def _interval(measured: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    """0.967 [0.951, 0.980]; "?" for what is not known."""
    sign = "+" if signed else ""
    value, low, high = (
        _UNKNOWN if number is None or number != number else f"{number:{sign}.3f}"  # noqa: PLR0124 - true of nan alone
        for number in ((measured or {}).get(key) for key in ("value", "low", "high"))
    )
    return _UNKNOWN if value == low == high == _UNKNOWN else f"{value} [{low}, {high}]"


def _align(columns: int) -> tuple[str, ...]:
    return ("left", *("right",) * (columns - 1))


def render_forecast(forecast: Mapping[str, Any]) -> str:
    """What `Forecast.to_dict` holds, as two tables: what comes out, and how long it takes.

    Args:
        forecast: ``before``, ``after``, ``certain``, ``stages`` and ``seconds``.
    """
    before, after = forecast["before"], forecast["after"]
    costs = [
        [name, f"{before[name]:,.10g}", f"{after[name]:,.10g}", f"{after[name] / before[name]:.1%}"]
        for name in before
        if before.get(name) and after.get(name) is not None
    ]
    stages = [[name, "done" if not seconds else f"{seconds:,.0f}"] for name, seconds in forecast["stages"].items()]
    draw = partial(tabulate, tablefmt="simple", disable_numparse=True)
    doubt = (
        "" if forecast["certain"] else "\nPlanned on random weights: after the training layers may be cut otherwise."
    )
    return (
        f"{draw(costs, ['cost', 'uncut', 'predicted', 'left'], colalign=_align(4))}\n\n"
        f"{draw(stages, ['stage', 'about s'], colalign=_align(2))}\n\n"
        f"About {forecast['seconds'] / 60:.0f} minutes on this machine.{doubt}"
    )

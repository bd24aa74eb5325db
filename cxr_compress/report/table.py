"""The one table of a run, as text: what was gained, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    return (
        "AUROC: run on the exported file; 95 % intervals resample patients, those of a change in pairs. Latency: "
        f"{_measured_how(report['rows'])}. Zeroed weights show in the deflated size alone.\n"
        f"{_budgets(report.get('facts', {}).get('budgets', {}))}{report['intended_use']}"
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

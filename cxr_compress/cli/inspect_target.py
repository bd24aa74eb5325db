"""The part of cxr_inspect that says where each operator of a .tflite will run; TensorFlow is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cxr_compress.cli.common import print_error
from cxr_compress.cli.inspect_tflite import read_any
from cxr_compress.cli.output import write_results
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.lite.targets.edgetpu import EdgeTpuReport, OpVerdict, edgetpu_report
from cxr_compress.lite.targets.edgetpu_compiler import COMPILER, find_compiler, run_compiler
from cxr_compress.lite.targets.xnnpack_nodes import NodeVerdict, XnnpackReport, xnnpack_report

_COLUMNS = ("index", "operator", "version", "verdict", "reason", "layer")
_NOTES = {
    "edgetpu": "predicted from the documented rules; only the compiler knows how large a tensor may be",
    "xnnpack": "as LiteRT 2 takes them; tflite-runtime 2.14 takes fewer 8-bit operators",
}


def print_target(path: Path, form: str, target: str) -> None:
    """Print what a target makes of a .tflite: a summary and a row for each operator.

    Raises:
        ModelFileError: no .tflite, or a damaged one.
    """
    report = _report(path, target)
    if form == "table":
        sys.stdout.write(f"{report.to_text()}\nnote       {_NOTES[target]}\n\n")
    document = {"model": str(path), "target": target, "note": _NOTES[target], **report.to_dict()}
    write_results(form, document=document, headers=_COLUMNS, rows=_rows(report))


def _report(path: Path, target: str) -> EdgeTpuReport | XnnpackReport:
    _, content, _ = read_any(path)
    try:
        return xnnpack_report(content) if target == "xnnpack" else _with_compiler(edgetpu_report(content), content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error


def _with_compiler(report: EdgeTpuReport, content: bytes) -> EdgeTpuReport:
    """The report with what edgetpu_compiler says, where it is installed; the prediction stands without it too."""
    program = find_compiler()
    if program is None:
        return report
    try:
        return report.with_compiler(run_compiler(content, program))
    except CompressionError as error:
        print_error("cxr_inspect", f"{COMPILER} is left out: {error}")
        return report


def _rows(report: EdgeTpuReport | XnnpackReport) -> list[list[Any]]:
    if isinstance(report, XnnpackReport):
        return [_row(op, "xnnpack" if op.taken else "left") for op in report.ops]
    return [_row(op, "edge tpu" if op.mapped else "cpu") for op in report.ops]


def _row(op: OpVerdict | NodeVerdict, verdict: str) -> list[Any]:
    return [op.index, op.kind, op.version, verdict, op.reason, op.layer]

"""The part of cxr_inspect that looks into .tflite files; TensorFlow is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cxr_compress.cli.output import write_results
from cxr_compress.device.modelfile import check_tflite, read_model
from cxr_compress.device.modelinfo import JSON_NAME, ModelInfo
from cxr_compress.errors import ModelFileError
from cxr_compress.lite import Audit, audit

_OP_LINE = "op  "


def print_tflite(path: Path, form: str) -> None:
    """Print what a .tflite holds, in the --format asked for.

    Raises:
        ModelFileError: no .tflite, or a damaged one.
    """
    data, content, info = read_any(path)
    try:
        found = audit(content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error
    if form == "table":
        sys.stdout.write(_text(found, info, len(data)) + "\n\n")
    document = {"model": str(path), "bytes": len(data), "info": info.to_dict() if info else None, **found.to_dict()}
    rows = [[op.kind, op.version, op.count] for op in found.ops]
    write_results(form, document=document, headers=("operator", "version", "count"), rows=rows)


def read_any(path: Path) -> tuple[bytes, bytes, ModelInfo | None]:
    """A .tflite of cxr_compress or not: the whole file, the flatbuffer in it, and what it says about itself or None.

    Raises:
        ModelFileError: one of cxr_compress that is damaged.
    """
    check_tflite(path)
    data = path.read_bytes()
    # One of ours is verified; a damaged one must not pass for a foreign file.
    own = read_model(path) if JSON_NAME.encode() in data else None
    return (data, own.content, own.info) if own else (data, data, None)


def _text(found: Audit, info: ModelInfo | None, size: int) -> str:
    """The lines above the list of operators."""
    lines = [f"file    {size} bytes", *_own_lines(info)]
    lines += [line for line in found.to_text().splitlines() if not line.startswith(_OP_LINE)]
    if not found.float_islands:
        lines.append("float   " + ("no float islands" if found.has_integer_activations else "computes in float"))
    return "\n".join(lines)


def _own_lines(info: ModelInfo | None) -> list[str]:
    """What the file says about itself."""
    if info is None:
        return ["about   not of cxr_compress: no labels and no preprocessing inside"]
    spec: dict[str, Any] = info.preprocess.to_dict()
    shape = f"{spec['height']} x {spec['width']} x {spec['channels']} {spec['color']}"
    return [
        f"about   {info.model_name}, quantisation {info.quant_type}, images {shape}",
        f"labels  {', '.join(info.labels)}",
        _decision_line(info),
        *_origin_lines(info),
        *(["trained on drawn phantom images: its findings say nothing about patients"] if info.synthetic else []),
    ]


def _decision_line(info: ModelInfo) -> str:
    """How an image gets its findings, or its one class."""
    if info.exclusive:
        return "classes exclude one another: one softmax, and the likeliest is predicted"
    return f"at      {', '.join(f'{value:.4g}' for value in info.thresholds)} ({info.threshold_source})"


def _origin_lines(info: ModelInfo) -> list[str]:
    """Where its numbers come from and what it can be checked by; what a file of version 1 does not say is left out."""
    films = f"golden  {info.golden.shape[0]} films, answered by {info.golden.runtime}" if info.golden else ""
    lines = [
        f"scaled  {info.calibration_source}",
        f"weights canonical sha256 {info.canonical_hash}" if info.canonical_hash else "",
        *(f"from    {name} sha256 {digest}" for name, digest in info.parents.items()),
        films,
    ]
    return [line for line in lines if line]

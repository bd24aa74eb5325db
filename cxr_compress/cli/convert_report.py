"""What cxr_convert prints: a row for each file and, if asked for, one for each layer of the int8 files."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_compress.cli.output import write_results
from cxr_compress.lite import LiteModel
from cxr_compress.lite.int8.layer_snr import COLUMNS as LAYER_COLUMNS

if TYPE_CHECKING:
    from cxr_compress.lite import EqualizeReport

_COLUMNS = ("file", "quant_type", "bytes", "input", "output", "zero_weights", "answers", "dB", "rank", "runs on")


def print_report(
    form: str,
    targets: Mapping[str, Path],
    made: Mapping[str, LiteModel],
    packed: Mapping[str, bytes],
    *,
    equalized: EqualizeReport | None = None,
    layers: bool = False,
) -> None:
    """Print the files, and the layers before them; CSV can hold one table: that of the layers, where it was asked for.

    Args:
        form: "table", "json" or "csv".
        targets: file by quant type.
        made: conversion by quant type.
        packed: what was written, by quant type.
        equalized: what --equalize did.
        layers: print those of the int8 files.
    """
    document: dict[str, Any] = {"files": [_entry(targets[name], made[name], packed[name]) for name in targets]}
    if equalized is not None:
        document["equalized"] = equalized.to_dict()
    rows = [[name, *one.row()] for name in targets for one in made[name].layers] if layers else []
    headers = ("quant_type", *LAYER_COLUMNS)
    if form == "csv" and rows:
        write_results(form, document=document, headers=headers, rows=rows)
        return
    if form == "table":
        _print_extras(made, headers, rows, equalized)
    write_results(form, document=document, headers=_COLUMNS, rows=[_row(targets[n], made[n], packed[n]) for n in made])


def _entry(path: Path, made: LiteModel, data: bytes) -> dict[str, Any]:
    """JSON of one file; only int8 files have layers to compare."""
    about: dict[str, Any] = {"file": str(path), "quant_type": made.quant_type, "bytes": len(data)}
    about |= {"sha256": hashlib.sha256(data).hexdigest(), "audit": made.audit.to_dict()}
    about["parity"] = None if made.parity is None else made.parity.to_dict()
    if made.layers:
        about["layers"] = [one.to_dict() for one in made.layers]
    if made.fallback is not None:
        about["fallback"] = made.fallback.to_dict()
    return about


def _row(path: Path, made: LiteModel, data: bytes) -> list[Any]:
    found = made.audit
    ends = [found.inputs[0].dtype, found.outputs[0].dtype]
    return [str(path), made.quant_type, len(data), *ends, f"{found.sparsity.fraction:.1%}", *_parity_cells(made)]


def _parity_cells(made: LiteModel) -> list[str]:
    """Fewest answers of a finding, decibels, lowest rank correlation; then who can load the file."""
    runtimes = " ".join(made.audit.runtimes) or "none"
    if made.parity is None:
        return ["", "", "", runtimes]
    lowest = made.parity.lowest_spearman
    rank = "" if lowest is None else f"{lowest:.4f}"
    return [str(min(made.parity.codes)), f"{made.parity.snr_db:.1f}", rank, runtimes]


def _print_extras(
    made: Mapping[str, LiteModel], headers: tuple[str, ...], rows: list[list[str]], equalized: EqualizeReport | None
) -> None:
    """What a reader wants to see above the files."""
    from tabulate import tabulate

    if rows:
        numbers = ["left", "left", "left", "right", "right", "right", "left"]
        sys.stdout.write(tabulate(rows, headers, disable_numparse=True, colalign=numbers) + "\n\n")
    if equalized is not None:
        sys.stdout.write(f"{len(equalized.pairs)} pairs of layers equalised, {len(equalized.left)} layers left alone\n")
        sys.stdout.writelines(f"  {layer}: {reason}\n" for layer, reason in equalized.left.items())
    for one in made.values():
        if one.fallback is not None:
            sys.stdout.write(f"{one.quant_type}: {one.fallback.to_text()}\n\n")
    lines = [f"{name}: {one.parity.to_text()}\n" for name, one in made.items() if one.parity is not None]
    sys.stdout.write("".join([*lines, "\n"]) if lines else "")

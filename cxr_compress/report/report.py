"""The facts of one run in one JSON document: what every table and page is made from."""

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
from cxr_compress.files import write_text

SCHEMA_VERSION = 2


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

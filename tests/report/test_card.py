"""What a card says of the world outside: measured on this very file, or that nobody looked."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cxr_compress.device.modelfile import read_model
from cxr_compress.errors import DataError
from cxr_compress.report import read_report
from cxr_compress.report.cards import external_validation, render_delivered_card
from tests.conftest import REPOSITORY

SHELF = REPOSITORY / "tflite_models"
REPORT = REPOSITORY / "experiments" / "results" / "demo.json"
MEASURED = REPOSITORY / "experiments" / "results" / "external_validation.json"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(json.loads(MEASURED.read_text(encoding="utf-8")))


def test_every_shipped_card_has_the_external_validation_of_its_file(rows: list[dict[str, Any]]) -> None:
    for path in SHELF.glob("*.tflite"):
        file = read_model(path)
        own = [row for row in rows if row["sha256"] == file.sha256]
        section = external_validation(file, own)
        assert own
        assert section in path.with_suffix(".md").read_text(encoding="utf-8")


def test_delivered_card_has_what_the_file_says_and_what_its_run_measured(rows: list[dict[str, Any]]) -> None:
    path = next(SHELF.glob("*.tflite"))
    file, report = read_model(path), read_report(REPORT)
    card = render_delivered_card(report, file, file_name=path.name, population="children", external=rows)
    for text in (
        f"# {file.info.model_name}\n\n**{file.info.intended_use}** Never let it decide about a patient.",
        f"| sha256 | `{file.sha256}` |",
        "| trained on | kermany (children): train 4,717 images of 3,289 patients; dev 499 images of 365 patients |",
        f"| thresholds | {file.info.threshold_source} |",
        "0.953 [0.934, 0.969]",
        "| Pneumonia | 390 / 234 | 0.985 | 0.538 |",
        external_validation(file, rows),
    ):
        assert text in card
    assert "SYNTHETIC" not in card
    report["facts"]["sha256"] = {}
    with pytest.raises(DataError, match="the report is not of the run that made tiny_chexnet_m50_w50_int8"):
        render_delivered_card(report, file, file_name=path.name)


def test_card_without_validation_says_so_and_names_a_coin_as_one(rows: list[dict[str, Any]]) -> None:
    file = read_model(next(SHELF.glob("*.tflite")))
    assert external_validation(file, []).startswith("None: nobody has tested this file")
    worse = copy.deepcopy(rows)
    worse[0]["evaluation"]["findings"]["Pneumonia"]["auroc"] = {"value": 0.455, "low": 0.42, "high": 0.492}
    assert "0.455 [0.420, 0.492] (no better than a coin)" in external_validation(file, worse)
    worse[0]["sha256"] = "0" * 64
    with pytest.raises(DataError, match="the external validation on nih_mini is of another file"):
        external_validation(file, worse)


def test_external_validation_measures_again_what_is_committed(
    cxr_data: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    model, results = next(SHELF.glob("*.tflite")), tmp_path / "again.json"
    command = [sys.executable, "experiments/external_validation.py", f"--model={model}", f"--data_dir={cxr_data}"]
    options = [f"--results={results}", "--bootstrap_samples=2"]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (again,) = json.loads(results.read_text(encoding="utf-8"))
    for finding, found in again["evaluation"]["findings"].items():
        kept = rows[0]["evaluation"]["findings"][finding]
        assert (found["positives"], found["negatives"]) == (kept["positives"], kept["negatives"])
        # Another processor may round a code or two the other way, which moves few of 600,000 pairs.
        assert found["auroc"]["value"] == pytest.approx(kept["auroc"]["value"], abs=0.005)

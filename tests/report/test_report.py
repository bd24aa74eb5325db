"""report.json and the table: complete, honest about what is unknown, and loud about synthetic images."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.data import Dataset, Split
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.errors import DataError
from cxr_compress.report import Row, build_report, read_report, render_report, render_table, write_report


def make_dataset(findings: tuple[str, ...] = ("Pneumonia",), *, synthetic: bool = False) -> Dataset:
    def split(name: str, images: int) -> Split:
        labels = np.zeros((images, len(findings)), np.float32)
        return Split(name, tuple(map(Path, "x" * images)), labels, tuple(f"secret{i // 2}" for i in range(images)))

    parts = {"train": split("train", 20), "dev": split("dev", 4), "test": split("test", 1624)}
    return Dataset("toy", findings, **parts, attribution="Nobody, CC BY 4.0", synthetic=synthetic)


def spread(value: float | None, half: float = 0.01) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - half, "high": value + half}


def make_rows(findings: tuple[str, ...] = ("Pneumonia",)) -> list[Row]:
    latency = {"p50_ms": 12.345, "p95_ms": 14.0, "runtime": "litert 9", "num_threads": 1, "machine": "Linux test"}
    scores = {finding: {"positives": 390, "auroc": spread(0.96 + k / 100)} for k, finding in enumerate(findings)}
    drops = {finding: spread(0.005 * (k + 1), 0.002) for k, finding in enumerate(findings)}
    first = Row(
        name="fp32 as converted",
        file="fp32.tflite",
        params=1_234_567,
        macs=2_833_152_000,
        tflite_bytes=4_938_268,
        deflated_bytes=4_500_000,
        weight_sparsity=0.0,
        latency=latency,
        evaluation={"mean_auroc": spread(0.967), "findings": scores},
    )
    second = dataclasses.replace(
        first,
        name="compressed int8",
        file="small.tflite",
        weight_sparsity=0.5,
        degradation={"auroc_drop": spread(0.0123, 0.004), "findings": drops},
    )
    return [first, second]


def test_render_report_one_finding_shows_every_number_of_each_row() -> None:
    text = render_report(build_report(make_rows(), make_dataset()))
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("compressed int8"))
    for shown in ("1,234,567", "2,833.2 M", "4,938,268", "4,500,000", "50.0%", "12.35", "0.967 [0.957, 0.977]"):
        assert shown in row
    assert "-0.012 [-0.016, -0.008]" in row
    assert "[-" not in next(line for line in lines if line.startswith("fp32"))  # the reference has no change
    assert "Test split of toy: 1,624 images of 812 patients. Nobody, CC BY 4.0" in lines[0]
    assert "litert 9, 1 thread(s), Linux test" in text
    assert lines[-1] == INTENDED_USE
    assert "SYNTHETIC" not in text
    assert "mean AUROC" not in text


def test_render_report_several_findings_shows_the_mean_and_a_table_of_findings() -> None:
    findings = ("Opacity", "Nodule")
    text = render_report(build_report(make_rows(findings), make_dataset(findings)))
    assert "mean AUROC" in text
    opacity = next(line for line in text.splitlines() if line.startswith("Opacity"))
    nodule = next(line for line in text.splitlines() if line.startswith("Nodule"))
    assert "390" in opacity
    assert "0.960 [0.950, 0.970]" in opacity
    assert "-0.005 [-0.007, -0.003]" in opacity
    assert "0.970 [0.960, 0.980]" in nodule
    assert "-0.010 [-0.012, -0.008]" in nodule


def test_render_report_synthetic_set_says_so_in_the_heading() -> None:
    text = render_report(build_report(make_rows(), make_dataset(synthetic=True)))
    assert text.splitlines()[0].startswith("SYNTHETIC")


def test_render_table_unknown_numbers_are_question_marks_and_never_zero() -> None:
    unknown = Row("fp32", "a.tflite").to_dict()
    lame = Row("int8", "b.tflite", evaluation={"mean_auroc": spread(None)}, degradation={"auroc_drop": spread(None)})
    lines = render_table([unknown, lame.to_dict()]).splitlines()
    assert lines[-2].split() == ["fp32", *"?" * 7]
    assert lines[-1].split() == ["int8", *"?" * 8]
    no_bounds = {**unknown, "evaluation": {"mean_auroc": {"value": 0.9, "low": float("nan"), "high": None}}}
    assert "0.900 [?, ?]" in render_table([no_bounds])


def test_render_table_measured_zero_is_shown_as_zero() -> None:
    zero = Row("fp32", "a.tflite", macs=0, params=0, weight_sparsity=0.0, latency={"p50_ms": 0.0}).to_dict()
    assert render_table([zero]).splitlines()[-1].split() == ["fp32", "0", "0.0", "M", "?", "?", "0.0%", "0.00", "?"]


def test_render_report_without_rows_is_an_empty_table() -> None:
    text = render_report(build_report([], make_dataset(("A", "B"))))
    assert text.endswith(INTENDED_USE)


def test_write_report_round_trip_keeps_everything_and_names_no_patient(tmp_path: Path) -> None:
    report = build_report(make_rows(), make_dataset(), facts={"recipe": {"target_macs": 0.5}, "bad": float("nan")})
    path = tmp_path / "report.json"
    write_report(path, report)
    found = read_report(path)
    assert found == {**json.loads(json.dumps(report)), "facts": {"recipe": {"target_macs": 0.5}, "bad": None}}
    assert found["schema_version"] == 2
    assert found["intended_use"] == INTENDED_USE
    assert found["dataset"]["splits"]["test"] == {"images": 1624, "patients": 812}
    assert found["dataset"]["attribution"] == "Nobody, CC BY 4.0"
    assert "secret" not in path.read_text()
    assert render_report(found) == render_report(report)
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a report"),
        ("[]", "expected a report with schema_version and rows"),
        ('{"schema_version": 1}', "expected a report with schema_version and rows"),
        ('{"schema_version": 99, "rows": []}', "has schema_version 99, this cxr_compress reads 2; upgrade it"),
        ('{"schema_version": 1, "rows": []}', "has schema_version 1, this cxr_compress reads 2; run the same command"),
    ],
)
def test_read_report_other_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_report(path)
    with pytest.raises(DataError, match="cannot be read as a report"):
        read_report(tmp_path / "nowhere.json")


def test_report_data_and_evaluate_import_without_a_framework() -> None:
    code = (
        "import sys, cxr_compress.data, cxr_compress.evaluate, cxr_compress.metrics, cxr_compress.report\n"
        "print([name for name in ('tensorflow', 'tf_keras', 'keras', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def judged(verdict: str, more: int | None = None) -> dict[str, Any]:
    """One finding of a comparison."""
    rates = {"new_miss_rate": spread(1.25), "new_false_alarm_rate": spread(None)}
    return {"verdict": verdict, "margin": 0.02, "more_of_the_rarer_class": more, "at_threshold": {"own": rates}}


def test_render_report_says_of_each_finding_and_file_what_is_shown_and_which_group_is_worse() -> None:
    rows = make_rows()
    change = {"group": "F", "finding": "B", "auroc_drop": spread(0.05), "verdict": "worse"}
    fine = {"group": "M", "finding": "B", "auroc_drop": spread(0.0), "verdict": "not enough images"}
    findings = {"A": judged("not inferior"), "B": judged("not enough images", 1234)}
    groups = {"sex": {"changes": [change, fine]}}
    rows = [rows[0], dataclasses.replace(rows[1], comparison={"findings": findings, "groups": groups}), *rows[2:]]
    text = render_report(build_report(rows, make_dataset(("A", "B"))))
    table = [line.split() for line in text.splitlines() if line.startswith(("A  ", "B  ")) and rows[1].name in line]
    assert table[-2][-4:] == ["not", "inferior", "1.2", "?"]
    assert table[-1][-5:] == ["enough", "images", "1,234", "1.2", "?"]
    assert "a loss of AUROC of 0.02 or more is ruled out" in text
    assert f"- {rows[1].name}: B is worse in the group F of sex" in text
    assert "group M" not in text
    calm = dataclasses.replace(rows[1], comparison={"findings": findings, "groups": {"sex": {"changes": [fine]}}})
    text = render_report(build_report([rows[0], calm], make_dataset(("A", "B"))))
    assert "No group (by sex, age, view or source, as far as the set says them) is shown to be worse." in text

"""cxr_inspect --target from its flags to the table of operators."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from cxr_compress.cli.inspect import main
from cxr_compress.device import INTENDED_USE, read_model
from cxr_compress.lite.graph.flatbuffer import to_bytes, to_object
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.device.reference import FLOAT_MODEL, INT8_MODEL
from tests.lite.targets.compiler_logs import PARTLY, recorded


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the tests expect must not depend on an installed compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_inspect_for_the_edge_tpu_lists_every_operator_under_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(INT8_MODEL), "--target=edgetpu"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].startswith("edge tpu ")
    assert any(line.startswith("parameters ") and "cache 7,969,177: fits" in line for line in lines)
    assert any(line.startswith("note ") and "predicted from the documented rules" in line for line in lines)
    (heading,) = [line for line in lines if line.split()[:2] == ["index", "operator"]]
    assert heading.split() == ["index", "operator", "version", "verdict", "reason", "layer"]
    assert lines[-1] == INTENDED_USE


def test_inspect_for_the_edge_tpu_as_json_has_the_split_and_every_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(INT8_MODEL), "--target=edgetpu", "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mapped"] + found["on_cpu"] == len(found["ops"]) > 5
    assert found["ready"] == (found["on_cpu"] == 0 and not found["problems"])
    assert [op["index"] for op in found["ops"]] == list(range(len(found["ops"])))
    assert found["compiler"] is None
    assert (found["target"], found["intended_use"]) == ("edgetpu", INTENDED_USE)


def test_inspect_of_a_float_model_for_the_edge_tpu_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FLOAT_MODEL), "--target=edgetpu"]) == 0
    out = capsys.readouterr().out
    assert "problem    it is not quantized: convert with --quant_type=int8" in out
    assert "verdict    does not run there as a whole" in out


def test_inspect_for_xnnpack_as_csv_has_a_row_for_each_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.tflite"
    model = to_object(read_model(FLOAT_MODEL).content)
    for entry in model.metadata or []:
        model.buffers[entry.buffer].data = None
    model.metadata = None
    foreign.write_bytes(to_bytes(model))
    rows = []
    for path in (FLOAT_MODEL, foreign):
        assert main([str(path), "--target=xnnpack", "--format=csv"]) == 0
        rows.append(list(csv.DictReader(io.StringIO(capsys.readouterr().out))))
    assert rows[0] == rows[1]  # what the file carries beside the model does not matter
    assert {row["verdict"] for row in rows[0]} == {"xnnpack"}
    assert all(row["layer"] and not row["reason"] for row in rows[0])


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler is for Linux")
def test_inspect_with_a_compiler_on_the_path_prints_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that repeats a recorded message stands on the PATH: that it is run and read is tested, no compiling."""
    Path(recorded(tmp_path, PARTLY)).rename(tmp_path / "edgetpu_compiler")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main([str(INT8_MODEL), "--target=edgetpu"]) == 0
    assert "compiler   15.0.340273435: 2 operators on the Edge TPU, 34 on the CPU" in capsys.readouterr().out
    assert main([str(INT8_MODEL), "--target=edgetpu", "--format=json"]) == 0
    compiler = json.loads(capsys.readouterr().out)["compiler"]
    assert (compiler["mapped"], compiler["on_chip_bytes"], compiler["off_chip_bytes"]) == (2, 3072, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler is for Linux")
def test_inspect_with_a_broken_compiler_says_so_and_gives_the_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(recorded(tmp_path, "", code=7)).rename(tmp_path / "edgetpu_compiler")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main([str(INT8_MODEL), "--target=edgetpu"]) == 0
    printed = capsys.readouterr()
    assert printed.err == (
        "cxr_inspect: edgetpu_compiler is left out: edgetpu_compiler ended with code 7 and said nothing that can be "
        "read: run it by hand to see why\n"
    )
    assert printed.out.startswith("edge tpu ")


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("model.keras", "edgetpu", "--target is for .tflite files, got model.keras: export it with cxr_convert first"),
        ("model.tflite", "gpu", "value should be one of <edgetpu|xnnpack>"),
        ("model.tflite", "xnnpack", "model.tflite: is not a .tflite file"),
        ("model.tflite", "edgetpu", "model.tflite: is not a .tflite file"),
    ],
)
def test_inspect_for_a_target_of_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, target: str, message: str
) -> None:
    (tmp_path / name).write_bytes(b"0000nothing")
    assert main([str(tmp_path / name), f"--target={target}"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert message in printed.err


def test_inspect_for_a_target_loads_no_tensorflow() -> None:
    done = run_module("inspect", str(INT8_MODEL), "--target=xnnpack", prelude=BLOCK_TENSORFLOW)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("xnnpack ")

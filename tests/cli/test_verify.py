from __future__ import annotations

import dataclasses
import json

import pytest

from cxr_compress.cli.verify import main
from cxr_compress.device.modelfile import pack_model, read_model
from tests.device.reference import FLOAT_MODEL, INT8_MODEL


@pytest.fixture
def other(tmp_path):
    """A file whose record is another one's: it answers otherwise than it says."""
    file = read_model(INT8_MODEL)
    turned = dataclasses.replace(file.info.reference, logits=file.info.reference.logits[::-1])
    path = tmp_path / "other.tflite"
    path.write_bytes(pack_model(file.content, dataclasses.replace(file.info, reference=turned)))
    return path


def test_verify_files_that_answer_as_recorded_end_with_0(capsys):
    assert main([f"--model={INT8_MODEL},{FLOAT_MODEL}", "--format=json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["passed"] for row in report["models"]] == [True, True]
    assert report["errors"] == []
    assert "not a medical device" in report["intended_use"]


def test_verify_file_that_answers_otherwise_ends_with_3_and_is_named(capsys, other):
    assert main([f"--model={INT8_MODEL},{other}"]) == 3
    said = capsys.readouterr()
    assert "passed" in said.out
    assert "FAILED" in said.out
    assert f"cxr_verify: {other}: FAILED: 4 reference images on " in said.err


def test_verify_goes_on_after_a_damaged_file_and_ends_with_1(capsys, tmp_path):
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(INT8_MODEL.read_bytes()[:-100])
    assert main([f"--model={cut},{INT8_MODEL}", "--format=json"]) == 1
    said = capsys.readouterr()
    assert [row["passed"] for row in json.loads(said.out)["models"]] == [True]
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "expected --model=FILE[,FILE...], the .tflite files to check"),
        (["--model=gone.tflite"], "gone.tflite: no such model file; check the path"),
        (["--model=a.tflite,b.tflite"], "none of the 2 files could be checked"),
        (["--model=a.tflite", "more"], "expected no argument, got 'more'"),
        ([f"--model={INT8_MODEL}", "--delegate=libgone.so.1"], "libgone.so.1"),
    ],
)
def test_verify_wrong_call_ends_with_2_and_says_why(capsys, arguments, line):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert line in said.err

from __future__ import annotations

import csv
import io
import json

import pytest

from cxr_compress.cli.benchmark import main
from cxr_compress.device.modelfile import INTENDED_USE, read_model
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.device.golden import FLOAT_MODEL, INT8_MODEL

QUICK = ("--runs=5", "--warmup=1", "--image_size=256")


def test_benchmark_json_has_every_number_of_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--model={INT8_MODEL},{FLOAT_MODEL}", "--format=json", *QUICK]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == ""
    assert result["intended_use"] == INTENDED_USE
    assert (result["runs"], result["warmup"], result["num_threads"], result["image_size"]) == (5, 1, 1, 256)
    assert "not for a Raspberry Pi" in result["note"]
    assert result["peak_memory_bytes"] > 20 * 2**20
    assert [model["model"] for model in result["models"]] == [str(INT8_MODEL), str(FLOAT_MODEL)]
    for model, path in zip(result["models"], (INT8_MODEL, FLOAT_MODEL), strict=True):
        assert model["sha256"] == read_model(path).sha256
        assert model["file_bytes"] == path.stat().st_size
        assert 0 < model["model_p50_ms"] <= model["model_p95_ms"]
        assert model["model_p50_ms"] < model["end_to_end_p50_ms"] <= model["end_to_end_p95_ms"]
    first, second = result["models"]
    assert first["ratio"] == 1.0
    # Both are rounded to a microsecond, of times of about 30.
    assert second["ratio"] == pytest.approx(second["model_p50_ms"] / first["model_p50_ms"], rel=0.1)


def test_benchmark_threads_are_passed_on_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--model={INT8_MODEL}", "--format=json", "--num_threads=2", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["num_threads"] == 2


def test_benchmark_same_file_twice_gives_two_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--model={INT8_MODEL},{INT8_MODEL}", "--format=csv", *QUICK]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["model"] for row in rows] == [str(INT8_MODEL)] * 2
    assert INTENDED_USE in err


def test_benchmark_table_says_what_the_numbers_hold_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--model={INT8_MODEL}", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[:4] == ["model", "quant", "type", "file"]
    assert out.splitlines()[-1] == INTENDED_USE
    assert "1 thread(s); peak memory" in err
    assert "these numbers are for this machine, not for a Raspberry Pi unless it is one" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "expected --model=FILE[,FILE...], the .tflite files to time (see cxr_benchmark --help)"),
        ([f"--model={INT8_MODEL}", "b.tflite"], "expected no argument, got 'b.tflite'; several models go into --model"),
        (["--model=nowhere.tflite"], "nowhere.tflite: no such model file; check the path"),
        ([f"--model={INT8_MODEL}", "--runs=0"], "flag --runs=0: 0 is not a positive integer"),
        ([f"--model={INT8_MODEL}", "--image_size=99999"], "flag --image_size=99999: "),
    ],
)
def test_benchmark_wrong_use_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"cxr_benchmark: {text}")
    assert err.count("\n") == 1


def test_benchmark_process_loads_no_tensorflow() -> None:
    done = run_module("benchmark", f"--model={INT8_MODEL}", "--format=json", *QUICK, prelude=BLOCK_TENSORFLOW)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["models"]) == 1

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from cxr_compress.cli.benchmark import main
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.modelfile import INTENDED_USE, read_model
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.device.reference import FLOAT_MODEL, INT8_MODEL, PROBE_PACK

QUICK = ("--runs=5", "--warmup=1", "--image_size=256")


def test_benchmark_json_has_every_number_of_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--model={INT8_MODEL},{FLOAT_MODEL}", "--format=json", *QUICK]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [line.partition("] ")[2] for line in err.splitlines()] == [
        "timing the model: 6 turns",
        "timing from PNG to findings: 6 turns",
    ]
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


def test_benchmark_layers_writes_a_table_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    assert main([f"--layers={PROBE_PACK}", f"--output_file={table}", "--format=json", "--runs=6", "--warmup=1"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    times = CostTable.from_json(table.read_text(encoding="utf-8")).layer_times
    assert times is not None
    assert {entry["kind"] for entry in result["kinds"]} == set(times.kinds)
    assert result["fixed_ms"] == times.fixed
    assert (result["num_threads"], result["runs"], result["output_file"]) == (1, 6, str(table))
    # Progress alone on stderr, a line every five turns and one at the end.
    assert [line.split(" flatbuffers ")[1] for line in err.splitlines()] == ["5 of 6 times", "6 of 6 times"]
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_benchmark_layers_table_says_what_it_holds_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    assert main([f"--layers={PROBE_PACK}", f"--output_file={table}", "--runs=2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == INTENDED_USE
    assert "Conv2D 3x3 s1 12x12" in out
    assert f"wrote {table}; it holds for this machine, runtime and number of threads" in err


def test_benchmark_layers_interrupted_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives while the layers are timed."""
    table = tmp_path / "table.json"
    assert main([f"--layers={PROBE_PACK}", f"--output_file={table}", "--runs=2"]) == 0
    old = table.read_text()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cxr_compress.device.layer_times.time_together", interrupt)
    assert main([f"--layers={PROBE_PACK}", f"--output_file={table}"]) == 130
    assert table.read_text() == old
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--layers=gone.zip", "--output_file=t.json"], "gone.zip: no such probe pack; check the path"),
        ([f"--layers={INT8_MODEL}", "--output_file=t.json"], f"{INT8_MODEL}: is no probe pack: it has no index.json"),
        (["--layers=cut.zip", "--output_file=t.json"], "cut.zip: is no probe pack, or cut short"),
        ([f"--layers={PROBE_PACK}"], "expected --output_file=TABLE.json beside --layers: where the table goes"),
        ([f"--layers={PROBE_PACK}", "--output_file=no/t.json"], "the folder of --output_file, no, does not exist"),
        ([f"--layers={PROBE_PACK}", f"--model={INT8_MODEL}"], "expected --layers alone, got models too"),
        ([f"--model={INT8_MODEL}", "--output_file=t.json"], "expected --output_file with --layers only"),
    ],
)
def test_benchmark_layers_wrong_use_is_one_line_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.zip").write_bytes(PROBE_PACK.read_bytes()[:-40])
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"cxr_benchmark: {text}")
    assert err.count("\n") == 1
    assert not (tmp_path / "t.json").exists()


def test_benchmark_layers_process_loads_no_tensorflow(tmp_path: Path) -> None:
    arguments = (f"--layers={PROBE_PACK}", f"--output_file={tmp_path / 't.json'}", "--runs=2")
    done = run_module("benchmark", *arguments, prelude=BLOCK_TENSORFLOW)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.json").is_file()

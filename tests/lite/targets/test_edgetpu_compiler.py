"""The messages of edgetpu_compiler, in the layout that its documentation and its users' logs show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cxr_compress.errors import CompressionError, RuntimeUnavailableError
from cxr_compress.lite.targets.edgetpu import CompiledOps, find_compiler, parse_log, run_compiler
from tests.lite.targets.compiler_logs import LOG_FILE, NEWEST, PARTLY, recorded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the compiler is for Linux")


def test_parse_log_of_a_partly_mapped_model() -> None:
    log = parse_log(PARTLY)
    assert (log.version, log.succeeded, log.error) == ("15.0.340273435", True, "")
    assert (log.mapped, log.on_cpu, log.subgraphs) == (2, 34, 1)
    assert (log.on_chip_bytes, log.off_chip_bytes) == (3 * 1024, 0)
    assert log.on_chip_free_bytes == round(7.67 * 2**20)
    assert log.ops[0] == CompiledOps("MAX_POOL_2D", 6, "More than one subgraph is not supported")
    assert log.ops[-1] == CompiledOps("LEAKY_RELU", 11, "Operation not supported")
    text = log.to_text()
    assert "compiler   15.0.340273435: 2 operators on the Edge TPU, 34 on the CPU" in text
    assert "11 x LEAKY_RELU: Operation not supported" in text
    assert (log.to_dict()["mapped"], log.to_dict()["on_cpu"]) == (2, 34)


def test_parse_log_of_a_log_file_alone() -> None:
    log = parse_log(LOG_FILE)
    assert (log.succeeded, log.mapped, log.on_cpu, log.on_chip_bytes) == (True, 121, 0, None)


def test_parse_log_of_the_newest_version_without_a_table() -> None:
    log = parse_log(NEWEST)
    assert (log.succeeded, log.ops) == (True, ())
    assert (log.off_chip_bytes, log.on_chip_free_bytes) == (round(1.5 * 2**20), round(1.02 * 2**10))


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Invalid model: model.tflite\nModel not quantized\n", "Model not quantized"),
        ("Internal compiler error. Aborting! \n", "Internal compiler error"),
        (
            "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '6'. An older version might be supported.\n"
            "ERROR: Registration failed.\n",
            "Didn't find op for builtin opcode 'CONV_2D' version '6'. An older version might be supported.",
        ),
        (
            "Started a compilation timeout timer of 180 seconds.\n"
            "ERROR: Attempting to use a delegate that only supports static-sized tensors with a graph that has "
            "dynamic-sized tensors.\nCompilation failed: Model failed in Tflite interpreter.\nCompilation failed! \n",
            "Attempting to use a delegate that only supports static-sized tensors with a graph that has dynamic-sized "
            "tensors.",
        ),
    ],
)
def test_parse_log_of_a_failure_gives_its_reason(said: str, error: str) -> None:
    log = parse_log(f"Edge TPU Compiler version 16.0.384591198\n{said}")
    assert (log.succeeded, log.error) == (False, error)
    assert log.to_text() == f"compiler   16.0.384591198: refused: {error}"


def test_parse_log_of_something_else_neither_succeeds_nor_fails() -> None:
    log = parse_log("a web page about Edge TPU Compiler version 16\nCONV_2D 3 times\n")
    assert (log.succeeded, log.error, log.ops, log.version) == (False, "", (), "")


def test_run_compiler_reads_what_is_printed(tmp_path: Path) -> None:
    assert run_compiler(b"model", recorded(tmp_path, PARTLY)).mapped == 2


def test_run_compiler_reads_the_table_from_the_log_file_where_it_is_not_printed(tmp_path: Path) -> None:
    log = run_compiler(b"model", recorded(tmp_path, NEWEST, log=LOG_FILE))
    assert (log.mapped, log.off_chip_bytes) == (121, round(1.5 * 2**20))


def test_run_compiler_of_a_refused_model_gives_its_reason(tmp_path: Path) -> None:
    said = "Edge TPU Compiler version 16.0.384591198\nInternal compiler error. Aborting!\n"
    log = run_compiler(b"model", recorded(tmp_path, said, code=1))
    assert (log.succeeded, log.error) == (False, "Internal compiler error")


def test_run_compiler_that_says_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="ended with code 3 and said nothing that can be read"):
        run_compiler(b"model", recorded(tmp_path, "", code=3))


def test_run_compiler_that_hangs_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"edgetpu_compiler was stopped after 0 s"):
        run_compiler(b"model", recorded(tmp_path, "", seconds=20), timeout_s=0.3)


def test_run_compiler_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="missing cannot be started: No such file or directory"):
        run_compiler(b"model", str(tmp_path / "missing"))


def test_find_compiler_looks_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    program = Path(recorded(tmp_path, PARTLY))
    assert find_compiler() is None
    program.rename(tmp_path / "edgetpu_compiler")
    assert find_compiler() == str(tmp_path / "edgetpu_compiler")

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from absl import flags

import cxr_compress
from cxr_compress.cli.app import UsageError, print_error, run_command
from cxr_compress.cli.output import write_csv_rows, write_results
from cxr_compress.device.modelfile import INTENDED_USE
from cxr_compress.errors import BudgetError, CompressionError

DOC = """Do a thing.

    cxr_thing --size=3
"""


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("size", 3, "How large.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("name", None, "What to call it.", flag_values=values)
    flags.DEFINE_boolean("fast", False, "Skip the slow part.", flag_values=values)


def run_thing(run: Any, *arguments: str) -> int:
    return run_command("cxr_thing", DOC, define, run, list(arguments))


def echo(values: flags.FlagValues, arguments: list[str]) -> int:
    print(json.dumps({"size": values.size, "fast": values.fast, "format": values.format, "rest": arguments}))
    return 0


def fail_with(error: BaseException) -> Any:
    def run(values: flags.FlagValues, arguments: list[str]) -> int:
        raise error

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only thing on stderr, one line; nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.rstrip("\n")


# --- flags ------------------------------------------------------------------------------------------------------------


def test_run_command_flags_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(echo, "a.png", "--size=7", "b.png", "--fast", "--format", "json", "--", "--odd.png") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {"size": 7, "fast": True, "format": "json", "rest": ["a.png", "b.png", "--odd.png"]}


def test_run_command_gives_back_the_exit_code_of_run() -> None:
    assert run_thing(lambda values, arguments: 3) == 3


def test_run_command_several_commands_and_calls_in_one_process_do_not_collide(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for size in ("5", "6"):
        assert run_thing(echo, f"--size={size}") == 0
        assert run_command("cxr_other", "Another.", define, echo, []) == 0
    sizes = [json.loads(line)["size"] for line in capsys.readouterr().out.splitlines()]
    assert sizes == [5, 3, 6, 3]
    assert "size" not in flags.FLAGS


def test_run_command_reads_sys_argv_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cxr_thing", "--size=9", "x"])
    assert run_command("cxr_thing", DOC, define, echo) == 0
    assert json.loads(capsys.readouterr().out)["rest"] == ["x"]


def test_run_command_flagfile_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "thing.flags"
    file.write_text("# a comment\n--size=12\n--fast\n")
    assert run_thing(echo, "a", f"--flagfile={file}") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["size"], result["fast"], result["rest"]) == (12, True, ["a"])


def test_run_command_undefok_lets_flags_of_other_commands_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(echo, "--epochs=3", "--undefok=epochs") == 0
    assert json.loads(capsys.readouterr().out)["size"] == 3


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--sise=4", "Unknown command line flag 'sise'. Did you mean: size ? (see cxr_thing --help)"),
        ("--size=four", "flag --size=four: invalid literal for int() with base 10: 'four' (see cxr_thing --help)"),
        ("--size=0", "flag --size=0: 0 is not a positive integer (see cxr_thing --help)"),
        ("--name", "Missing value for flag --name (see cxr_thing --help)"),
        ("--nodebug=3", "--nodebug=3 does not take an argument: leave it out (see cxr_thing --help)"),
        ("--format=xml", "flag --format=xml: value should be one of <table|json|csv> (see cxr_thing --help)"),
    ],
)
def test_run_command_wrong_flag_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], argument: str, text: str
) -> None:
    assert run_thing(echo, argument) == 2
    assert one_line(capsys) == f"cxr_thing: {text}"


def test_run_command_missing_flagfile_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(echo, "--flagfile=/nowhere/thing.flags") == 2
    assert "Unable to open flagfile" in one_line(capsys)


def test_run_command_flagfile_that_is_no_text_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "thing.jpg"
    file.write_bytes(b"\xff\xd8\xff\xe0")
    assert run_thing(echo, f"--flagfile={file}") == 2
    assert "expected --flagfile to be a text file with one flag a line" in one_line(capsys)


@pytest.mark.parametrize("form", ["--flagfile={}", "-flagfile={}", "--flagfile {}"])
def test_run_command_flagfile_that_is_a_pipe_is_refused_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run_thing(echo, *form.format(tmp_path / "pipe").split()) == 2
    assert one_line(capsys).endswith("pipe, which is a pipe (see cxr_thing --help)")


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["--help", "-help", "-h", "--helpfull"])
@pytest.mark.parametrize("others", [[], ["--wrong=1", "file"]], ids=["alone", "with_wrong_flag"])
def test_run_command_help_shows_every_flag_and_exits_0(
    capsys: pytest.CaptureFixture[str], argument: str, others: list[str]
) -> None:
    assert run_thing(fail_with(AssertionError("must not run")), *others, argument) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("cxr_thing: Do a thing.\n\n    cxr_thing --size=3\n")
    assert "  --size: How large. (default: 3)\n" in out
    assert "  --name: What to call it.\n" in out
    assert "  --[no]fast: Skip the slow part. (default: false)\n" in out
    assert "  --format=table|json|csv: How results are printed. (default: table)\n" in out
    assert "--flagfile:" in out


def test_run_command_helpshort_leaves_the_shared_flags_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(echo, "--helpshort") == 0
    out = capsys.readouterr().out
    assert "--size: How large." in out
    assert "--flagfile:" not in out


def test_run_command_help_after_double_dash_is_a_file_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(echo, "--", "--help") == 0
    assert json.loads(capsys.readouterr().out)["rest"] == ["--help"]


def test_run_command_version_is_one_line_whatever_else_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(fail_with(AssertionError("must not run")), "--wrong=1", "--version") == 0
    assert capsys.readouterr() == (f"cxr_thing {cxr_compress.__version__}\n", "")
    assert run_thing(echo, "--", "--version") == 0
    assert json.loads(capsys.readouterr().out)["rest"] == ["--version"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [CompressionError("a\nb   c"), BudgetError("a b c")])
def test_run_command_user_error_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], error: CompressionError
) -> None:
    assert run_thing(fail_with(error)) == 2
    assert one_line(capsys) == "cxr_thing: a b c"


def test_run_command_usage_error_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(fail_with(UsageError("expected --name"))) == 2
    assert one_line(capsys) == "cxr_thing: expected --name (see cxr_thing --help)"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "in.csv"), "in.csv: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", b"in.csv"), "in.csv: Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; free some space and run the same command again",
        ),
        (MemoryError(), "the machine ran out of memory; use smaller images or batches, or close other programs"),
    ],
)
def test_run_command_system_error_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], error: Exception, text: str
) -> None:
    assert run_thing(fail_with(error)) == 2
    assert one_line(capsys) == f"cxr_thing: {text}"


def test_run_command_missing_extra_names_the_package_and_the_pip_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(fail_with(ModuleNotFoundError("No module named 'tf_keras'", name="tf_keras"))) == 2
    expected = "needs the Python package tf_keras, which is not installed: pip install 'cxr-compress[train]'"
    assert one_line(capsys) == f"cxr_thing: {expected}"


def test_run_command_missing_module_of_our_own_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(fail_with(ModuleNotFoundError("No module", name="cxr_compress.gone"))) == 70
    assert "this is a bug" in one_line(capsys)


def test_run_command_unexpected_error_says_bug_and_exits_70(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_thing(fail_with(ZeroDivisionError("division by zero"))) == 70
    expected = "cxr_thing: internal error, ZeroDivisionError: division by zero; this is a bug, --debug shows where"
    assert one_line(capsys) == expected


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("x"), 70), (CompressionError("x"), 2)])
def test_run_command_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], error: Exception, code: int) -> None:
    assert run_thing(fail_with(error), "--debug") == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "in run\n" in err


@pytest.mark.parametrize(
    ("error", "text"),
    [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("epoch 3 is saved"), "interrupted; epoch 3 is saved")],
)
def test_run_command_ctrl_c_is_one_line_and_exit_130(
    capsys: pytest.CaptureFixture[str], error: KeyboardInterrupt, text: str
) -> None:
    assert run_thing(fail_with(error)) == 130
    assert one_line(capsys) == f"cxr_thing: {text}"


def test_run_command_warning_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run(values: flags.FlagValues, arguments: list[str]) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("mind\nthe gap", UserWarning, stacklevel=1)
        return 0

    assert run_thing(run) == 0
    assert one_line(capsys) == "cxr_thing: warning: mind the gap"


def test_print_error_name_that_is_not_text_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("cxr_thing", "bad \udcff.png: not found")
    assert capsys.readouterr().err == "cxr_thing: bad \\udcff.png: not found\n"


# --- as a process -----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from cxr_compress.cli.app import run_command
def run(values, arguments):
    for number in range(int(arguments[0])):
        print("line", number, flush=number == 0)
    if len(arguments) > 1:
        time.sleep(60)
    return 0
sys.exit(run_command("cxr_thing", "Doc.", lambda values: None, run))
"""


def test_run_command_broken_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "200000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 141


def test_run_command_real_sigint_ends_with_130_and_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "1", "sleep"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "line 0\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "cxr_thing: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_run_command_results_to_a_full_disk_are_one_line_and_exit_2() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "3"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    expected = "cxr_thing: No space left on device; free some space and run the same command again"
    assert done.stderr.splitlines()[0] == expected
    assert done.returncode == 2


@pytest.mark.parametrize("close", [">&-", ">&- 2>&-"])
def test_run_command_with_a_closed_stdout_is_one_line_and_exit_2(close: str) -> None:
    command = ["sh", "-c", f'exec "$0" -c "$1" 3 {close}', sys.executable, SCRIPT]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    text = "cxr_thing: stdout is closed, so results have nowhere to go: leave it open, or send it to a file\n"
    assert (done.returncode, done.stderr) == (2, "" if "2>" in close else text)


def test_run_command_ascii_terminal_prints_odd_names_as_escapes() -> None:
    code = textwrap.dedent("""
        import sys
        from cxr_compress.cli.app import run_command
        def run(values, arguments):
            print(arguments[0])
            return 0
        sys.exit(run_command("cxr_thing", "Doc.", lambda values: None, run))
    """)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code, "radiografía.png"], capture_output=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"radiograf\\xeda.png\n")


# --- results ----------------------------------------------------------------------------------------------------------

HEADERS = ("file_name", "auroc", "count", "ok")
ROWS = [["1e3", 0.123456789, 7, True], ["b,c", None, 1000000, False]]
DOCUMENT = {"rows": [{"auroc": float("nan"), "high": float("inf"), "name": "\udcff", "counts": (1, 2)}]}


def test_write_results_json_has_the_sentence_and_null_for_nan(capsys: pytest.CaptureFixture[str]) -> None:
    write_results("json", document=DOCUMENT, headers=HEADERS, rows=ROWS)
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "intended_use": INTENDED_USE,
        "rows": [{"auroc": None, "high": None, "name": "\udcff", "counts": [1, 2]}],
    }
    assert "NaN" not in out
    assert err == ""


def test_write_results_table_keeps_text_that_looks_like_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    write_results("table", document=DOCUMENT, headers=HEADERS, rows=ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "name", "auroc", "count", "ok"]
    assert lines[2].split() == ["1e3", "0.1235", "7", "yes"]
    assert lines[3].split() == ["b,c", "1000000", "no"]
    assert lines[-1] == INTENDED_USE


def test_write_results_table_and_errors_escape_what_would_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    write_results("table", document={}, headers=["file"], rows=[["a\x1b[2J\r\nb\u202egnp.png"]])
    print_error("cxr_thing", "a\x1b[2Jb\u2028c: not found")
    out, err = capsys.readouterr()
    assert out.splitlines()[2] == r"a\x1b[2J\r\nb\u202egnp.png"
    assert err == r"cxr_thing: a\x1b[2Jb c: not found" + "\n"


def test_write_results_table_without_rows_shows_the_headers(capsys: pytest.CaptureFixture[str]) -> None:
    write_results("table", document={}, headers=HEADERS, rows=[])
    assert "auroc" in capsys.readouterr().out


def test_write_results_csv_is_plain_csv_and_the_sentence_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    write_results("csv", document=DOCUMENT, headers=HEADERS, rows=ROWS)
    out, err = capsys.readouterr()
    assert list(csv.reader(io.StringIO(out))) == [
        ["file_name", "auroc", "count", "ok"],
        ["1e3", "0.123456789", "7", "True"],
        ["b,c", "", "1000000", "False"],
    ]
    assert err == f"{INTENDED_USE}\n"


def test_write_csv_rows_alone_prints_no_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    write_csv_rows([["a", 1]])
    assert capsys.readouterr() == ("a,1\n", "")

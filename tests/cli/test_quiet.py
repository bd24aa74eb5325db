"""What native code writes to stderr, in a real process: pytest replaces sys.stderr."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from cxr_compress.cli.app import quiet_native_stderr
from cxr_compress.errors import CompressionError
try:
    with quiet_native_stderr("cmd", enabled=sys.argv[1] != "debug") as say:
        os.write(2, b"noise\\n")
        say("progress")
        if sys.argv[1] == "known":
            raise CompressionError("one line")
        if sys.argv[1] == "bug":
            raise RuntimeError("bug")
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
os.write(2, b"after\\n")
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("well", "cmd: progress\nafter\n"),
        ("known", "cmd: progress\nCompressionError one line\nafter\n"),
        ("bug", "cmd: progress\nnoise\nRuntimeError bug\nafter\n"),
        ("debug", "noise\ncmd: progress\nafter\n"),
    ],
)
def test_quiet_native_stderr_shows_noise_only_where_it_may_tell_why(how: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    assert done.stderr == expected


CLOSED = """
from cxr_compress.cli.app import quiet_native_stderr
with quiet_native_stderr("cmd") as say:
    say("progress")
print("result")
"""


def test_quiet_native_stderr_with_a_closed_stderr_leaves_stdout_to_the_result() -> None:
    command = ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, CLOSED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cxr_compress.device.native import without_stderr_lines


def test_without_stderr_lines_drops_the_named_line_and_keeps_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    with without_stderr_lines("INFO: noise"):
        os.write(2, b"INFO: noise about delegates\nERROR: real\n")
        os.write(2, b"INFO: noise again\nlast without a line break")
    os.write(2, b"\nINFO: noise afterwards is shown\n")
    assert capfd.readouterr().err == "ERROR: real\nlast without a line break\nINFO: noise afterwards is shown\n"


def test_without_stderr_lines_error_inside_keeps_what_was_written(capfd: pytest.CaptureFixture[str]) -> None:
    def write_and_fail() -> None:
        os.write(2, b"before the error\n")
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), without_stderr_lines("x"):
        write_and_fail()
    assert capfd.readouterr().err == "before the error\n"


def test_without_stderr_lines_closed_stderr_still_runs() -> None:
    code = (
        "import os; os.close(2)\n"
        "from cxr_compress.device.native import without_stderr_lines\n"
        "with without_stderr_lines('x'): print('ran')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ran\n"

"""Steps in processes of their own, real ones that really crash, and the operator at which a step does."""

from __future__ import annotations

import os
import signal
import struct
import time

import numpy as np
import pytest

from cxr_compress.device import native
from cxr_compress.device.interpreter import _find_operators, crash_of, load_interpreter, try_model
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.native import NativeCrashError, run_in_child
from cxr_compress.errors import DataError
from tests.device.reference import FLOAT_MODEL, INT8_MODEL


def test_run_in_child_gives_the_result_and_changes_nothing_here():
    here: list[int] = []
    result = run_in_child(lambda: (here.append(1), os.getpid(), np.arange(300_000))[1:], seconds=30)
    assert here == []
    assert result[0] != os.getpid()
    assert np.array_equal(result[1], np.arange(300_000))  # larger than a pipe holds


def test_run_in_child_raises_what_the_step_raised():
    def step():
        raise DataError("no such image")

    with pytest.raises(DataError, match="no such image"):
        run_in_child(step, seconds=30)


def test_run_in_child_error_that_cannot_travel_keeps_its_words():
    class OddError(Exception):
        """Local classes cannot be pickled."""

    def step():
        raise OddError("of a library")

    with pytest.raises(RuntimeError, match="OddError: of a library"):
        run_in_child(step, seconds=30)


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGKILL"])
def test_run_in_child_crash_is_an_error_with_the_signal_and_the_last_words(name):
    def step():
        os.write(2, b"a check failed\nin kernel X\n")
        os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(NativeCrashError, match=f"^{name}: in kernel X$"):
        run_in_child(step, seconds=30)


def test_run_in_child_words_of_an_emulator_about_the_signal_are_no_reason():
    def step():
        os.write(2, b"in kernel X\nqemu: uncaught target signal 6 (Aborted) - core dumped\n")
        os._exit(3)

    with pytest.raises(NativeCrashError, match=r"^exit code 3: in kernel X$"):
        run_in_child(step, seconds=30)


def test_run_in_child_that_takes_too_long_is_ended():
    started = time.monotonic()
    with pytest.raises(NativeCrashError, match="no answer within 0 s"):
        run_in_child(lambda: time.sleep(60), seconds=0.2)
    assert time.monotonic() - started < 10
    with pytest.raises(ChildProcessError):  # and no process is left behind
        os.waitpid(-1, os.WNOHANG)


def test_child_does_not_wait_for_a_lock_of_a_thread_that_it_lacks():
    content = read_model(INT8_MODEL).content
    with native._LOCK:  # as another thread that loads a model at this moment
        assert run_in_child(lambda: load_interpreter(content).runtime, seconds=30)


def test_crash_of_a_step_that_hangs_says_so_without_looking_for_the_operator(monkeypatch):
    monkeypatch.setattr("cxr_compress.device.interpreter.SECONDS", 0.2)
    started = time.monotonic()
    assert crash_of(read_model(INT8_MODEL).content, lambda part: time.sleep(60)) == "or hangs: no answer within 0 s"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("path", [FLOAT_MODEL, INT8_MODEL], ids=["float", "int8"])
def test_crash_of_names_the_first_operator_with_which_a_step_crashes(path):
    content = read_model(path).content
    place = _find_operators(content)
    (count,) = struct.unpack_from("<I", content, place)
    loaded = load_interpreter(content).interpreter
    listed = [one for one in loaded._get_ops_details() if one["op_name"] != "DELEGATE"]
    assert count == len(listed)
    for number in (1, count // 2, count):

        def step(part, number=number):
            if struct.unpack_from("<I", part, place)[0] >= number:
                os.abort()

        kind = listed[number - 1]["op_name"]
        assert crash_of(content, step).startswith(f"with SIGABRT in operator {number} of {count}, {kind} '")


def test_crash_of_a_step_that_works_is_empty_and_what_it_raises_is_raised():
    content = read_model(INT8_MODEL).content
    assert crash_of(content, len) == ""
    with pytest.raises(ZeroDivisionError):
        crash_of(content, lambda part: 1 // 0)


def test_crash_of_bytes_that_are_no_graph_says_the_signal_alone():
    assert crash_of(b"no graph", lambda part: os.abort()) == "with SIGABRT"


def test_try_model_that_works_leaves_this_process_as_it_was():
    content = read_model(INT8_MODEL).content
    try_model(content)
    assert try_model(content) is None

"""Console scripts as processes: signals at any moment, crashes of native code, and a watcher that dies."""

from __future__ import annotations

import configparser
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_compress.cli import entry
from tests.conftest import REPOSITORY

# A command that says that it is loading, loads for long, says that it runs, and runs for long or crashes.
SCRIPT = """
import os, signal, sys, time, types
from cxr_compress.cli import entry
from cxr_compress.cli.app import run_command
def main():
    print("loading", os.getpid(), flush=True)
    time.sleep(60 if "slow" in sys.argv else 0)
    return run_command("cxr_thing", "Doc.", lambda values: None, run)
def run(values, arguments):
    print("running", flush=True)
    what = arguments[0]
    if what == "swallow":  # as an import may
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("numpy could not be imported")
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    if what == "segfault":
        import ctypes
        ctypes.string_at(0)
    time.sleep(60 if what == "sleep" else 0)
    return 3
sys.modules["cxr_compress.cli.thing"] = types.SimpleNamespace(main=main)
sys.exit(entry.start("thing"))
"""
WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated (SIGTERM)", "SIGHUP": "the terminal is gone (SIGHUP)"}


def start(*arguments: str, script: str = SCRIPT) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    # A session of its own, so that a signal to the whole group, as a terminal sends it, spares the tests.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def wait_for(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    while word not in (line := process.stdout.readline()):
        assert line, "it ended too early"
    return line


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the command", "from a terminal"])
@pytest.mark.parametrize("name", WORDS)
def test_signal_while_running_is_one_line_and_the_code_of_a_shell(name, send):
    process = start("sleep")
    wait_for(process, "running")
    send(process.pid, signal.Signals[name])
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + signal.Signals[name], f"cxr_thing: {WORDS[name]}\n")


@pytest.mark.parametrize("name", WORDS)
def test_signal_while_loading_is_one_line(name):
    process = start("slow")
    wait_for(process, "loading")
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.Signals[name]
    assert err == f"cxr_thing: {WORDS[name]} while loading; nothing was done\n"


def test_signal_that_an_import_turns_into_another_error_is_still_an_interruption():
    process = start("swallow")
    wait_for(process, "running")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "cxr_thing: terminated (SIGTERM)\n")


def test_signal_that_is_ignored_stays_so_as_under_nohup():
    quiet = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{SCRIPT}"
    process = start("sleep", script=quiet)
    wait_for(process, "running")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "cxr_thing: terminated (SIGTERM)\n")


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("segfault", 70, "native code crashed (SIGSEGV)"),
        ("SIGABRT", 70, "native code crashed (SIGABRT)"),
        ("SIGKILL", 137, "was killed (SIGKILL), most likely because the machine ran out of memory"),
        ("nothing", 3, ""),
    ],
)
def test_crash_is_one_line_and_no_vanished_process(what, code, text):
    process = start(what)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert len(err.splitlines()) == (1 if text else 0)
    assert err.startswith(f"cxr_thing: {text}" if text else "")


def test_command_does_not_outlive_its_watcher():
    process = start("sleep")
    child = int(wait_for(process, "loading").split()[1])
    wait_for(process, "running")
    process.kill()
    process.wait(timeout=30)
    state = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.communicate()


def test_every_console_script_has_its_module():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")[1:]
    for name, target in (line.split(" = ") for line in lines):
        module, _, command = target.partition(":")
        script = getattr(importlib.import_module(module), command)
        assert script.func is entry.start
        assert name == f"cxr_{command}"
        assert callable(importlib.import_module(f"cxr_compress.cli.{command}").main)

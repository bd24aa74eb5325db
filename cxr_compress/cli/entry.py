"""What the console scripts call: a command in a process of its own, watched by one that survives it.

A new command is a module `cxr_compress/cli/NAME.py` with a `main`, and a line in setup.cfg that points here.

The runtime, the converter, TensorFlow and image decoders are native code: a crash there, or a kill for want of memory,
ends a process without a word. The watching process then says in one line what happened and where. It also sets the
handlers of signals before anything slow is imported, so that Ctrl-C in the first second is a line and no traceback.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType
from typing import IO

from cxr_compress.cli.signals import SIGNALS, end_while_loading, handled, word

_PATIENCE_SECONDS = 2.0  # a second Ctrl-C after this long ends what does not end by itself
_EXIT_BUG = 70
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
_OUR_FRAME = re.compile(r'File "[^"\n]*[/\\]cxr_compress[/\\]([^"\n]+)", line (\d+) in (\S+)')
_OF_MAIN_THREAD = "Current thread"


def start(command: str) -> int:
    """Run a command and give its exit code.

    Args:
        command: module in `cxr_compress.cli`; "predict" for cxr_predict.
    """
    name = f"cxr_{command}"
    if not hasattr(os, "fork"):
        return _load_and_run(name, command)
    with tempfile.TemporaryFile() as traceback:
        # Between the fork and the handlers of either side a signal waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = os.fork()
        if child == 0:
            faulthandler.enable(traceback)
            return _load_and_run(name, command)
        return _watch(name, child, traceback)


def _load_and_run(name: str, command: str) -> int:
    # Not undone: what Python does at its end is no place for a traceback either.
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end_while_loading(name))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from cxr_compress.device.native import die_with_parent, no_core_file

    if hasattr(os, "fork"):
        die_with_parent()
        no_core_file()
    main: Callable[[], int] = importlib.import_module(f"cxr_compress.cli.{command}").main
    code = main()
    for number in SIGNALS:  # all is said: a second Ctrl-C while Python tidies up needs no other line
        signal.signal(number, signal.SIG_IGN)
    return code


def _watch(name: str, child: int, traceback: IO[bytes]) -> int:
    """Wait for a command, pass signals on to it, and give its exit code; say what happened where it could not."""
    first = [0.0]

    def pass_on(number: int, _: FrameType | None) -> None:
        impatient = first[0] and time.monotonic() - first[0] > _PATIENCE_SECONDS
        first[0] = first[0] or time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL if impatient else number)

    with handled(pass_on):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code >= 0:
            return code
        if first[0] and -code in SIGNALS:  # it was told to end, has said so, and was cut short in tidying up
            return 128 - code
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{name}: {_what_happened(-code, traceback, stopped=bool(first[0]))}\n")
        crashed = signal.Signals(-code).name in _CRASHES
        return _EXIT_BUG if crashed else 128 - code


def _what_happened(number: int, traceback: IO[bytes], *, stopped: bool) -> str:
    signal_name = signal.Signals(number).name
    if signal_name in _CRASHES:
        return (
            f"native code crashed ({signal_name}){_place(traceback)}: what is finished is kept; if the model is the "
            "cause, another --quant_type or runtime may do; please report it"
        )
    if stopped:
        return "stopped at once; what is finished is kept"
    if number == signal.SIGKILL:
        return (
            "was killed (SIGKILL), most likely because the machine ran out of memory: what is finished is kept; use "
            "smaller batches or images, or close other programs"
        )
    return f"was ended by {signal_name}: {word(number)}"


def _place(traceback: IO[bytes]) -> str:
    """The function of ours that was at work in the thread that crashed."""
    traceback.seek(0)
    text = traceback.read().decode("utf-8", "replace")
    if "--debug" in sys.argv:
        sys.stderr.write(text)
    _, _, current = text.partition(_OF_MAIN_THREAD)
    frame = _OUR_FRAME.search(current.partition("\n\n")[0]) or _OUR_FRAME.search(text)
    return f" in {frame[3]} ({frame[1]}, line {frame[2]})" if frame else ""


def __getattr__(name: str) -> Callable[[], int]:
    """What a console script calls: `cxr_compress.cli.entry:NAME` runs `main` of `cxr_compress/cli/NAME.py`."""
    if name.startswith("_"):  # what Python and its tools ask of any module
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functools.partial(start, name)

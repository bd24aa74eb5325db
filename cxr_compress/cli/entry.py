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
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated (SIGTERM)", "SIGHUP": "the terminal is gone (SIGHUP)"}
# A terminal sends Ctrl-C to a command and to the process that watches it, which passes it on: one wish, two signals.
_SAME_WISH_SECONDS = 1.0
# When a command was last told to end: what follows at once, while it tidies up, is the same wish.
_last_wish = [-_SAME_WISH_SECONDS]

Handler = Callable[[int, FrameType | None], Any]


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived: handled wherever Ctrl-C is."""

    def __init__(self, number: int) -> None:
        """Keep which; what is kept of the work may be said in `args`, as with KeyboardInterrupt."""
        super().__init__()
        self.number = number


class Arrived:
    """Which signals have arrived while a command ran; an import may turn the exception of one into another."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._last = -_SAME_WISH_SECONDS

    def handle(self, number: int, _: FrameType | None) -> None:
        """Raise what ends the command, once for each wish."""
        now, before = time.monotonic(), self._last
        self._last = _last_wish[0] = now
        if now - before < _SAME_WISH_SECONDS:
            return
        self.first = self.first or number
        raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError(number)

    def explain(self, error: BaseException) -> BaseException:
        """The interruption behind an error, where there was one."""
        if self.first is None or isinstance(error, KeyboardInterrupt):
            return error
        return KeyboardInterrupt() if self.first == signal.SIGINT else TerminatedError(self.first)


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code with which a shell reports the signal."""
    return 128 + (error.number if isinstance(error, TerminatedError) else signal.SIGINT)


def word(number: int) -> str:
    """What a signal means, in words."""
    return _WORDS.get(signal.Signals(number).name, signal.Signals(number).name)


@contextlib.contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """While inside, signals that end a program go to `handler`; ignored ones, as under nohup, stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it gets signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, had in before.items() if had not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def end_while_loading(name: str) -> Handler:
    """A handler for the time before a command does anything that would have to be tidied up."""

    def handler(number: int, _: FrameType | None) -> None:
        if time.monotonic() - _last_wish[0] < _SAME_WISH_SECONDS:
            return
        with contextlib.suppress(OSError):
            os.write(2, f"{name}: {word(number)} while loading; nothing was done\n".encode())
        os._exit(128 + number)

    return handler


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

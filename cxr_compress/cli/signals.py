"""Ctrl-C, `kill` and a closed terminal end a command alike: one line, what is finished kept, the exit code of a shell.

Imports nothing but the standard library: it is at work before anything slow is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

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

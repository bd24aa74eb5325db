"""Progress of long work on stderr: a bar on a terminal, lines with the seconds since the start everywhere else.

Epochs, decoding, evaluation, search, downloads and benchmarks all report here. Nothing names a file or a patient.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from cxr_compress.cli.app import Say, quiet_native_stderr

_SECONDS_BETWEEN_LINES = 10.0

Count = Callable[[int, int], None]


@contextlib.contextmanager
def show_progress(name: str, *, hold_native: bool = False) -> Iterator[Progress]:
    """A progress printer for a command, which is closed at the end.

    Args:
        name: of the command; lines start with it.
        hold_native: keep what TensorFlow's C++ writes to stderr away from it, as `quiet_native_stderr` does.
    """
    with contextlib.ExitStack() as stack:
        # Before stderr is held back: the bar goes to the terminal itself.
        terminal = stack.enter_context(_terminal())
        write = stack.enter_context(quiet_native_stderr(name, enabled=hold_native))
        progress = Progress(write, terminal)
        stack.callback(progress.close_bar)
        yield progress


class Progress:
    """Writes lines, and on a terminal one bar at a time."""

    def __init__(self, write: Say, terminal: TextIO | None = None) -> None:
        """Start the clock.

        Args:
            write: takes one line of text.
            terminal: where bars are drawn; None for lines alone.
        """
        self._write = write
        self._terminal = terminal
        self._bar: Any = None
        self._bar_of = ""
        self._counters: dict[str, Count] = {}
        self._started = self._last_line = time.monotonic()

    def log(self, line: str) -> None:
        """Write one line now, with the seconds since the start."""
        self.close_bar()
        self._last_line = time.monotonic()
        self._write(f"[{self._last_line - self._started:4.0f} s] {line}")

    def counter(self, what: str, unit: str = "images", then: str = "") -> Count:
        """A function of (done, total) for one piece of work: it moves a bar, or writes a line every ten seconds.

        The end is a line in either case.

        Args:
            what: is done, such as "decoding train".
            unit: of the numbers; total is 0 where nobody knows it.
            then: what comes next, for the last line.
        """
        begun = time.monotonic()

        def count(done: int, total: int) -> None:
            if done == total:
                self.log(f"{what}: {total:,} {unit}{then}")
            elif not self._moved(what, unit, done, total) and self._is_time_for_a_line():
                of = f" of {total:,}" if total else ""
                seconds = (time.monotonic() - begun) / done * (total - done) if done and total else 0.0
                self.log(f"{what}: {done:,}{of} {unit}" + (f", about {seconds:.0f} s left" if seconds else ""))

        return count

    def decoding(self, split: str, done: int, total: int) -> None:
        """Progress of reading the images of a split."""
        if split not in self._counters:
            self._counters[split] = self.counter(f"decoding {split}")
        self._counters[split](done, total)

    @property
    def on_step(self) -> Callable[[int, int, int, float], None] | None:
        """What `fit` calls after every step to move a bar; None without a terminal, where `fit` writes lines itself."""
        return self._step if self._terminal else None

    def _step(self, epoch: int, batch: int, batches: int, loss: float) -> None:
        if self._moved(f"epoch {epoch}", "batches", batch, batches):
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def _moved(self, what: str, unit: str, done: int, total: int) -> bool:
        """Move the bar of a piece of work; False where there is no terminal, or nothing to draw a bar with."""
        if self._terminal is None:
            return False
        if self._bar_of != what:
            self.close_bar()
            try:
                from tqdm import tqdm
            except ImportError:  # a device, where only the base is installed
                self._terminal = None
                return False
            self._bar = tqdm(total=total or None, desc=what, unit=f" {unit}", file=self._terminal, leave=False)
            self._bar_of = what
        self._bar.update(done - self._bar.n)
        return True

    def _is_time_for_a_line(self) -> bool:
        return time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES

    def close_bar(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._bar_of = None, ""


@contextlib.contextmanager
def _terminal() -> Iterator[TextIO | None]:
    """Stderr itself, if a person watches it: what is written to descriptor 2 may be held back later."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield None
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream

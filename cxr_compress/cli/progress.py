"""Progress of long work on stderr: a line with the seconds since the start, every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_SECONDS_BETWEEN_LINES = 5.0


class Meter:
    """Counts one piece of work after the other; says nothing of names, files or patients.

    A line, not a bar: it reads the same on a terminal, in a log file and in a container.
    """

    def __init__(self, name: str) -> None:
        """Start the clock.

        Args:
            name: Of the command; lines start with it.
        """
        self._name = name
        self._started = self._told = time.monotonic()

    def counter(self, what: str, unit: str) -> Callable[[int, int], None]:
        """A progress function for one piece of work; the line of its end is always written.

        Args:
            what: Is done, e.g. "cached train at 224x224".
            unit: Of the numbers, e.g. "images".
        """

        def count(done: int, total: int) -> None:
            if done == total or time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
                of = f" of {total:,}" if total else ""
                self._tell(f"{what}: {done:,}{of} {unit}")

        return count

    def _tell(self, line: str) -> None:
        self._told = time.monotonic()
        if sys.stderr is not None:
            print(f"{self._name}: [{self._told - self._started:4.0f} s] {line}", file=sys.stderr, flush=True)

"""Hold back known lines that native code writes to stderr past Python; everything else comes through."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

# Descriptor 2 belongs to the whole process: only one redirection at a time.
_LOCK = threading.Lock()
_STDERR = 2


def _renew_lock() -> None:
    """In a forked process: the thread that may hold the lock does not exist there."""
    global _LOCK  # noqa: PLW0603 - of the module, like the descriptor it guards
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextlib.contextmanager
def without_stderr_lines(start: str) -> Iterator[None]:
    """While inside, hold back what native code writes to stderr; then pass on all lines but those with this start.

    TFLite offers no Python switch for its notice about XNNPACK, which a clinic would take for a problem. Where stderr
    cannot be redirected (closed, a sandbox), nothing is held back. Lines of other threads arrive late, never lost.
    """
    with stderr_lines(re.compile(re.escape(start.encode()))):
        yield


@contextlib.contextmanager
def stderr_lines(wanted: re.Pattern[bytes]) -> Iterator[list[str]]:
    """While inside, hold back what native code writes to stderr; then collect the lines that match, pass on the others.

    Also with a closed stderr: what writes to descriptor 2 finds it open inside. One thread at a time is inside.

    Args:
        wanted: matched at the start of a line.

    Yields:
        A list that holds the lines once the block is left; empty where nothing can be held back.
    """
    found: list[str] = []
    with _LOCK, contextlib.ExitStack() as undo:
        original: int | None = None
        with contextlib.suppress(OSError):  # where it is closed
            original = os.dup(_STDERR)
            undo.callback(os.close, original)
        try:
            held = undo.enter_context(_hidden_file())
            # Opened first, it may itself have got the number of a closed stderr.
            if held.fileno() != _STDERR:
                os.dup2(held.fileno(), _STDERR)
        except OSError:
            yield found
            return
        try:
            yield found
        finally:
            if original is not None:
                os.dup2(original, _STDERR)
            elif held.fileno() != _STDERR:
                os.close(_STDERR)
            held.seek(0)
            kept = []
            for line in held:
                if wanted.match(line):
                    found.append(line.decode("ascii", "replace").strip())
                else:
                    kept.append(line)
            if kept and original is not None:
                with contextlib.suppress(OSError):
                    os.write(_STDERR, b"".join(kept))


def _hidden_file() -> IO[bytes]:
    """A file without a name, in memory where there is such a thing: it needs no disk that can be written to."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)

"""Drop one known line that C++ code writes to stderr past Python; everything else comes through."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator

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
    with _LOCK, contextlib.ExitStack() as undo:
        try:
            held = undo.enter_context(tempfile.TemporaryFile())
            original = os.dup(_STDERR)
        except OSError:
            yield
            return
        undo.callback(os.close, original)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(original, _STDERR)
            held.seek(0)
            kept = [line for line in held.readlines() if not line.startswith(start.encode())]
            with contextlib.suppress(OSError):
                os.write(_STDERR, b"".join(kept))

"""Keeps what native code writes to stderr away from the user, unless something goes wrong."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

from cxr_compress.errors import CompressionError

Say = Callable[[str], None]
_STDERR = 2


@contextlib.contextmanager
def quiet_native_stderr(name: str, *, enabled: bool = True) -> Iterator[Say]:
    """While inside, hold back everything written to stderr; give a function that still writes lines `name: text` to it.

    TensorFlow's C++ announces processor features, missing GPUs and converter settings, and offers no switch for it. A
    CompressionError or Ctrl-C drops what was held back (its own line says all); any other error passes it on, because
    it may tell why. Only a command does this: descriptor 2 belongs to the whole process.

    Args:
        name: of the command.
        enabled: False leaves stderr alone, as --debug does.
    """
    if not enabled or not _is_native():
        yield lambda line: _print(f"{name}: {line}")
        return
    sys.stderr.flush()
    with contextlib.ExitStack() as undo:
        held = undo.enter_context(tempfile.TemporaryFile())
        original = os.dup(_STDERR)
        undo.callback(os.close, original)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield lambda line: _write(original, f"{name}: {line}\n".encode("utf-8", "backslashreplace"))
        except (CompressionError, KeyboardInterrupt):
            raise
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            _write(original, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, _STDERR)


def _is_native() -> bool:
    """True where sys.stderr is descriptor 2; false where it is closed, or a test or a notebook has replaced it."""
    try:
        return sys.stderr.fileno() == _STDERR
    except (OSError, ValueError, AttributeError):
        return False


def _print(line: str) -> None:
    # print() takes a missing stderr for stdout, which is for results.
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, data)

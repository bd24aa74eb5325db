"""Native code at arm's length: run in a forked process, where a crash is an error, and heard where it writes to stderr.

The runtime and the converter are C++: on a graph that they do not expect they may abort, which no `except` can catch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import re
import select
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn, TypeVar

Result = TypeVar("Result")
_CHUNK = 1 << 20
_STDERR = 2
_LONGEST_REASON = 200
# Not a reason: the runtime's own log lines, and what an emulator of another processor says of the signal itself.
_NO_REASON = ("INFO", "qemu: uncaught target signal")
# Of a child that lost its result on the way: no code that a signal or a command gives.
_EXIT_LOST = 99


class NativeCrashError(Exception):
    """A step ended its process, or did not end in time; `reason` is what native code said last, or nothing."""

    def __init__(self, cause: str, reason: str = "", *, late: bool = False) -> None:
        """Keep the cause, such as SIGABRT, the reason, and whether it was only late."""
        super().__init__(f"{cause}: {reason}" if reason else cause)
        self.cause, self.reason, self.late = cause, reason, late


def run_in_child(step: Callable[[], Result], *, seconds: float) -> Result:
    """Do a step in a forked copy of this process and give its result, or raise the exception that it raised.

    For TFLite's runtime and quantizer, which need nothing that other threads of this process hold. TensorFlow itself
    must not run in the child once it has computed anything here: its thread pools do not survive a fork, and it waits
    for them forever. Where processes cannot be forked the step is done here.

    Args:
        step: result and exceptions must be picklable; what it changes otherwise is lost.
        seconds: after which the child is ended.

    Raises:
        NativeCrashError: the child ended by a signal, or took too long.
    """
    if not hasattr(os, "fork"):
        return step()
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe, _temporary_file() as stderr_file:
        try:
            child = _fork()
        except OSError:  # no memory for another process's tables: rather without the net than not at all
            os.close(writer)
            return step()
        if child == 0:
            _be_child(step, pipe, writer, stderr_file)
        os.close(writer)
        ended = False
        try:
            content = _read(pipe, seconds)
            _, status = os.waitpid(child, 0)
            ended = True
        finally:
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return _result(os.waitstatus_to_exitcode(status), content, stderr_file)


def name_of_signal(number: int) -> str:
    """SIGABRT for 6, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def die_with_parent() -> None:
    """End this process when its parent ends, however that ends; only Linux can."""
    with contextlib.suppress(Exception):
        import ctypes

        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


def no_core_file() -> None:
    """Leave no memory dump of a crash that is reported as a line: it would be gigabytes, and hold images."""
    with contextlib.suppress(Exception):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads in the parent. What runs in the child waits for none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@contextlib.contextmanager
def _temporary_file() -> Any:
    """A file for what native code says; None where there is no room for one."""
    with contextlib.ExitStack() as undo:
        file = None
        with contextlib.suppress(OSError):
            file = undo.enter_context(tempfile.TemporaryFile())
        yield file


def _be_child(step: Callable[[], Any], pipe: IO[bytes], writer: int, stderr_file: IO[bytes] | None) -> NoReturn:
    """In the child: do the step, send what came of it, and end without any of the parent's clean-up."""
    try:
        # The parent decides when to give up; Ctrl-C in a terminal reaches both.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
    except ValueError:
        pass  # forked in another thread than the main one, where no handler can be set
    try:
        pipe.close()
        die_with_parent()
        no_core_file()
        faulthandler.disable()
        if stderr_file is not None:
            os.dup2(stderr_file.fileno(), _STDERR)
        try:
            content = pickle.dumps((True, step()))
        except BaseException as error:
            content = _pickled_error(error)
        view = memoryview(content)
        while view:
            view = view[os.write(writer, view) :]
        os._exit(0)
    finally:
        os._exit(_EXIT_LOST)


def _pickled_error(error: BaseException) -> bytes:
    """An exception, or a plain one of the same words where its own kind cannot travel."""
    try:
        content = pickle.dumps((False, error))
        pickle.loads(content)
    except Exception:
        content = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return content


def _read(pipe: IO[bytes], seconds: float) -> bytes:
    """Everything until the child closes its end.

    Raises:
        NativeCrashError: it takes too long.
    """
    deadline = time.monotonic() + seconds
    parts: list[bytes] = []
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([pipe], [], [], remaining)[0]:
            raise NativeCrashError(f"no answer within {seconds:.0f} s", late=True)
        part = pipe.read(_CHUNK)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _result(code: int, content: bytes, stderr_file: IO[bytes] | None) -> Any:
    if code < 0:
        raise NativeCrashError(name_of_signal(-code), _last_line(stderr_file))
    if code or not content:
        raise NativeCrashError(f"exit code {code}", _last_line(stderr_file))
    worked, result = pickle.loads(content)
    if not worked:
        raise result
    if stderr_file is not None:  # what a step that worked has to say is passed on, as if it had run here
        stderr_file.seek(0)
        text = stderr_file.read()
        if text:
            sys.stderr.flush()
            with contextlib.suppress(OSError):
                os.write(_STDERR, text)
    return result


def _last_line(stderr_file: IO[bytes] | None) -> str:
    if stderr_file is None:
        return ""
    stderr_file.seek(0)
    lines = [" ".join(line.split()) for line in stderr_file.read().decode("utf-8", "replace").splitlines()]
    kept = [line for line in lines if line and not line.startswith(_NO_REASON)]
    return kept[-1][:_LONGEST_REASON] if kept else ""


# Descriptor 2 belongs to the whole process: only one redirection at a time.
_LOCK = threading.Lock()


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

"""Keeps pydicom silent while a file is read: its warnings and log lines quote what the header says about a patient."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

# The reader and the decoders it calls; the last ones are ours, where a warning may be laid at the caller's door.
_OURS = ("cxr_compress.device.dicom", "cxr_compress.device.dicom_header")
_SPEAKERS = ("pydicom", "pylibjpeg", "openjpeg", "rle", "gdcm", *_OURS)

_reading = threading.local()
_lock = threading.Lock()
_readers = 0
_undo = contextlib.ExitStack()


class _DropWhileReading(logging.Filter):
    """Drops what a thread logs while it reads a film; what pydicom logs for anybody else passes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_reading, "active", False)


_DROP = _DropWhileReading()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """While inside, pydicom and its decoders neither warn nor log, at any level, pydicom's own debug mode included.

    Log lines are dropped for the calling thread alone; warnings, which Python filters per process, for all threads, and
    only those that come from the modules named above. May be entered by several threads at a time.
    """
    _filter_loggers()
    _enter()
    before = getattr(_reading, "active", False)
    _reading.active = True
    try:
        yield
    finally:
        _reading.active = before
        _leave()


def _filter_loggers() -> None:
    """Put the filter on every logger of the speakers; again each time, because modules make loggers when they load."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _SPEAKERS:
            logging.getLogger(name).addFilter(_DROP)  # a second time has no effect


def _enter() -> None:
    """The first reader changes the warning filters; they are one list for all threads."""
    global _readers  # noqa: PLW0603
    with _lock:
        if _readers == 0:
            _undo.enter_context(warnings.catch_warnings())
            for speaker in _SPEAKERS:
                warnings.filterwarnings("ignore", module=rf"{speaker}($|\.)".replace(".device.", r"\.device\."))
        _readers += 1


def _leave() -> None:
    """The last reader puts the warning filters back."""
    global _readers  # noqa: PLW0603
    with _lock:
        _readers -= 1
        if _readers == 0:
            _undo.close()

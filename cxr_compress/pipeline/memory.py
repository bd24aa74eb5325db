"""Peak memory of a stretch of work, for the manifests."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what Linux wants to hear in clear_refs
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


def reset_peak() -> None:
    """Start counting anew where the system can (Linux); elsewhere the peak stays that of the whole process."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")


def peak_bytes() -> int:
    """The most memory that this process had at a time since `reset_peak`, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT

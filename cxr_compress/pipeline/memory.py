"""Peak memory of a stretch of work, for the manifests."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cxr_compress.device.benchmark import peak_memory_bytes

_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what Linux wants to hear in clear_refs


def reset_peak() -> None:
    """Start counting anew where the system can (Linux); elsewhere the peak stays that of the whole process."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")


def peak_bytes() -> int:
    """The most memory that this process had at a time since `reset_peak`, in bytes."""
    return peak_memory_bytes() or 0

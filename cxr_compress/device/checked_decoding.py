"""Decode with OpenCV and refuse what its libraries only complain about.

libjpeg and libtiff fill what they cannot decode with gray or with what came before, write one line to stderr, and
OpenCV gives the image as if nothing had been: a finding for half a film. OpenCV hands that line to nobody, so it is
read where it is written.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import cv2
import numpy as np

from cxr_compress.device.native_log import stderr_lines
from cxr_compress.errors import DataError

_COMPLAINED_OF = (b"\xff\xd8", b"II*\0", b"MM\0*")  # JPEG and TIFF
_AGAIN = "copy or export it again"
# What libjpeg, libtiff behind OpenCV's log, and the JPEG decoders of DICOM write.
_COMPLAINT = re.compile(
    rb"Corrupt JPEG|Premature end of|Inconsistent progression|Invalid SOS param|Unsupported (marker|JPEG)|"
    rb"Unknown Adobe color|Warning: unknown JFIF|Tile part length|Expected a SOC|\[ (WARN|INFO)|\[(ERROR|FATAL|DEBUG)|"
    rb"\[ *(WARN|ERROR|FATAL|INFO|DEBUG):|OpenCV TIFF: "
)
# libjpeg prints the first complaint of an image alone, so one about its header may hide one about its pixels.
_DAMAGE = re.compile(
    r"Corrupt JPEG|Premature end of|Inconsistent progression|Invalid SOS param|Unsupported marker|Unknown Adobe color|"
    r"Warning: unknown JFIF|.*(\bTIFF_(Error|Warning)\b|OpenCV TIFF: ).*(ecode|ncorrect|orrupt|[Rr]ead error|scanline|"
    r"strip|tile|end of|Bad code|[Nn]ot enough|Discarding)"
)
_LIBRARY_LINE = re.compile(r"^(\[.*?TIFF_\w+ |OpenCV TIFF: )")
# OpenCV 5 gives libtiff's complaints as warnings and errors, OpenCV 4 at its level of debugging.
_LOG, _HEARD = (cv2, 5) if hasattr(cv2, "setLogLevel") else (cv2.utils.logging, 3)


@contextlib.contextmanager
def complaints_refused() -> Iterator[None]:
    """While inside, decoders that complain about damaged data on stderr raise a DataError, and are not heard.

    Raises:
        DataError: says what the decoder wrote.
    """
    with stderr_lines(_COMPLAINT) as lines, _opencv_heard():
        yield
    for line in lines:
        if _DAMAGE.match(line):
            said = _LIBRARY_LINE.sub("", line).strip(" :.")[:120]
            raise DataError(f"is damaged: only a part of its pixels can be decoded ({said}); {_AGAIN}")


def decode_checked(data: bytes) -> np.ndarray:
    """Decode an image with OpenCV, its channels and bits as they are, in OpenCV's order.

    Raises:
        DataError: it cannot be decoded, or not all of it.
    """
    try:
        # The others have checksums or decoders that fail, and can be decoded by several threads at a time.
        heard = complaints_refused() if data.startswith(_COMPLAINED_OF) else contextlib.nullcontext()
        with heard:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # for instance above OpenCV's limit of 2**30 pixels
        raise DataError(f"OpenCV refuses it: {' '.join(str(error).split())}") from error
    if image is None:
        raise DataError(f"is damaged: its pixels cannot be decoded; {_AGAIN}")
    return np.asarray(image)


@contextlib.contextmanager
def _opencv_heard() -> Iterator[None]:
    """Have OpenCV log what libtiff complains of while inside, whatever OPENCV_LOG_LEVEL says."""
    log = _LOG
    before = log.getLogLevel()
    if before >= _HEARD:
        yield
        return
    log.setLogLevel(_HEARD)
    try:
        yield
    finally:
        log.setLogLevel(before)

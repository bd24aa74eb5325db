"""Image files as bytes, for the tests: through OpenCV's encoder, or PNG chunks by hand where it cannot write a kind."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np


def png(image: np.ndarray) -> bytes:
    """Encode (H, W) or RGB(A) pixels, uint8 or uint16, without loss."""
    return bytes(cv2.imencode(".png", _to_bgr(image))[1])


def jpeg(image: np.ndarray, quality: int = 95, *options: int) -> bytes:
    """Encode (H, W) or RGB uint8 pixels."""
    return bytes(cv2.imencode(".jpg", _to_bgr(image), [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1])


def handmade_png(rows: np.ndarray, colour_type: int, depth: int = 8, *, width: int, extra: bytes = b"") -> bytes:
    """Build a PNG of any colour type from its raw rows of bytes (H, bytes a row); `extra` are chunks before IDAT.

    Source: W3C PNG specification, sections 5 and 11.
    """
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _to_bgr(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return image
    return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])

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


def handmade_png(rows: np.ndarray, color_type: int, depth: int = 8, *, width: int, extra: bytes = b"") -> bytes:
    """Build a PNG of any color type from its raw rows of bytes (H, bytes a row); `extra` are chunks before IDAT.

    Source: W3C PNG specification, sections 5 and 11.
    """
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(orientation: int, order: str = "<") -> bytes:
    """EXIF data of one entry, the orientation: a TIFF directory without pixels."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def with_exif(data: bytes, content: bytes) -> bytes:
    """Put EXIF data into a JPEG, PNG or lossless WebP file, as cameras do."""
    if data.startswith(b"\xff\xd8"):
        segment = b"Exif\0\0" + content
        return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    if data.startswith(b"RIFF"):
        height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape[:2]
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        extended = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + size
        body = extended + data[12:] + b"EXIF" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    return data[:33] + chunk(b"eXIf", content) + data[33:]


def tiff(image: np.ndarray, *, order: str = "<", bits: int = 0, pages: int = 1, **tags: int) -> bytes:
    """An uncompressed TIFF of (H, W) or (H, W, samples), in one strip; `tags` as t262=0 replace or add short ones.

    Source: TIFF 6.0, sections 2 and 8.
    """
    samples = 1 if image.ndim == 2 else image.shape[2]
    pixels = image.astype(image.dtype.newbyteorder(order)).tobytes()
    pixels += bytes(len(pixels) % 2)
    height, width = image.shape[:2]
    short = {256: width, 257: height, 258: bits or 8 * image.itemsize, 259: 1, 262: 1 if samples == 1 else 2, 274: 1}
    short |= {277: samples, 278: height, **{int(name[1:]): value for name, value in tags.items()}}
    long = {273: 8, 279: len(pixels)}
    body = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels)) + pixels
    for page in range(pages):
        # Several numbers of 16 bits do not fit into an entry: behind the directory.
        after = len(body) + 2 + 12 * (len(short) + len(long)) + 4
        entries = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in short.items()]
        if samples > 1:
            place = list(short).index(258)
            entries[place] = struct.pack(f"{order}HHII", 258, 3, samples, after)
        entries += [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in long.items()]
        entries.sort(key=lambda entry: struct.unpack(f"{order}H", entry[:2]))
        end = after + (2 * samples if samples > 1 else 0)
        following = end if page + 1 < pages else 0
        body += struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", following)
        body += struct.pack(f"{order}{samples}H", *[short[258]] * samples) if samples > 1 else b""
    return body


def encoded(image: np.ndarray, suffix: str) -> bytes:
    """Encode without loss by OpenCV in the format of a suffix (.bmp, .webp, .tif)."""
    quality = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    return bytes(cv2.imencode(suffix, _to_bgr(image), quality)[1])


def _to_bgr(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return image
    return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])


def draw_image(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    """A uint8 gray image (height, width) whose large shapes differ from seed to seed.

    Only whole-number and elementary operations, so that every NumPy version draws the same pixels.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    image = 60.0 + 80.0 * rows / height
    for _ in range(4):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        radius, bright = rng.uniform(4, height / 3), rng.uniform(-90, 110)
        distance = ((rows - row) ** 2 + (columns - column) ** 2) / radius**2
        image += bright * np.maximum(0.0, 1.0 - distance)
    image += rng.integers(-6, 7, size=image.shape)
    return np.clip(np.floor(image), 0, 255).astype(np.uint8)


def draw_chest(height: int = 96, width: int = 80, shift: float = 0.0) -> np.ndarray:
    """A uint8 gray image (height, width) with two dark ovals for lungs in a brighter body on black; no patient.

    `shift` moves the body sideways, as a share of the width.
    """
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = rows / height, columns / width - 0.5 - shift
    image = np.where(np.abs(x) < 0.42, 170.0, 5.0)
    for side in (-1, 1):
        lung = ((x - side * 0.2) / 0.13) ** 2 + ((y - 0.45) / 0.33) ** 2 < 1
        image[lung] = 60.0
    image += np.random.default_rng(0).integers(-6, 7, size=image.shape)
    return np.clip(np.floor(image), 0, 255).astype(np.uint8)


def color_photo(height: int = 60, width: int = 80) -> np.ndarray:
    """A uint8 RGB picture (height, width, 3) of broad colored areas, as a photograph or a screenshot has them."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 80 + 120 * rows // height
    green = 60 + 100 * columns // width
    blue = np.where((rows // 10 + columns // 10) % 2 == 0, 40, 150)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)

"""An image drawn from a seed, to check that files become the same numbers on every machine; no patient is in it."""

from __future__ import annotations

import hashlib

import numpy as np

REFERENCE_SIZE = 24
REFERENCE_FACTOR = 8
_SPINE, _LUNG = 6, 60  # squared half axes, in pixels of REFERENCE_SIZE


def reference_image(bits: int = 8, seed: int = 0) -> np.ndarray:
    """Draw the image: a square of REFERENCE_SIZE * REFERENCE_FACTOR pixels of `bits` bits, uint8 or uint16.

    Every REFERENCE_FACTOR x REFERENCE_FACTOR pixels have one value: their mean is exact in any version of OpenCV's area
    resampling (which rounds halves one way or the other), and JPEG at quality 100 keeps a flat 8 x 8 block as it is.
    What decoders and resamplers may do differently stays out on purpose; what they must not do differently is in:
    depth, windows, channels, byte order, normalization.

    Raises nothing; whole-number arithmetic and NumPy's seeded integers, whose stream is fixed by NumPy's own promise.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    down, across = np.mgrid[0:REFERENCE_SIZE, 0:REFERENCE_SIZE] - REFERENCE_SIZE // 2
    body = 120 + 4 * down + np.where(across**2 < _SPINE, 60, 0)
    image = np.where((np.abs(across) - 6) ** 2 * 4 + down**2 < _LUNG, body // 3, body)
    image = np.clip(image + rng.integers(0, 32, size=image.shape), 0, 255).astype(np.int64)
    step = 2**bits // 256
    deep = image if step == 1 else image * step + rng.integers(0, step, size=image.shape)
    blocks = np.kron(deep, np.ones((REFERENCE_FACTOR, REFERENCE_FACTOR), np.int64))
    return blocks.astype(np.uint8 if step == 1 else np.uint16)


def fingerprint_array(values: np.ndarray) -> str:
    """Give the sha256 (hexadecimal) of an array's dtype, shape and little-endian bytes."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{values.dtype.name} {values.shape} ".encode() + little.tobytes()).hexdigest()

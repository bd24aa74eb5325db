"""Seeded film-like test images: soft bright and dark shapes on a gradient, with noise. No patient was involved."""

from __future__ import annotations

import numpy as np


def draw_film(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
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


def colour_photo(height: int = 60, width: int = 80) -> np.ndarray:
    """A uint8 RGB picture (height, width, 3) of broad coloured areas, as a photograph or a screenshot has them."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 80 + 120 * rows // height
    green = 60 + 100 * columns // width
    blue = np.where((rows // 10 + columns // 10) % 2 == 0, 40, 150)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)

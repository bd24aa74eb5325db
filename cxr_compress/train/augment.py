"""Small random changes of a training image, as a different patient position or exposure would make them."""

from __future__ import annotations

import cv2
import numpy as np

from cxr_compress.recipe import AugmentRanges

DEFAULT_RANGES = AugmentRanges()


def augment(image: np.ndarray, generator: np.random.Generator, ranges: AugmentRanges = DEFAULT_RANGES) -> np.ndarray:
    """Return a moved, turned, scaled and re-exposed copy of one image; the argument is left as it is.

    Eight numbers are drawn from ``generator`` whatever the ranges are, so the same generator state always gives the
    same image. What comes in from outside repeats the border pixel.

    Args:
        image: uint8 (height, width) or (height, width, 3).
        generator: Of the random amounts.
        ranges: How far the image may be changed.

    Returns:
        uint8 of the same shape.
    """
    amounts = generator.uniform(-1.0, 1.0, size=8)
    moved = _move(image, amounts[:4], ranges)
    if ranges.mirror and amounts[7] > 0:
        moved = np.ascontiguousarray(moved[:, ::-1])
    contrast = 1.0 + ranges.contrast * amounts[4]
    table = _exposure_table(float(moved.mean()), contrast, ranges.brightness * amounts[5])
    return cv2.LUT(moved, _bent(table, ranges.gamma * float(amounts[6])))


def _move(image: np.ndarray, amounts: np.ndarray, ranges: AugmentRanges) -> np.ndarray:
    height, width = image.shape[:2]
    center = ((width - 1) / 2.0, (height - 1) / 2.0)
    matrix = cv2.getRotationMatrix2D(center, ranges.rotation * amounts[0], 1.0 + ranges.scale * amounts[1])
    matrix[:, 2] += (ranges.shift * width * amounts[2], ranges.shift * height * amounts[3])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _exposure_table(mean: float, contrast: float, brightness: float) -> np.ndarray:
    """The 256 new gray values: a table is the fastest exact way to map a uint8 image."""
    levels = (np.arange(256) - mean) * contrast + mean + brightness
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _bent(table: np.ndarray, log_exponent: float) -> np.ndarray:
    """The table followed by a gamma curve; 0 leaves it as it is."""
    if not log_exponent:
        return table
    return np.rint(255.0 * (table / 255.0) ** np.exp(log_exponent)).astype(np.uint8)

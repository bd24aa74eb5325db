"""Calibration images: checked, and spread evenly where a set has more than are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cxr_compress.device.preprocess import PreprocessSpec, preprocess
from cxr_compress.errors import DataError

DEFAULT_STEPS = 128
# Fewer films than this leave the activation ranges to chance.
MIN_IMAGES = 16

_Item = TypeVar("_Item")


def collect_images(
    calibration: Iterable[Any],
    shape: tuple[int, int, int],
    steps: int = DEFAULT_STEPS,
    *,
    dtype: type[np.generic] = np.float32,
    least: int = MIN_IMAGES,
) -> np.ndarray:
    """The first `steps` images of an iterable of batches, checked.

    A wrong calibration set gives a file that runs and is silently worse, so what can be checked is: type, shape, finite
    values, no blank images, enough of them.

    Args:
        calibration: batches (n, height, width, channels), preprocessed as the model's input.
        shape: (height, width, channels) of the model.
        steps: images to take at most.
        dtype: float32, or uint8 for a model that takes pixels.
        least: images there must be; fewer than MIN_IMAGES only where no ranges are taken from them.

    Returns:
        `dtype` (images, height, width, channels), least <= images <= steps.

    Raises:
        DataError: a batch is not what the model takes, or there are too few images.
    """
    if steps < MIN_IMAGES:
        raise DataError(f"expected at least {MIN_IMAGES} calibration steps, got {steps}: give {DEFAULT_STEPS}")
    images = list(islice(_single_images(calibration, shape, np.dtype(dtype)), steps))
    if len(images) < least:
        raise DataError(
            f"expected at least {least} calibration images, got {len(images)}: int8 takes its value ranges from "
            f"them; give {DEFAULT_STEPS} training images"
        )
    return np.stack(images)


def pick_evenly(items: Sequence[_Item], count: int) -> list[_Item]:
    """`count` items spread evenly over a sequence (all of them where it is shorter).

    A set sorted by finding or patient is so represented along its whole length, without a random choice.
    """
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def image_batches(paths: Sequence[Path], spec: PreprocessSpec) -> Iterator[np.ndarray]:
    """Batches of one image, read and preprocessed when asked for.

    Raises:
        DataError: a file cannot be read as an image.
    """
    for path in paths:
        yield preprocess(path, spec)[np.newaxis]


def _single_images(
    calibration: Iterable[Any], shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> Iterator[np.ndarray]:
    number = 0
    for batch in calibration:
        for image in _checked(batch, shape, number, dtype):
            number += 1
            yield image


def _checked(batch: Any, shape: tuple[int, int, int], number: int, dtype: np.dtype[Any]) -> np.ndarray:
    """The batch as an array, or an error that says what is wrong from image `number` on."""
    array = np.asarray(batch) if not isinstance(batch, (tuple, list, dict)) else None
    expected = f"expected calibration batches {dtype} (n, {', '.join(map(str, shape))})"
    if array is None:
        raise DataError(f"{expected}, got a {type(batch).__name__}: yield the images alone, without labels")
    if array.dtype != dtype or array.shape[1:] != shape:
        raise DataError(
            f"{expected}, got {array.dtype} {array.shape}: preprocess them as the model's input "
            "(device.preprocess.preprocess)"
        )
    _refuse(~np.isfinite(array).all(axis=(1, 2, 3)), number, "holds NaN or infinite values")
    # Per channel: normalising a blank film gives each channel its own value.
    _refuse((array.min(axis=(1, 2)) == array.max(axis=(1, 2))).all(axis=1), number, "is blank")
    return array


def _refuse(bad: np.ndarray, number: int, what: str) -> None:
    if bad.any():
        raise DataError(f"calibration image {number + int(np.argmax(bad))} {what}: leave it out")

"""Calibration images: checked, and spread evenly where a set has more than are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.preprocess import pixel_table
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError

DEFAULT_STEPS = 128
# Fewer images than this leave the activation ranges to chance.
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
    # Per channel: normalizing a blank image gives each channel its own value.
    _refuse((array.min(axis=(1, 2)) == array.max(axis=(1, 2))).all(axis=1), number, "is blank")
    return array


def _refuse(bad: np.ndarray, number: int, what: str) -> None:
    if bad.any():
        raise DataError(f"calibration image {number + int(np.argmax(bad))} {what}: leave it out")


_PIXEL_TOP = 255.0
# Of the possible range. Chest images spread over 0.2 to 0.3 of it; pixels divided by 255 twice over 0.001.
_LEAST_SPREAD = 0.02
# Against the training images: sets of chest images differ by up to 0.3 deviations and by a factor of 1.2 in the
# deviation; a wrong mean and deviation in the preprocessing by more.
_SHIFT = 0.5
_RATIO = 1.5
_TO_DO = "preprocess them as the model's input (device.preprocess.preprocess, or --preset and --color)"


class CalibrationWarning(UserWarning):
    """Calibration images do not look like what the model was trained on; the conversion goes on."""


@dataclass(frozen=True)
class ExpectedInput:
    """What calibration images should look like, per channel of the model's input.

    Attributes:
        low: least value that the preprocessing gives.
        high: largest value.
        scale: deviation of the normalization, by which a value would be divided if it were normalized again.
        offset: its mean.
        mean: of the training images; () where it is not known.
        std: likewise.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, spec: PreprocessSpec, images: ImageStatistics | None = None) -> ExpectedInput:
        """What a preprocessing makes.

        Args:
            spec: as the model was trained.
            images: the training images, as the model file tells them.
        """
        channels = spec.input_shape[2]
        if spec.input == "uint8":
            scale, offset = (1 / _PIXEL_TOP,) * channels, (0.0,) * channels
            table = np.repeat(np.arange(256.0)[:, np.newaxis], channels, axis=1)
            sources = tuple(range(channels))
        else:
            scale, offset, table, sources = spec.std, spec.mean, pixel_table(spec), spec.sources
        low, high = (tuple(float(end) for end in ends) for ends in (table.min(axis=0), table.max(axis=0)))
        mean: tuple[float, ...] = ()
        std: tuple[float, ...] = ()
        if images is not None and len(images.mean) == (1 if spec.color == "gray" else channels):
            picked = [(images.mean[source], images.std[source]) for source in sources]
            mean = tuple((m - o) / s for (m, _), o, s in zip(picked, offset, scale, strict=True))
            std = tuple(d / s for (_, d), s in zip(picked, scale, strict=True))
        return cls(low, high, tuple(scale), tuple(offset), mean, std)


def calibration_warnings(images: np.ndarray, expected: ExpectedInput) -> tuple[str, ...]:
    """What is odd about calibration images, one line each with the numbers; () where nothing is.

    Args:
        images: (n, height, width, channels), as they are to be fed.
        expected: what they should look like.
    """
    values = images.astype(np.float64).reshape(-1, images.shape[3])
    found = [_outside(values, expected), _flat(values, expected), *_unlike_training(values, expected)]
    # One cause, one line: what cannot be explains what is unlikely.
    return tuple([line for line in found if line][:1])


def _outside(values: np.ndarray, expected: ExpectedInput) -> str:
    low, high = np.asarray(expected.low), np.asarray(expected.high)
    room = 1e-3 * (high - low)
    share = float(((values < low - room) | (values > high + room)).mean())
    if share == 0:
        return ""
    return (
        f"the calibration images hold values from {values.min():.4g} to {values.max():.4g}, the preprocessing gives "
        f"{low.min():.4g} to {high.max():.4g} only ({share:.1%} of the values are outside{_guess(values, expected)}): "
        f"{_TO_DO}"
    )


def _guess(values: np.ndarray, expected: ExpectedInput) -> str:
    """What may have happened, where the values tell."""
    low, high = np.asarray(expected.low), np.asarray(expected.high)
    if values.min() >= 0 and values.max() <= _PIXEL_TOP and np.all(values == np.round(values)):
        return "; they look like pixels of 0 to 255 that were not normalized"
    once = values * np.asarray(expected.scale) + np.asarray(expected.offset)
    inside = (once >= low - 1e-3) & (once <= high + 1e-3)
    return "; they look normalized twice" if inside.all() else ""


def _flat(values: np.ndarray, expected: ExpectedInput) -> str:
    width = float((np.asarray(expected.high) - np.asarray(expected.low)).max())
    spread = float(values.std(axis=0).max())
    if spread >= _LEAST_SPREAD * width:
        return ""
    return (
        f"the calibration images hardly vary: their standard deviation is {spread:.3g}, the preprocessing gives a "
        f"range of {width:.4g} (images spread over 20 to 30 % of it): {_TO_DO}"
    )


def _unlike_training(values: np.ndarray, expected: ExpectedInput) -> list[str]:
    if not expected.mean:
        return []
    return [
        f"the calibration images have mean {mean:.3g} and standard deviation {std:.3g} (channel {channel}), the "
        f"training images had {known:.3g} and {spread:.3g}: {_TO_DO}, and take training images"
        for channel, (mean, std, known, spread) in enumerate(
            zip(values.mean(axis=0), values.std(axis=0), expected.mean, expected.std, strict=True)
        )
        if abs(mean - known) > _SHIFT * spread or not spread / _RATIO <= std <= spread * _RATIO
    ]

"""Signs that an image is not what a model was trained on: sentences for a person to weigh, and statistics to compare.

Color is checked where an image becomes gray (`preprocess.colored_share`). Here it is what would get a finding like
any other image: a blank one, one that is nearly black or white, of a few gray levels, of noise, a few pixels large, and
one stored with dark bones, which no number in a file tells.

Every sentence starts with what was seen and has its numbers in brackets, then says what to do; `in_short` gives the
start.

`ImageStatistics` is what a model says of the images that it was trained on, so that others can be held against it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cxr_compress.errors import DataError

# Limits for images in 8 bits at their own size, and the most extreme of 624 images of Kermany's test split, 1,707 of
# nih_mini and 1,000 of nih1000_64 (64 px): not one false alarm of these four kinds among the 3,331.
#   nearly black  the level that 95 % of the pixels do not exceed: least 112
#   nearly white  the level that 95 % of the pixels reach: most 128
#   gray levels   how many hold 95 % of the pixels: least 85
#   noise         correlation of neighbors at 32 x 32: least 0.72
# Skin, 2,750 images of ISIC 2017: one has few gray levels (14), three are nearly white and two look like noise.
BLACK_BELOW, WHITE_ABOVE = 64, 207
LEAST_LEVELS = 16
NOISE_BELOW = 0.4
LEAST_SIDE = 32
_MOST_OF_IT = 0.95

# Below this an image counts as inverted. At this limit, on 64 x 64 pixels: false alarms on 0 of 624 images of Kermany's
# test split and 4 of 1,705 of nih_mini (0.2 %, all turned or far off the center); of their inverted copies 100 % and
# 99.1 % are found, and both of the images in nih_mini that are listed as inverted.
INVERTED_BELOW = -0.1

INVERTED_TEXT = (
    "looks inverted (the middle of the chest is darker than the lungs beside it); check that bones are bright, "
    "export it again if they are not"
)
_LOOK = "look at it, and set --window or --bit_depth if it is shown wrongly"

_SIZE, _NOISE_SIZE = 64, 32
_LEAST_SPREAD = 1.0
# As shares of the height and width: where spine and heart lie, and where lungs do. Averaged over shifts to the side,
# because few patients stand in the middle of their image.
_CHEST = slice(0.1, 0.9)
_MIDDLE_ROWS, _LUNG_ROWS = slice(0.15, 0.85), slice(0.2, 0.6)
_MIDDLE, _LEFT, _RIGHT = (0.44, 0.56), (0.2, 0.36), (0.64, 0.8)
_SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)


def image_warnings(image: np.ndarray, least_side: int = LEAST_SIDE) -> tuple[str, ...]:
    """What a person should look at in an image before believing a finding; () where nothing is odd.

    Args:
        image: uint8, (H, W) for gray or (H, W, 3) RGB, at its own size. Inversion is looked for in gray ones only.
        least_side: pixels of the shorter side that are enough: those of the model, where it takes fewer than 32.
    """
    gray = image if image.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)  # noqa: PLR2004
    if (text := blank_text(image)) is not None:
        return (text,)
    small = _reduced(gray, _SIZE)
    texts = [_size_text(image, least_side), *_brightness_texts(gray), _noise_text(small)]
    if image.ndim == 2 and inversion_score(small) < INVERTED_BELOW:  # noqa: PLR2004
        texts.append(INVERTED_TEXT)
    return tuple(text for text in texts if text)


def in_short(text: str) -> str:
    """What a sentence about an image says was seen, without numbers and advice: what fits into a table."""
    return re.split(r" \(|[:;]", text, maxsplit=1)[0]


def blank_text(image: np.ndarray) -> str | None:
    """What to say of an image (H, W[, 3]) whose pixels are all alike; None of any other."""
    if not (image == image[:1, :1]).all():
        return None
    level = ", ".join(str(value) for value in np.atleast_1d(image[0, 0]))
    return f"is blank (every pixel has the level {level} of 0 to 255); {_LOOK}"


def inversion_score(image: np.ndarray) -> float:
    """How much brighter the middle of the chest is than the lungs, in standard deviations of the gray levels.

    About 1 for a frontal image and the exact opposite for its negative; 0.0 for a blank one. The corners are not
    asked: what a collimator hides is black in an image and in its negative. Lateral images give no meaningful answer.

    Args:
        image: uint8 (H, W), any size; 64 pixels and more are enough.
    """
    small = _small(image)
    chest = small[_pixels(_CHEST), _pixels(_CHEST)]
    spread = float(chest.std())
    if spread < _LEAST_SPREAD:
        return 0.0
    differences = [_mean(small, _MIDDLE_ROWS, _MIDDLE, shift) - _lungs(small, shift) for shift in _SHIFTS]
    return float(np.mean(differences)) / spread


def neighbor_correlation(image: np.ndarray) -> float:
    """How alike neighbors are in a gray image (H, W) brought to 32 x 32 pixels: about 0 for noise, 0.9 for radiographs.

    Noise of any grain finer than these pixels is averaged away there, and what an image shows is not. The lower of the
    correlations along rows and columns; 1.0 where nothing varies.
    """
    small = _reduced(image, _NOISE_SIZE).astype(np.float64)
    pairs = ((small[:, 1:], small[:, :-1]), (small[1:], small[:-1]))
    return min((_correlation(one, other) for one, other in pairs if one.size > 1), default=1.0)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / scale if scale else 1.0


def _size_text(image: np.ndarray, least_side: int) -> str | None:
    if min(image.shape[:2]) >= min(least_side, LEAST_SIDE):
        return None
    height, width = image.shape[:2]
    return f"is small ({height} x {width} pixels, expected {LEAST_SIDE} and more on each side); give the original"


def _brightness_texts(gray: np.ndarray) -> list[str]:
    counts = cv2.calcHist([np.ascontiguousarray(gray)], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    shares = np.cumsum(counts) / gray.size
    below = int(np.searchsorted(shares, _MOST_OF_IT))
    above = int(np.searchsorted(shares, 1 - _MOST_OF_IT, side="right"))
    levels = int(np.searchsorted(np.cumsum(np.sort(counts)[::-1]) / gray.size, _MOST_OF_IT)) + 1
    texts = []
    if below < BLACK_BELOW:
        texts.append(f"is nearly black ({_MOST_OF_IT:.0%} of the pixels have level {below} of 255 or less); {_LOOK}")
    if above > WHITE_ABOVE:
        texts.append(f"is nearly white ({_MOST_OF_IT:.0%} of the pixels have level {above} of 255 or more); {_LOOK}")
    if levels < LEAST_LEVELS:
        texts.append(
            f"has few gray levels ({levels} of 256 hold {_MOST_OF_IT:.0%} of the pixels, expected {LEAST_LEVELS} and "
            f"more); {_LOOK}"
        )
    return texts


def _noise_text(gray: np.ndarray) -> str | None:
    correlation = neighbor_correlation(gray)
    if correlation >= NOISE_BELOW:
        return None
    return (
        f"looks like noise (neighboring pixels correlate {correlation:.2f}, expected {NOISE_BELOW} and more; "
        "radiographs have about 0.9); look at it, and export it again"
    )


def _reduced(gray: np.ndarray, size: int) -> np.ndarray:
    """The image at size x size, uint8; a side that is shorter stays as it is."""
    height, width = (min(size, side) for side in gray.shape)
    return np.asarray(cv2.resize(np.ascontiguousarray(gray), (width, height), interpolation=cv2.INTER_AREA))


def _small(image: np.ndarray) -> np.ndarray:
    """The image at 64 x 64, float64."""
    return cv2.resize(np.ascontiguousarray(image), (_SIZE, _SIZE), interpolation=cv2.INTER_AREA).astype(np.float64)


def _lungs(image: np.ndarray, shift: float) -> float:
    return (_mean(image, _LUNG_ROWS, _LEFT, shift) + _mean(image, _LUNG_ROWS, _RIGHT, shift)) / 2


def _mean(image: np.ndarray, rows: slice, columns: tuple[float, float], shift: float) -> float:
    """Mean gray level of a rectangle that is moved sideways by a share of the width."""
    return float(image[_pixels(rows), _pixels(slice(columns[0] + shift, columns[1] + shift))].mean())


def _pixels(shares: slice) -> slice:
    return slice(int(shares.start * _SIZE), int(shares.stop * _SIZE))


_MOST_IMAGES = 1024  # a mean over so many images is good to 1 % of their spread
_LEVELS = 256
_IMAGE_RANK = 3


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and standard deviation of pixel / 255 over images, one of each per channel: one for gray, three for RGB."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or not all(0 <= n <= 1 for n in numbers):
            raise DataError(f"expected mean and std of 1 or 3 channels in [0, 1], got {self.mean} and {self.std}")

    @classmethod
    def of(cls, images: np.ndarray) -> ImageStatistics:
        """Those of uint8 images (n, height, width[, 3]), of 1024 spread evenly where there are more.

        Counted, not summed: the same images give the same bits in any order.

        Raises:
            DataError: no images, or another dtype or shape.
        """
        if images.dtype != np.uint8 or not len(images) or images.ndim not in (_IMAGE_RANK, _IMAGE_RANK + 1):
            raise DataError(f"expected uint8 images (n, height, width[, 3]), got {images.dtype} {images.shape}")
        count = min(_MOST_IMAGES, len(images))
        counts = np.zeros((images.shape[3] if images.ndim > _IMAGE_RANK else 1, _LEVELS), np.int64)
        for place in range(count):
            image = images[place * len(images) // count].reshape(-1, len(counts))
            for channel in range(len(counts)):
                counts[channel] += np.bincount(image[:, channel], minlength=_LEVELS)
        levels = np.arange(_LEVELS) / 255.0
        shares = counts / counts.sum(axis=1, keepdims=True)
        mean = shares @ levels
        std = np.sqrt(np.maximum(0.0, shares @ levels**2 - mean**2))
        return cls(tuple(float(round(value, 6)) for value in mean), tuple(float(round(value, 6)) for value in std))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: Any) -> ImageStatistics:
        """Build what `to_dict` gave.

        Raises:
            DataError: something else.
        """
        try:
            return cls(*(tuple(float(value) for value in fields[name]) for name in ("mean", "std")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"expected mean and std of images, got {fields!r}") from error

"""From an image, in whatever form it comes, to the model's input: the only preprocessing in the project.

Training, calibration, evaluation and the device all come through here, so that a model is scored on exactly what it
will see. The order is fixed: decode -> 8 bits -> gray or RGB -> INTER_AREA resize to uint8 -> normalize to float32
(the last step is left to the network where the spec says that it takes uint8 pixels).
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_compress.device.decode import decode_image
from cxr_compress.device.dicom import FIRST_VIEW, DicomView
from cxr_compress.device.grayscale import too_dark, used_depth
from cxr_compress.device.sources import checked_pixels, read_source
from cxr_compress.device.spec import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from cxr_compress.errors import DataError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DicomView",
    "ImageGateWarning",
    "Prepared",
    "PreprocessSpec",
    "colored_share",
    "decode_image",
    "load_uint8",
    "normalize",
    "pixel_table",
    "prepare",
    "preprocess",
    "resize_uint8",
    "to_uint8",
]

# The gray check: a pixel is colored when its largest and smallest channel differ by more than this many of 255 levels.
# JPEG's chroma subsampling leaves at most 13 levels of a gray image with noise of 6 levels in each channel (qualities
# 30 to 95); a window frame, skin, a light box under a lamp or an old image gone yellow lie above.
COLOR_LEVELS = 16
# At most this share of colored pixels passes, so that a small colored side marker or pen stroke does not stop an image.
COLORED_SHARE_LIMIT = 0.01

GATES = ("error", "off")

_DECLARED_NOWHERE = 16  # the bit depth of a spec in which nobody has set one


class ImageGateWarning(UserWarning):
    """An image is not what the model was trained on, and the caller chose to go on (`gate="off"`)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image as a model takes it, and as a person would look at it.

    Attributes:
        pixels: uint8, (height, width) for gray or (height, width, 3) for rgb, of the model's size.
        image: the same in its own size.
        notes: what a person should know about how it was read.
    """

    pixels: np.ndarray
    image: np.ndarray
    notes: tuple[str, ...] = ()


def prepare(source: Any, spec: PreprocessSpec, gate: str = "error", view: DicomView = FIRST_VIEW) -> Prepared:
    """Bring an image to uint8 of the model's color and size.

    Of 16-bit files and arrays the bits that are used are told by the highest value, unless `view.bit_depth` or
    `spec.bit_depth` (anything but 16) says how many they are.

    Args:
        source: as `sources.read_source` takes it.
        spec: what the model expects.
        gate: as `to_uint8`.
        view: which frame and window of a DICOM file, and the bit depth.

    Raises:
        DataError: as `sources.read_source` and `to_uint8`; the message starts with the path where there is one.
    """
    picture = read_source(source, view)
    try:
        spec, notes = _settle_depth(picture.pixels, spec, view.bit_depth)
        image = to_uint8(picture.pixels, spec, gate)
        return Prepared(resize_uint8(image, spec), image, picture.notes + notes)
    except DataError as error:
        if isinstance(source, str | os.PathLike):
            raise DataError(f"{os.fsdecode(source)}: {error}") from error
        raise


def _settle_depth(
    image: np.ndarray, spec: PreprocessSpec, bit_depth: int | None
) -> tuple[PreprocessSpec, tuple[str, ...]]:
    """The spec with the bit depth of one image, and what is to be said about it."""
    if image.dtype != np.uint16:
        return spec, ()
    highest = int(image.max())
    declared = bit_depth or (spec.bit_depth if spec.bit_depth != _DECLARED_NOWHERE else None)
    if declared is not None:
        top = 2**declared - 1
        above = float((image > top).mean()) if highest > top else 0.0
        text = (
            f"uses more than {declared} bits (its highest value is {highest}, so that {above:.1%} of the pixels are "
            "cut to white); set --bit_depth to what it has"
        )
        return replace(spec, bit_depth=declared), (text,) if above else ()
    depth = used_depth(highest, _DECLARED_NOWHERE)
    if depth < _DECLARED_NOWHERE:
        text = f"uses {depth} of 16 bits (its highest value is {highest}) and was read so"
        return replace(spec, bit_depth=depth), (f"{text}; --bit_depth=16 shows it as stored",)
    return spec, too_dark(highest)


def to_uint8(image: np.ndarray, spec: PreprocessSpec, gate: str = "error") -> np.ndarray:
    """Bring a decoded image to 8 bits and to the spec's color; the argument is left unchanged.

    A color image for a gray model is weighed to luminance after the gray check; a gray image for an RGB model is
    repeated in three channels.

    Args:
        image: uint8 or uint16, (H, W), (H, W, 1) or (H, W, 3) RGB.
        spec: what the model expects.
        gate: "error", or "off" to warn about a color image (`ImageGateWarning`) and go on.

    Returns:
        uint8, (H, W) for gray, (H, W, 3) for rgb.

    Raises:
        DataError: another dtype or shape, an empty image, or a color image for a gray model with gate="error".
    """
    if gate not in GATES:
        raise DataError(f"expected a gate of {', '.join(GATES)}; got {gate!r}")
    image = checked_pixels(image)
    if image.dtype == np.uint16:
        image = _depth_table(spec.bit_depth)[image]
    if spec.color == "rgb":
        return image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)  # noqa: PLR2004
    if image.ndim == 2:  # noqa: PLR2004
        return image
    _check_gray(image, gate)
    # Fixed-point weights that sum to one: equal channels come through unchanged.
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY))


def resize_uint8(image: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Resample a uint8 image (H, W[, 3]) by area to (height, width[, 3]); the aspect ratio is not kept."""
    if image.shape[:2] == (spec.height, spec.width):
        return np.ascontiguousarray(image)
    size = (spec.width, spec.height)
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA))


def load_uint8(path: str | Path, spec: PreprocessSpec, gate: str = "error", view: DicomView = FIRST_VIEW) -> np.ndarray:
    """Read a file as what caches hold: uint8, (height, width) for gray or (height, width, 3) for rgb.

    These are the pixels of `prepare`, whose notes are left out.

    Raises:
        DataError: as `prepare`.
    """
    return prepare(path, spec, gate, view).pixels


def normalize(image: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Turn uint8 pixels into what the model takes: (pixel / 255 - mean) / std as float32, per channel.

    A model that takes pixels (`spec.input` "uint8") gets them as they are, with an axis for the channel.

    Every value comes out of one table of 256 numbers, so an image gives the same bits alone, in a batch and on any
    machine.

    Args:
        image: uint8, (height, width) or (n, height, width) for gray; with a last axis of 3 for rgb.
        spec: what the model expects.

    Returns:
        float32, (height, width, channels) or (n, height, width, channels), C-contiguous; or uint8, `spec.input_shape`
        or (n, *spec.input_shape).

    Raises:
        DataError: another dtype or shape.
    """
    image = np.asarray(image)
    tail = (spec.height, spec.width) if spec.color == "gray" else (spec.height, spec.width, 3)
    if image.dtype != np.uint8 or image.shape[-len(tail) :] != tail or image.ndim - len(tail) not in (0, 1):
        raise DataError(f"normalize: expected uint8 of shape {tail} or (n, *{tail}), got {image.dtype} {image.shape}")
    if spec.input == "uint8":
        return np.ascontiguousarray(image[..., np.newaxis] if spec.color == "gray" else image)
    table = pixel_table(spec)
    # mode="clip" skips the bounds check, three quarters of the time; a uint8 cannot leave a table of 256 rows.
    if spec.color == "gray":
        return np.take(table, image, axis=0, mode="clip")
    out = np.empty(image.shape, np.float32)
    for channel, source in enumerate(spec.sources):
        out[..., channel] = np.take(table[:, channel], image[..., source], mode="clip")
    return out


def preprocess(source: Any, spec: PreprocessSpec, gate: str = "error", view: DicomView = FIRST_VIEW) -> np.ndarray:
    """Turn one image into one model input: float32 (height, width, channels), or uint8.

    Args:
        source: a path, bytes, a binary file object, a Pillow image or an array, as `sources.read_source` takes it; the
            colors of an array are in the order RGB, not BGR.
        spec: what the model expects.
        gate: as `to_uint8`.
        view: which frame and window of a DICOM file.

    Raises:
        DataError: as `prepare`.
    """
    return normalize(prepare(source, spec, gate, view).pixels, spec)


def colored_share(image: np.ndarray) -> float:
    """Give the share, in [0, 1], of pixels of a uint8 (H, W, 3) whose channels differ by more than `COLOR_LEVELS`."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return float(np.count_nonzero(spread > COLOR_LEVELS)) / spread.size


def _check_gray(image: np.ndarray, gate: str) -> None:
    """Raise or warn when a color image (H, W, 3) is not a gray image saved in color."""
    share = colored_share(image)
    if share <= COLORED_SHARE_LIMIT:
        return
    text = (
        f"expected a gray image, got color: the channels of {share:.1%} of the pixels differ by more than "
        f"{COLOR_LEVELS} of 255 levels (limit {COLORED_SHARE_LIMIT:.0%})"
    )
    if gate == "error":
        raise DataError(f"{text}; export the image itself, or go on at your own risk with --gate=off")
    warnings.warn(f"{text}; it was turned to gray because the gate is off", ImageGateWarning, stacklevel=3)


@functools.lru_cache(maxsize=16)
def _depth_table(bit_depth: int) -> np.ndarray:
    """Table (65536,) uint8: stored value -> round(value * 255 / (2**bit_depth - 1)), clipped."""
    top = 2**bit_depth - 1
    values = np.arange(65536, dtype=np.int64)
    # Whole numbers only. `top` is odd, so no value lies halfway between two levels and every rounding rule agrees.
    table = np.minimum((2 * 255 * values + top) // (2 * top), 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def pixel_table(spec: PreprocessSpec) -> np.ndarray:
    """Table (256, channels) float32: pixel -> what the network sees, in the order of the network's channels."""
    return _pixel_table(spec.mean, spec.std)


@functools.lru_cache(maxsize=16)
def _pixel_table(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Table (256, channels) float32: pixel -> (pixel / 255 - mean) / std, computed in float64 and rounded once."""
    pixels = np.arange(256, dtype=np.float64)[:, np.newaxis] / 255.0
    table = ((pixels - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)).astype(np.float32)
    table.setflags(write=False)
    return table

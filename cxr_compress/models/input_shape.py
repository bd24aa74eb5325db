"""What every backbone asks of its arguments, said in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cxr_compress.errors import CompressionError, UnsupportedLayerError

_IMAGE_RANK = 4
_CHANNELS = (1, 3)
_OTHER_RANKS = {
    2: "the model takes a vector: put keras.layers.Flatten() behind an input of (height, width, channels) in front",
    3: "the model takes images without a channel axis: put keras.layers.Reshape((height, width)) behind an input of "
    "(height, width, 1) in front of it",
    5: "the model takes several images or a volume at once, and one image is what a device has: only models of one "
    "image are taken",
}
SMALLEST_SIDE = 32  # five halvings leave one pixel: every backbone here halves the image five times


def check_classes(num_classes: int) -> None:
    """Require at least one finding.

    Raises:
        CompressionError: there is none.
    """
    if num_classes < 1:
        raise CompressionError(f"num_classes must be at least 1, got {num_classes}: pass the number of findings")


def require_image_input(
    shape: Sequence[int | None], *, any_channels: bool = False
) -> tuple[int | None, int | None, int]:
    """Give (height, width, channels) of a model's input; height and width may be None.

    Args:
        shape: of the input, the batch included.
        any_channels: take feature maps too, as of a single layer, but nothing that looks channels-first.

    Raises:
        UnsupportedLayerError: it is no batch of channels-last images of 1 or 3 channels; the line says what it is.
    """
    shape = tuple(shape)
    problem = _no_image(shape)
    maps = any_channels and len(shape) == _IMAGE_RANK and shape[3] is not None and shape[1] not in _CHANNELS
    if problem and not maps:
        raise UnsupportedLayerError(
            f"expected an image input (batch, height, width, channels), got ({', '.join(map(str, shape))}): {problem}"
        )
    return shape[1], shape[2], shape[3] or 0


def require_float_images(model: Any) -> None:
    """Require that a Keras model takes normalized images, and one at a time: what data sets are made into here.

    Raises:
        UnsupportedLayerError: it takes something else, several things, or pixels; the line says what to do.
    """
    if len(model.inputs) != 1:
        raise UnsupportedLayerError(
            f"expected a model of one image, got {len(model.inputs)} inputs: build a model of the part that takes it"
        )
    require_image_input(model.inputs[0].shape)
    dtype = model.inputs[0].dtype.name
    if dtype != "float32":
        raise UnsupportedLayerError(
            f"expected a model of float32 images, got one of {dtype}: rebuild it on keras.Input(shape) without a dtype "
            "(cxr_convert takes models of uint8 pixels as they are)"
        )


def _no_image(shape: tuple[int | None, ...]) -> str:
    """What an input is that is no image, and what to do; "" for an image."""
    if len(shape) != _IMAGE_RANK:
        return _OTHER_RANKS.get(len(shape), "only models of one image are taken")
    if shape[3] in _CHANNELS:
        return ""
    if shape[1] in _CHANNELS:
        return (
            "the model is channels-first: put keras.layers.Permute((3, 1, 2)) behind an input of (height, width, "
            "channels) in front of it, or export it with data_format channels_last (NHWC)"
        )
    if shape[3] is None:
        return "its channels are left open: rebuild its input with 1 or 3 channels"
    return (
        f"images have 1 channel (gray) or 3 (color), not {shape[3]}: put a layer in front that makes {shape[3]} of them"
    )


def check_input_shape(input_shape: Sequence[int | None]) -> tuple[int | None, int | None, int]:
    """Give (height, width, channels) as a tuple; height and width may be None.

    Raises:
        CompressionError: it has another form, or a side is below 32 px.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or shape[2] is None or shape[2] < 1:  # noqa: PLR2004 - height, width, channels
        raise CompressionError(f"input_shape must be (height, width, channels) such as (224, 224, 3), got {shape}")
    if any(side is not None and side < SMALLEST_SIDE for side in shape[:2]):
        raise CompressionError(
            f"input_shape {shape} is too small: the network halves the image five times and needs at least "
            f"{SMALLEST_SIDE}x{SMALLEST_SIDE} pixels"
        )
    return shape[0], shape[1], shape[2]

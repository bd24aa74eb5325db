"""What every backbone asks of its arguments, said in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from cxr_compress.errors import CompressionError

SMALLEST_SIDE = 32  # five halvings leave one pixel: every backbone here halves the film five times


def check_classes(num_classes: int) -> None:
    """Require at least one finding.

    Raises:
        CompressionError: there is none.
    """
    if num_classes < 1:
        raise CompressionError(f"num_classes must be at least 1, got {num_classes}: pass the number of findings")


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
            f"input_shape {shape} is too small: the network halves the film five times and needs at least "
            f"{SMALLEST_SIDE}x{SMALLEST_SIDE} pixels"
        )
    return shape[0], shape[1], shape[2]

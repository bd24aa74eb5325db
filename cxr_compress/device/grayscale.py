"""The gray-scale steps of DICOM as numbers: stored value -> modality -> window or VOI LUT -> inverted once -> 8 bits.

All of it happens on the few values a pixel can store, so an image of any size costs one table and one look-up. Nothing
here knows a file or pydicom.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from cxr_compress.errors import DataError

WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
# Levels are rounded on this grid first: what arithmetic leaves of a half is a half again, so that an image and its
# negative round to exact opposites.
_GRID = 2**16
# What detectors and converters use of 16 bits.
_DEPTHS = (8, 10, 12, 14)
# Pixels that use so many bits fewer than they could are shown four times too dark: the file says more bits than it has.
_UNUSED_BITS = 2
_HALF = 2**15
# A modality LUT that gives less than this share of its range gives hardly anything to see of it.
_LEAST_SHARE = 0.25


@dataclass(frozen=True)
class Window:
    """A contrast window on modality values; `function` is one of WINDOW_FUNCTIONS."""

    center: float
    width: float
    function: str = "LINEAR"

    def __post_init__(self) -> None:
        if self.function not in WINDOW_FUNCTIONS:
            raise DataError(f"expected a window function of {', '.join(WINDOW_FUNCTIONS)}; the file names another one")
        least = 1.0 if self.function == "LINEAR" else 0.0
        usable = np.isfinite(self.center) and np.isfinite(self.width) and self.width >= least and self.width > 0
        if not usable:
            raise DataError(
                f"has a window that no image can be seen through (a {self.function} width is at least {least:g} and "
                "above 0); choose one with --window=CENTER,WIDTH"
            )


@dataclass(frozen=True)
class Lut:
    """A look-up table: values below `first` take the first entry, values behind the last one take the last.

    Attributes:
        first: the value that maps to entry 0.
        bits: meaningful bits of an entry, 1 to 16.
        entries: integers, at least one.
    """

    first: int
    bits: int
    entries: np.ndarray = field(repr=False, compare=False)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Give the entries of values, float64 of the same shape."""
        # Halves never occur where a LUT is right: what it looks up are whole numbers.
        places = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        return self.entries[places].astype(np.float64)

    def fitted(self, name: str) -> tuple[Lut, tuple[str, ...]]:
        """This table with the bits that its entries have, and what is to be said about it.

        Agfa's 12-bit tables say that they hold 16 bits: at their word everything would be nearly black.
        """
        highest = int(self.entries.max())
        used = highest.bit_length()
        bits = used if used > self.bits else used_depth(highest, self.bits)
        if bits == self.bits:
            return self, ()
        what = f"{self.bits} declared, highest entry {highest}, read as {bits}"
        return replace(self, bits=bits), (
            f"has a {name} of other bits than it declares ({what}); compare with a viewer",
        )


@dataclass(frozen=True)
class GrayScale:
    """How the stored values of one gray image become what a reader sees.

    Attributes:
        bits: meaningful bits of a stored value (BitsStored), up to 16.
        signed: two's complement (PixelRepresentation 1).
        slope: of the rescale; ignored where there is a modality LUT.
        intercept: of the rescale; ignored where there is a modality LUT.
        modality: the modality LUT, or None.
        views: the windows and VOI LUTs the file offers, in its order of preference.
        inverted: MONOCHROME1, or the presentation LUT shape INVERSE: low values are bright.
        padding: the first and the last of the stored values that are no part of the image, and shown black; or None.
    """

    bits: int
    signed: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    modality: Lut | None = None
    views: tuple[Window | Lut, ...] = ()
    inverted: bool = False
    padding: tuple[int, int] | None = None


def used_depth(highest: int, bits: int) -> int:
    """How many bits a file of `bits` bits really uses, told by its highest value: 8, 10, 12 or 14 of them, or all.

    A bit less than all is an image that is a little dark, and stays as it is.
    """
    used = highest.bit_length()
    fitting = [depth for depth in _DEPTHS if used <= depth <= bits - _UNUSED_BITS]
    return fitting[0] if fitting and highest else bits


def too_dark(highest: int) -> tuple[str, ...]:
    """What to say of unsigned values of 16 bits that use half of their range at most: 15 bits, or a dark image."""
    if not 0 < highest < _HALF:
        return ()
    return (f"may be too dark (it stores 16 bits, its highest value is {highest}); set --bit_depth=15 if it has 15",)


def used_range(scale: GrayScale, low: int, high: int, bit_depth: int | None = None) -> tuple[tuple[int, int], int]:
    """The range of stored values to show where a file has no window, and how many bits that is.

    Args:
        scale: what the file says.
        low: the smallest value that is stored.
        high: the largest.
        bit_depth: what a person says of it; None decides by the values.
    """
    if low >= 0:
        bits = bit_depth or used_depth(high, scale.bits)
        return ((0, 2**bits - 1), bits) if bit_depth or bits < scale.bits else (stored_range(scale), scale.bits)
    # One bit is the sign.
    bits = bit_depth or used_depth(2 * max(high, -low - 1) + 1, scale.bits)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), bits


def stored_range(scale: GrayScale) -> tuple[int, int]:
    """Smallest and largest value that the stored bits can hold."""
    return (-(2 ** (scale.bits - 1)), 2 ** (scale.bits - 1) - 1) if scale.signed else (0, 2**scale.bits - 1)


def gray_table(
    scale: GrayScale,
    view: Window | Lut | None,
    used: tuple[int, int] | None = None,
    span: tuple[float, float] | None = None,
) -> np.ndarray:
    """Table from stored value to 8 bits: entry 0 belongs to the smallest storable value.

    Without a window or VOI LUT the whole range that can be stored (after the modality step) becomes 0 to 255, because
    the standard makes a missing VOI step the identity; the image's own minimum and maximum do not matter, so that two
    images of one machine stay comparable. `used` and `span` are for files whose range is not the one they declare.

    Args:
        scale: the steps before and after.
        view: the window or VOI LUT.
        used: stored values that become 0 and 255 without a view; None for all that can be stored.
        span: entries of the modality LUT that do; None for all that its bits can hold.

    Returns:
        uint8 (2 ** scale.bits,).

    Source: DICOM PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.3.1.2 (MONOCHROME1 is inverted after the window),
    C.7.5.1.1.2 (padding).
    """
    low, high = stored_range(scale)
    values = np.arange(low, high + 1, dtype=np.float64)
    real = values * scale.slope + scale.intercept if scale.modality is None else scale.modality(values)
    if isinstance(view, Window):
        levels = window_levels(real, view)
    elif view is not None:
        levels = view(real) * (255.0 / (2**view.bits - 1))
    elif scale.modality is not None:
        dark, bright = span or (0.0, 2.0**scale.modality.bits - 1)
        levels = (real - dark) * 255.0 / (bright - dark)
    else:
        # The ends of the range after the rescale; a negative slope swaps them.
        ends = sorted(end * scale.slope + scale.intercept for end in used or (low, high))
        levels = (real - ends[0]) * 255.0 / (ends[1] - ends[0])
    table = _to_8_bits(levels, inverted=scale.inverted)
    if scale.padding is not None:
        first, last = (int(np.clip(end, low - 1, high + 1)) - low for end in scale.padding)
        table[max(first, 0) : max(last + 1, 0)] = 0
    return table


def narrow_span(lut: Lut) -> tuple[float, float] | None:
    """The smallest and largest entry of a modality LUT that uses little of its range; None where it uses enough."""
    low, high = float(lut.entries.min()), float(lut.entries.max())
    return (low, high) if 0 < high - low < _LEAST_SHARE * (2**lut.bits - 1) else None


def window_levels(values: np.ndarray, window: Window) -> np.ndarray:
    """Map modality values to levels from 0.0 to 255.0 through a window; float64 of the same shape.

    Source: DICOM PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT).
    """
    center, width = window.center, window.width
    if window.function == "SIGMOID":
        # Clipped where exp would overflow; the result is 0 or 255 long before.
        return 255.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if window.function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0.0:  # LINEAR of width 1 is a threshold
        return np.where(values > center, 255.0, 0.0)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0) * 255.0


def _to_8_bits(levels: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Round levels to 0..255, halves upwards, after the inversion."""
    steps = np.rint(np.clip(levels, 0.0, 255.0) * _GRID).astype(np.int64)
    if inverted:
        steps = 255 * _GRID - steps
    return np.asarray((steps + _GRID // 2) // _GRID).astype(np.uint8)

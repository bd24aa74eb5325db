"""Mean result of a convolution without running it: the mean of a linear operator is the operator on the mean.

A kernel's tap sees the same input as the others, but shifted and, near the border, cut off. So the mean of an output
channel over all positions is the sum over taps and input channels of weight times the mean of what that tap sees. In
float64, and free of the clipping that a fused ReLU or an int8 result would bring in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """How a kernel moves over a map.

    Attributes:
        strides: (down, right).
        dilation: (down, right).
        same: pads with zeros to ceil(size / stride) positions; else no padding.
    """

    strides: tuple[int, int]
    dilation: tuple[int, int]
    same: bool


def convolution_mean(mean_map: Floats, kernel: Floats, window: Window) -> Floats:
    """Mean over all positions of a convolution without its bias.

    Args:
        mean_map: (height, width, channels): the input's mean over images.
        kernel: (filters, height, width, channels per group), as TFLite keeps it.
        window: strides, dilation and padding.

    Returns:
        (filters,).
    """
    taps = tap_means(mean_map, kernel.shape[1:3], window)
    groups = mean_map.shape[2] // kernel.shape[3]
    split = taps.reshape(*taps.shape[:2], groups, kernel.shape[3])
    filters = kernel.reshape(groups, -1, *kernel.shape[1:])
    return np.einsum("gfhwc,hwgc->gf", filters, split).ravel()


def depthwise_mean(mean_map: Floats, kernel: Floats, window: Window) -> Floats:
    """The same for a depthwise kernel (1, height, width, channels x multiplier)."""
    taps = tap_means(mean_map, kernel.shape[1:3], window)
    multiplier = kernel.shape[3] // mean_map.shape[2]
    return np.einsum("hwc,hwc->c", kernel[0], np.repeat(taps, multiplier, axis=2))


def dense_mean(mean_map: Floats, kernel: Floats) -> Floats:
    """The same for a matrix (units, inputs) on a map that is flattened, or whose last axis is the inputs."""
    return kernel @ mean_map.reshape(-1, kernel.shape[1]).mean(axis=0)


def tap_means(mean_map: Floats, size: tuple[int, ...], window: Window) -> Floats:
    """What each tap of a kernel sees on average over all positions: (kernel height, kernel width, channels)."""
    down, right = (
        _visits(mean_map.shape[axis], size[axis], window.strides[axis], window.dilation[axis], same=window.same)
        for axis in (0, 1)
    )
    columns = np.einsum("hy,yxc->hxc", down, mean_map)
    return np.einsum("wx,hxc->hwc", right, columns)


def _visits(length: int, taps: int, stride: int, dilation: int, *, same: bool) -> Floats:
    """(taps, length): share of the positions at which a tap lies on a pixel; what falls on the padding is missing.

    Source: tensorflow.org, tf.nn, "Notes on padding".
    """
    reach = (taps - 1) * dilation + 1
    positions = -(-length // stride) if same else -(-(length - reach + 1) // stride)
    padding = max((positions - 1) * stride + reach - length, 0) // 2 if same else 0
    visits = np.zeros((taps, length))
    for tap in range(taps):
        pixels = np.arange(positions) * stride + tap * dilation - padding
        visits[tap, pixels[(pixels >= 0) & (pixels < length)]] = 1.0 / positions
    return visits

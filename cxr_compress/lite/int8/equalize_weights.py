"""Which axis of which weight follows a layer's input or output channels, and how to scale along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Class -> weight and its axis (of a depthwise kernel: the first of the two that make up the output channels).
_OUTPUTS = {
    "Conv2D": ("kernel", 3),
    "Conv2DTranspose": ("kernel", 2),
    "Dense": ("kernel", 1),
    "DepthwiseConv2D": ("depthwise_kernel", 2),
    "SeparableConv2D": ("pointwise_kernel", 3),
    "BatchNormalization": ("gamma", 0),
}
_INPUTS = {
    "Conv2D": ("kernel", 2),
    "Conv2DTranspose": ("kernel", 3),
    "Dense": ("kernel", 0),
    "DepthwiseConv2D": ("depthwise_kernel", 2),
    "SeparableConv2D": ("depthwise_kernel", 2),
}
_OFFSETS = ("bias", "beta")


def divide_outputs(layer: Any, factors: Floats) -> None:
    """Make each output channel of a layer smaller by its factor, in place."""
    name, axis = _OUTPUTS[type(layer).__name__]
    weight = getattr(layer, name)
    values = weight.numpy()
    shape = [1] * values.ndim
    if type(layer).__name__ == "DepthwiseConv2D":
        shape[axis:] = values.shape[axis:]
    else:
        shape[axis] = values.shape[axis]
    weight.assign(values / factors.astype(values.dtype).reshape(shape))
    for offset in (getattr(layer, name, None) for name in _OFFSETS):
        if offset is not None:
            offset.assign(offset.numpy() / factors.astype(values.dtype))


def multiply_inputs(layer: Any, factors: Floats) -> None:
    """Make what a layer does with each input channel larger by its factor, in place; a flattened map's in turn."""
    name, axis = _INPUTS[type(layer).__name__]
    weight = getattr(layer, name)
    values = weight.numpy()
    shape = [1] * values.ndim
    shape[axis] = values.shape[axis]
    repeated = np.tile(factors.astype(values.dtype), values.shape[axis] // len(factors))
    weight.assign(values * repeated.reshape(shape))


def output_reach(layer: Any) -> Floats:
    """What each output channel can be expected to reach, up to a common factor.

    From a batch norm three standard deviations above its mean; else from the largest weight.
    """
    name, axis = _OUTPUTS[type(layer).__name__]
    values = np.abs(getattr(layer, name).numpy().astype(np.float64))
    if name == "gamma":
        center = 0.0 if layer.beta is None else layer.beta.numpy().astype(np.float64)
        return np.maximum(center + 3 * values, 0.0)
    if type(layer).__name__ == "DepthwiseConv2D":
        return values.max(axis=(0, 1)).ravel()
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).max(axis=0)


def input_shares(layer: Any, channels: int) -> Floats:
    """The largest part of its filter's range that a weight for each input channel takes: (channels,) in [0, 1].

    1 for every channel of a depthwise kernel, whose int8 scales are one per channel.
    """
    name, axis = _INPUTS[type(layer).__name__]
    if name == "depthwise_kernel":
        return np.ones(channels)
    values = np.abs(getattr(layer, name).numpy().astype(np.float64))
    filters_last = values if axis < values.ndim - 1 else np.moveaxis(values, -1, -2)
    by_channel = filters_last.reshape(-1, channels, filters_last.shape[-1]).max(axis=0)
    ranges = by_channel.max(axis=0)
    return (by_channel / np.where(ranges > 0, ranges, 1.0)).max(axis=1)

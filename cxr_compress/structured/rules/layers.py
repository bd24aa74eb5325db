"""Rules for layers of one input: those with a kernel, and those that pass channels on, normalize, scale or reshape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from cxr_compress.models.layer_traits import LAYERS
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace
from cxr_compress.structured.rules.base import (
    ConfigSize,
    LayerFlow,
    LayerNode,
    WeightAxis,
    keras_rule,
    kernel_uses,
    protect_layer,
)


@keras_rule(*(name for name, traits in LAYERS.items() if traits.passes_channels))
def _passes_on(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Each output channel depends on the same input channel alone; the guard has protected softmax before."""
    return LayerFlow(inputs[0])


@keras_rule("Softmax")
def _softmax(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Over space it is channel-wise; over the channels each depends on all."""
    axis = node.config["axis"]
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    if any(item % node.rank == node.rank - 1 for item in axes):
        return protect_layer(node, inputs, space, "mixes channels")
    return LayerFlow(inputs[0])


@keras_rule("Flatten")
def _flatten(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Channels-last: position by position, the whole channel axis each time (pitfall 5)."""
    return LayerFlow(inputs[0].tile(prod(node.input_shapes[0][:-1])))


@keras_rule("Permute")
def _permute(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Swapped positions leave the channels alone as long as they stay last."""
    if node.config["dims"][-1] != len(node.output_shape):
        return protect_layer(node, inputs, space, "moves the channels to another axis")
    return LayerFlow(inputs[0])


@keras_rule("Reshape")
def _reshape(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """The last axis of the new shape holds whole runs of channels; the number in `target_shape` follows them."""
    output = _reshaped(inputs[0], node.output_shape[-1]) if node.output_shape else None
    if output is None:
        return protect_layer(node, inputs, space, "cuts the channel axis apart")
    target = node.config["target_shape"]
    if target[-1] != -1:
        return LayerFlow(output, sizes=(ConfigSize(("target_shape", len(target) - 1), output),))
    # The smaller width is inferred, so every other number must stay as it is written: it does, they count positions.
    return LayerFlow(output)


def _reshaped(layout: ChannelLayout, width: int) -> ChannelLayout | None:
    """The channels on a last axis of another width; None where a position would hold part of the channels only."""
    if width % len(layout) == 0:
        return layout.tile(width // len(layout))
    if len(layout) % width:
        return None
    rows = layout.ids.reshape(-1, width)
    # A flattened map cut into positions again: every row is the same run of channels.
    return ChannelLayout(rows[0]) if np.array_equal(rows, np.broadcast_to(rows[0], rows.shape)) else None


def _following(node: LayerNode, layout: ChannelLayout) -> tuple[WeightAxis, ...]:
    """Every weight of a layer that holds one number per channel."""
    shapes = enumerate(node.weight_shapes)
    return tuple(WeightAxis(index, 0, layout, "follow") for index, shape in shapes if shape == (len(layout),))


def _axes(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)


def _only_channels(node: LayerNode) -> bool:
    """Whether the layer's config names the channel axis and no other."""
    axes = _axes(node.config["axis"])
    return len(axes) == 1 and axes[0] % node.rank == node.rank - 1


@keras_rule("BatchNormalization")
def _batch_norm(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Gamma, beta, mean and variance are sliced together: a channel's BN goes with the channel (pitfall 2)."""
    if not _only_channels(node):
        return protect_layer(node, inputs, space, f"normalizes axis {_axes(node.config['axis'])[0]}, not the channels")
    return LayerFlow(inputs[0], _following(node, inputs[0]))


@keras_rule("LayerNormalization")
def _layer_norm(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Every channel is normalized by statistics of all of them, so none can go without changing the others."""
    if not _only_channels(node):
        return protect_layer(node, inputs, space, "normalizes more or other axes than the channels")
    if not node.allow_inexact:
        return protect_layer(node, inputs, space, "takes statistics over the channels, which would change")
    return LayerFlow(inputs[0], _following(node, inputs[0]))


@keras_rule("GroupNormalization")
def _group_norm(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """A group of channels has statistics of its own, so whole groups may go: the channels of each are tied."""
    if not _only_channels(node):
        return protect_layer(node, inputs, space, "normalizes another axis than the channels")
    layout, groups = inputs[0], node.config["groups"]
    groups = len(layout) if groups == -1 else groups
    if groups == 1:
        return protect_layer(node, inputs, space, "takes statistics over all channels at once, which would change")
    one_of_each = ChannelLayout(layout.ids[:: len(layout) // groups])
    space.tie(one_of_each.repeat(len(layout) // groups), layout)
    sizes = () if node.config["groups"] == -1 else (ConfigSize(("groups",), one_of_each),)
    return LayerFlow(layout, _following(node, layout), sizes)


@keras_rule("PReLU")
def _prelu(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """One slope per channel (and position, unless axes are shared): the last axis of alpha follows."""
    alpha = node.weight_shapes[0]
    if alpha[-1] == 1 and len(inputs[0]) > 1:
        return LayerFlow(inputs[0])
    return LayerFlow(inputs[0], (WeightAxis(0, len(alpha) - 1, inputs[0], "follow"),))


@keras_rule("LayerScale")
def _layer_scale(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """ConvNeXt's factor per channel, which counts its channels in its config."""
    return LayerFlow(inputs[0], _following(node, inputs[0]), (ConfigSize(("projection_dim",), inputs[0]),))


@keras_rule("Rescaling", "Normalization")
def _fixed_scale(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """One constant for all channels passes them through; constants per channel sit in the config and stay."""
    constants = [node.config.get(key) for key in ("scale", "offset", "mean", "variance")]
    if any(np.size(value) > 1 for value in constants if value is not None):
        space.protect(inputs[0], f"{node.path} ({node.class_name}) has one constant per channel")
    elif node.weight_shapes:
        space.protect(inputs[0], f"{node.path} ({node.class_name}) standardizes the channels of an input")
    return LayerFlow(inputs[0])


def _bias(node: LayerNode, weight: int, layout: ChannelLayout) -> tuple[WeightAxis, ...]:
    return (WeightAxis(weight, 0, layout, "produce"),) if node.config.get("use_bias", True) else ()


@keras_rule("Conv1D", "Conv2D", "Conv3D")
def _conv(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Filters are new channels; the kernel's last but one axis sums over the input's."""
    groups = node.config.get("groups", 1)
    if groups == len(inputs[0]) > 1:
        return _one_channel_a_group(node, inputs[0])
    consumed, output = inputs[0], space.allocate(node.path, node.output_shape[-1])
    if groups > 1:
        consumed = _same_of_each(inputs[0], groups, space)
        _same_of_each(output, groups, space)
    last = len(node.weight_shapes[0]) - 1
    axes = (
        WeightAxis(0, last - 1, consumed, "consume"),
        WeightAxis(0, last, output, "produce"),
        *_bias(node, 1, output),
    )
    return LayerFlow(output, axes, (ConfigSize(("filters",), output),), kernel_uses(node))


def _same_of_each(layout: ChannelLayout, groups: int, space: ChannelSpace) -> ChannelLayout:
    """Tie channel i of every group of a grouped convolution; returns the channels of the first group.

    The groups then stay equally wide, which is what one kernel needs, and the number of groups stays.
    """
    first = ChannelLayout(layout.ids[: len(layout) // groups])
    space.tie(first.tile(groups), layout)
    return first


def _one_channel_a_group(node: LayerNode, inputs: ChannelLayout) -> LayerFlow:
    """As many groups as channels: a depthwise convolution, whose groups and filters go with its input's channels."""
    output = inputs.repeat(node.output_shape[-1] // len(inputs))
    axes = [WeightAxis(0, len(node.weight_shapes[0]) - 1, output, "follow")]
    if node.config["use_bias"]:
        axes.append(WeightAxis(1, 0, output, "follow"))
    sizes = (ConfigSize(("filters",), output), ConfigSize(("groups",), inputs))
    return LayerFlow(output, tuple(axes), sizes, kernel_uses(node))


@keras_rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """As a convolution, with the kernel's last two axes the other way round."""
    output = space.allocate(node.path, node.output_shape[-1])
    last = len(node.weight_shapes[0]) - 1
    axes = (
        WeightAxis(0, last, inputs[0], "consume"),
        WeightAxis(0, last - 1, output, "produce"),
        *_bias(node, 1, output),
    )
    return LayerFlow(output, axes, (ConfigSize(("filters",), output),), kernel_uses(node))


@keras_rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Follows its producer; with a multiplier m, input channel k makes the outputs k*m .. k*m+m-1 (pitfall 4)."""
    output = inputs[0].repeat(node.config["depth_multiplier"])
    axes = [WeightAxis(0, len(node.weight_shapes[0]) - 2, inputs[0], "follow")]
    if node.config["use_bias"]:
        axes.append(WeightAxis(1, 0, output, "follow"))
    return LayerFlow(output, tuple(axes), uses=kernel_uses(node))


@keras_rule("SeparableConv1D", "SeparableConv2D")
def _separable(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """A depthwise convolution that follows its producer, then a pointwise one that makes new channels."""
    between = inputs[0].repeat(node.config["depth_multiplier"])
    output = space.allocate(node.path, node.output_shape[-1])
    last = len(node.weight_shapes[0]) - 1
    axes = (
        WeightAxis(0, last - 1, inputs[0], "follow"),
        WeightAxis(1, last - 1, between, "consume"),
        WeightAxis(1, last, output, "produce"),
        *_bias(node, 2, output),
    )
    return LayerFlow(output, axes, (ConfigSize(("filters",), output),), kernel_uses(node))


@keras_rule("Dense")
def _dense(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Units are new channels; the kernel's first axis sums over the input's last."""
    output = space.allocate(node.path, node.output_shape[-1])
    axes = (WeightAxis(0, 0, inputs[0], "consume"), WeightAxis(0, 1, output, "produce"), *_bias(node, 1, output))
    return LayerFlow(output, axes, (ConfigSize(("units",), output),), kernel_uses(node))

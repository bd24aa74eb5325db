"""Rules for layers that make new channels from old ones: convolutions of every kind and dense layers."""

from __future__ import annotations

from collections.abc import Sequence

from cxr_compress.structured.layout import ChannelLayout, ChannelSpace
from cxr_compress.structured.rules.base import (
    ConfigSize,
    LayerFlow,
    LayerNode,
    WeightAxis,
    keras_rule,
    kernel_uses,
)


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

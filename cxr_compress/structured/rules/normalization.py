"""Rules for normalizations and for layers that scale each channel by a weight of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr_compress.structured.flow import ConfigSize, LayerFlow, LayerNode, WeightAxis, freeze_layer
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace
from cxr_compress.structured.rules.base import keras_rule


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
        return freeze_layer(node, inputs, space, f"normalizes axis {_axes(node.config['axis'])[0]}, not the channels")
    return LayerFlow(inputs[0], _following(node, inputs[0]))


@keras_rule("LayerNormalization")
def _layer_norm(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Every channel is normalized by statistics of all of them, so none can go without changing the others."""
    if not _only_channels(node):
        return freeze_layer(node, inputs, space, "normalizes more or other axes than the channels")
    if not node.allow_inexact:
        return freeze_layer(node, inputs, space, "takes statistics over the channels, which would change")
    return LayerFlow(inputs[0], _following(node, inputs[0]))


@keras_rule("GroupNormalization")
def _group_norm(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """A group of channels has statistics of its own, so whole groups may go: the channels of each are tied."""
    if not _only_channels(node):
        return freeze_layer(node, inputs, space, "normalizes another axis than the channels")
    layout, groups = inputs[0], node.config["groups"]
    groups = len(layout) if groups == -1 else groups
    if groups == 1:
        return freeze_layer(node, inputs, space, "takes statistics over all channels at once, which would change")
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
        space.freeze(inputs[0], f"{node.path} ({node.class_name}) has one constant per channel")
    elif node.weight_shapes:
        space.freeze(inputs[0], f"{node.path} ({node.class_name}) standardizes the channels of an input")
    return LayerFlow(inputs[0])

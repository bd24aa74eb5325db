"""Rules for layers that move channels without touching their weights: pass them through, join, flatten, reshape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from cxr_compress.structured.flow import ConfigSize, LayerFlow, LayerNode, freeze_layer
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace, join
from cxr_compress.structured.rules.base import keras_rule

_OF_EVERY_RANK = (
    *("SpatialDropout", "MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling"),
    *("ZeroPadding", "Cropping", "UpSampling"),
)
_CHANNEL_WISE = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Identity", "ActivityRegularization"),
    *("Dropout", "AlphaDropout", "GaussianNoise", "GaussianDropout", "StochasticDepth"),
    *("Resizing", "CenterCrop", "RandomCrop", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
    *("RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth", "RepeatVector"),
    *(f"{family}{rank}D" for family in _OF_EVERY_RANK for rank in (1, 2, 3)),
)


@keras_rule(*_CHANNEL_WISE)
def _channel_wise(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Each output channel depends on the same input channel alone; the guard has already frozen softmax."""
    return LayerFlow(inputs[0])


@keras_rule("Softmax")
def _softmax(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Over space it is channel-wise; over the channels each depends on all."""
    axis = node.config["axis"]
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    if any(item % node.rank == node.rank - 1 for item in axes):
        return freeze_layer(node, inputs, space, "mixes channels")
    return LayerFlow(inputs[0])


@keras_rule("Flatten")
def _flatten(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Channels-last: position by position, the whole channel axis each time (pitfall 5)."""
    return LayerFlow(inputs[0].tile(prod(node.input_shapes[0][:-1])))


@keras_rule("Permute")
def _permute(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Swapped positions leave the channels alone as long as they stay last."""
    if node.config["dims"][-1] != len(node.output_shape):
        return freeze_layer(node, inputs, space, "moves the channels to another axis")
    return LayerFlow(inputs[0])


@keras_rule("Reshape")
def _reshape(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """The last axis of the new shape holds whole runs of channels; the number in `target_shape` follows them."""
    output = _reshaped(inputs[0], node.output_shape[-1]) if node.output_shape else None
    if output is None:
        return freeze_layer(node, inputs, space, "cuts the channel axis apart")
    target = node.config["target_shape"]
    if target[-1] != -1:
        return LayerFlow(output, sizes=(ConfigSize(("target_shape", len(target) - 1), output),))
    # The thinner width is inferred, so every other number must stay as it is written: it does, they count positions.
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


@keras_rule("Concatenate")
def _concatenate(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Along the channels the branches follow one another, never merged (pitfall 1); along space they must agree."""
    return concatenated(inputs, node.config["axis"] % node.rank == node.rank - 1, space)


def concatenated(inputs: Sequence[ChannelLayout], along_channels: bool, space: ChannelSpace) -> LayerFlow:
    """The flow of a concatenation."""
    if along_channels:
        return LayerFlow(join(inputs))
    for other in inputs[1:]:
        space.tie(inputs[0], other)
    return LayerFlow(inputs[0])

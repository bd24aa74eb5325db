"""The rules themselves, one per layer family.

The default for everything else is to freeze with a reason (`flow.apply_rule`): a layer that is not understood is never
touched and never silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.structured.flow import (
    ConfigSize,
    KernelUse,
    LayerFlow,
    LayerNode,
    Rule,
    WeightAxis,
    freeze_layer,
    register_rule,
)
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace, join

# These mix the channels of one position: removing one would change what the others become.
_MIXING_ACTIVATIONS = ("softmax", "log_softmax")

_CHANNEL_WISE = (
    "Dropout",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "ReLU",
    "LeakyReLU",
    "ELU",
    "ThresholdedReLU",
    "ActivityRegularization",
    "MaxPooling2D",
    "AveragePooling2D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "ZeroPadding2D",
    "Cropping2D",
    "UpSampling2D",
)
_ELEMENT_WISE = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


def _understood(rule: Rule) -> Rule:
    """Freeze what every rule below leaves out: channels_first data and activations that mix channels."""

    def guarded(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
        if node.config.get("data_format") == "channels_first":
            return freeze_layer(node, inputs, space, "is channels_first, which is not followed", _kernel_uses(node))
        if node.config.get("activation") in _MIXING_ACTIVATIONS:
            return freeze_layer(node, inputs, space, "has an activation that mixes channels", _kernel_uses(node))
        return rule(node, inputs, space)

    return guarded


def _rule(*class_names: str) -> Callable[[Rule], Rule]:
    """Register a guarded rule for these classes."""
    return lambda rule: register_rule(*class_names)(_understood(rule))


def _kernel_uses(node: LayerNode) -> tuple[KernelUse, ...]:
    """MACs of the layer families below: every kernel element is multiplied once per output position.

    Source: the count that DenseNet121's 2.83 G MACs at 224 px come from; additions of biases and BN are not counted.
    """
    if node.class_name in ("Conv2D", "DepthwiseConv2D"):
        return (KernelUse(0, _positions(node)),)
    if node.class_name == "SeparableConv2D":
        return (KernelUse(0, _positions(node)), KernelUse(1, _positions(node)))
    if node.class_name == "Dense":
        return (KernelUse(0, prod(node.output_shape[:-1])),)
    return ()


def _positions(node: LayerNode) -> int:
    first = node.config.get("data_format") == "channels_first"
    return prod(node.output_shape[1:] if first else node.output_shape[:-1])


def _bias(node: LayerNode, weight: int, layout: ChannelLayout) -> tuple[WeightAxis, ...]:
    return (WeightAxis(weight, 0, layout, "produce"),) if node.config.get("use_bias", True) else ()


@_rule(*_CHANNEL_WISE)
def _channel_wise(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Each output channel depends on the same input channel alone."""
    return LayerFlow(inputs[0])


@_rule("Activation")
def _activation(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Element-wise; the guard has already frozen softmax."""
    return LayerFlow(inputs[0])


@_rule("BatchNormalization")
def _batch_norm(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Gamma, beta, mean and variance are sliced together: a channel's BN goes with the channel (pitfall 2)."""
    axis = node.config["axis"]
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    if axis not in (-1, len(node.output_shape)):
        return freeze_layer(node, inputs, space, f"normalises axis {axis}, not the channels")
    axes = tuple(WeightAxis(index, 0, inputs[0], "follow") for index in range(len(node.weight_shapes)))
    return LayerFlow(inputs[0], axes)


@_rule("PReLU")
def _prelu(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """One slope per channel (and position, unless axes are shared): the last axis of alpha follows."""
    alpha = node.weight_shapes[0]
    if alpha[-1] == 1 and len(inputs[0]) > 1:
        return LayerFlow(inputs[0])
    return LayerFlow(inputs[0], (WeightAxis(0, len(alpha) - 1, inputs[0], "follow"),))


@_rule("Conv2D")
def _conv(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Filters are new channels; the kernel's third axis sums over the input's."""
    uses = _kernel_uses(node)
    if node.config.get("groups", 1) != 1:
        return freeze_layer(node, inputs, space, "is a grouped convolution", uses)
    output = space.allocate(node.path, node.output_shape[-1])
    axes = (WeightAxis(0, 2, inputs[0], "consume"), WeightAxis(0, 3, output, "produce"), *_bias(node, 1, output))
    return LayerFlow(output, axes, (ConfigSize(("filters",), output),), uses)


@_rule("DepthwiseConv2D")
def _depthwise(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Follows its producer; with a multiplier m, input channel k makes the outputs k*m .. k*m+m-1."""
    output = inputs[0].repeat(node.config["depth_multiplier"])
    axes = [WeightAxis(0, 2, inputs[0], "follow")]
    if node.config["use_bias"]:
        axes.append(WeightAxis(1, 0, output, "follow"))
    return LayerFlow(output, tuple(axes), uses=_kernel_uses(node))


@_rule("SeparableConv2D")
def _separable(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """A depthwise convolution that follows its producer, then a pointwise one that makes new channels."""
    between = inputs[0].repeat(node.config["depth_multiplier"])
    output = space.allocate(node.path, node.output_shape[-1])
    axes = (
        WeightAxis(0, 2, inputs[0], "follow"),
        WeightAxis(1, 2, between, "consume"),
        WeightAxis(1, 3, output, "produce"),
        *_bias(node, 2, output),
    )
    return LayerFlow(output, axes, (ConfigSize(("filters",), output),), _kernel_uses(node))


@_rule("Dense")
def _dense(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Units are new channels; the kernel's first axis sums over the input's last."""
    output = space.allocate(node.path, node.output_shape[-1])
    axes = (WeightAxis(0, 0, inputs[0], "consume"), WeightAxis(0, 1, output, "produce"), *_bias(node, 1, output))
    return LayerFlow(output, axes, (ConfigSize(("units",), output),), _kernel_uses(node))


@_rule("Flatten")
def _flatten(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Channels-last: position by position, the whole channel axis each time (pitfall 5)."""
    return LayerFlow(inputs[0].tile(prod(node.input_shapes[0][:-1])))


@_rule("Concatenate")
def _concatenate(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Along the channels the branches follow one another, never merged (pitfall 1); along space they must agree."""
    axis, rank = node.config["axis"], len(node.output_shape) + 1
    if axis % rank == rank - 1:
        return LayerFlow(join(inputs))
    for other in inputs[1:]:
        space.tie(inputs[0], other)
    return LayerFlow(inputs[0])


@_rule(*_ELEMENT_WISE)
def _element_wise(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Channel i of every input meets channel i of the others; a one-channel input is broadcast and must stay.

    Raises:
        UnsupportedLayerError: the inputs differ in channels and none is a broadcast (pitfall 3).
    """
    widest = max(inputs, key=len)
    for layout in inputs:
        if len(layout) == len(widest):
            space.tie(widest, layout)
        elif len(layout) == 1:
            space.freeze(layout, f"{node.path} ({node.class_name}) broadcasts its only channel")
        else:
            sizes = ", ".join(str(len(item)) for item in inputs)
            raise UnsupportedLayerError(
                f"{node.path} ({node.class_name}): expected inputs of one width, got {sizes} channels"
            )
    return LayerFlow(widest)

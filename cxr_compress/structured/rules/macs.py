"""The MACs counting table: how often each kernel of a layer is multiplied in one call, and what kind of kernel it is.

Source: the count that DenseNet121's 2.83 G MACs at 224 px come from; additions of biases, batch norms and element-wise
layers are not counted.
"""

from __future__ import annotations

from math import prod
from typing import Any

from cxr_compress.device.kernel_kind import ONE_CHANNEL_A_GROUP, KernelKind
from cxr_compress.structured.flow import KernelUse, LayerNode, Shape

_PER_OUTPUT_POSITION = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")
_PER_INPUT_POSITION = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE_THEN_POINTWISE = ("SeparableConv1D", "SeparableConv2D")


def kernel_uses(node: LayerNode) -> tuple[KernelUse, ...]:
    """The kernels of a node and how many positions each is applied at; empty for layers that multiply by none.

    A convolution applies its kernel at every output position, a transposed one spreads every input position. A grouped
    kernel is smaller by itself: it has no weights between groups.
    """
    if node.class_name in _PER_OUTPUT_POSITION:
        return (KernelUse(0, _positions(node, node.output_shape), _kind(node, node.class_name)),)
    if node.class_name in _PER_INPUT_POSITION:
        return (KernelUse(0, _positions(node, node.input_shapes[0]), _kind(node, node.class_name)),)
    if node.class_name in _DEPTHWISE_THEN_POINTWISE:
        positions = _positions(node, node.output_shape)
        depthwise = _kind(node, node.class_name.replace("Separable", "Depthwise"))
        return (KernelUse(0, positions, depthwise), KernelUse(1, positions, _pointwise_part(node)))
    if node.class_name == "Dense":
        kind = KernelKind("Dense", (), (), (), 1, 1, "valid", node.input_shapes[0][:-1], node.output_shape[:-1])
        return (KernelUse(0, prod(node.output_shape[:-1]), kind),)
    return ()


def _positions(node: LayerNode, shape: Shape) -> int:
    return prod(_spatial(node, shape))


def _spatial(node: LayerNode, shape: Shape) -> Shape:
    first = node.config.get("data_format") == "channels_first"
    return shape[1:] if first else shape[:-1]


def _kind(node: LayerNode, class_name: str) -> KernelKind:
    """What a convolution, or the first kernel of a separable one, computes apart from its widths."""
    size = node.weight_shapes[0][:-2]
    groups = int(node.config.get("groups", 1))
    multiplier = int(node.config.get("depth_multiplier", 1))
    # As the rule for convolutions sees it: the filters of such a layer go with its input channels.
    if groups > 1 and node.weight_shapes[0][-2] == 1:
        groups, multiplier = ONE_CHANNEL_A_GROUP, node.weight_shapes[0][-1] // groups
    return KernelKind(
        class_name=class_name,
        kernel_size=size,
        strides=_steps(node.config.get("strides", 1), len(size)),
        dilation=_steps(node.config.get("dilation_rate", 1), len(size)),
        groups=groups,
        multiplier=multiplier,
        padding=_padding(node),
        input_size=_spatial(node, node.input_shapes[0]),
        output_size=_spatial(node, node.output_shape),
    )


def _pointwise_part(node: LayerNode) -> KernelKind:
    """The second half of a separable convolution: an ordinary one of size 1 on what the first half made."""
    ones, output = (1,) * (len(node.weight_shapes[1]) - 2), _spatial(node, node.output_shape)
    return KernelKind(node.class_name.replace("Separable", ""), ones, ones, ones, 1, 1, "valid", output, output)


def _padding(node: LayerNode) -> str:
    # Causal padding of a Conv1D costs what "same" does.
    return "valid" if node.config.get("padding") == "valid" else "same"


def _steps(value: Any, rank: int) -> Shape:
    return tuple(int(step) for step in value) if isinstance(value, list | tuple) else (int(value),) * rank

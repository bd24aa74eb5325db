"""The MACs counting table: how often each kernel of a layer is multiplied in one call.

Source: the count that DenseNet121's 2.83 G MACs at 224 px come from; additions of biases, batch norms and element-wise
layers are not counted.
"""

from __future__ import annotations

from math import prod

from cxr_compress.structured.flow import KernelUse, LayerNode

_PER_OUTPUT_POSITION = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")
_PER_INPUT_POSITION = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE_THEN_POINTWISE = ("SeparableConv1D", "SeparableConv2D")


def kernel_uses(node: LayerNode) -> tuple[KernelUse, ...]:
    """The kernels of a node and how many positions each is applied at; empty for layers that multiply by none.

    A convolution applies its kernel at every output position, a transposed one spreads every input position. A grouped
    kernel is smaller by itself: it has no weights between groups.
    """
    if node.class_name in _PER_OUTPUT_POSITION:
        return (KernelUse(0, _positions(node, node.output_shape)),)
    if node.class_name in _PER_INPUT_POSITION:
        return (KernelUse(0, _positions(node, node.input_shapes[0])),)
    if node.class_name in _DEPTHWISE_THEN_POINTWISE:
        positions = _positions(node, node.output_shape)
        return (KernelUse(0, positions), KernelUse(1, positions))
    if node.class_name == "Dense":
        return (KernelUse(0, prod(node.output_shape[:-1])),)
    return ()


def _positions(node: LayerNode, shape: tuple[int, ...]) -> int:
    first = node.config.get("data_format") == "channels_first"
    return prod(shape[1:] if first else shape[:-1])

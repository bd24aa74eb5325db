"""The MACs counting table: how often each kernel of a layer is multiplied in one call, and what kind of kernel it is.

Source: the count that DenseNet121's 2.83 G MACs at 224 px come from; additions of biases, batch norms, pooling,
resizing and element-wise layers are by convention 0. A layer that is neither in the table nor known to multiply nothing
makes the MACs of its model unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from cxr_compress.device.cost_table import ONE_CHANNEL_A_GROUP, KernelKind
from cxr_compress.structured.flow import KernelUse, LayerNode, Shape

_PER_OUTPUT_POSITION = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")
_PER_INPUT_POSITION = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE_THEN_POINTWISE = ("SeparableConv1D", "SeparableConv2D")
# Every output position has weights of its own, which are multiplied once.
_ONCE = ("LocallyConnected1D", "LocallyConnected2D")
_AT_EVERY_STEP = ("SimpleRNN", "LSTM", "GRU")
COUNTED_ONLY = (*_ONCE, *_AT_EVERY_STEP, "EinsumDense", "TimeDistributed")
"""Layers whose kernels are counted and whose channels are not followed."""

_OF_EVERY_RANK = (
    *("SpatialDropout", "MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling"),
    *("ZeroPadding", "Cropping", "UpSampling"),
)
_WITHOUT_PRODUCTS = frozenset(
    (
        *("InputLayer", "Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "ThresholdedReLU", "Softmax", "Identity"),
        *("ActivityRegularization", "Dropout", "AlphaDropout", "GaussianNoise", "GaussianDropout", "StochasticDepth"),
        *("BatchNormalization", "SyncBatchNormalization", "LayerNormalization", "GroupNormalization", "LayerScale"),
        *("UnitNormalization", "Normalization", "Rescaling", "CustomScaleLayer"),
        *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"),
        *("Flatten", "Reshape", "Permute", "RepeatVector", "Masking", "SlicingOpLambda", "InstanceProperty"),
        *("Resizing", "CenterCrop", "RandomCrop", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
        *("RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth"),
        *("Embedding", "CategoryEncoding", "Discretization", "Hashing", "HashedCrossing", "IntegerLookup"),
        *(f"{family}{rank}D" for family in _OF_EVERY_RANK for rank in (1, 2, 3)),
    )
)

ELEMENT_WISE_OPERATIONS = (
    *("__operators__.add", "math.add", "math.subtract", "math.multiply", "math.truediv", "math.divide", "math.pow"),
    *("math.divide_no_nan", "math.multiply_no_nan", "math.floordiv", "math.maximum", "math.minimum", "math.add_n"),
    *("math.negative", "math.abs", "math.sqrt", "math.rsqrt", "math.square", "math.exp", "math.log", "math.sigmoid"),
    *("math.tanh", "math.softplus", "math.erf", "math.squared_difference", "math.reciprocal", "math.log1p"),
    *("nn.relu", "nn.relu6", "nn.leaky_relu", "nn.elu", "nn.selu", "nn.gelu", "nn.silu", "nn.swish", "nn.softsign"),
    *("nn.sigmoid", "nn.tanh", "nn.softplus", "clip_by_value", "identity", "cast", "stop_gradient"),
)
REDUCTIONS = ("math.reduce_mean", "math.reduce_max", "math.reduce_min", "math.reduce_sum")
SPATIAL_OPERATIONS = ("image.resize", "compat.v1.pad", "nn.avg_pool2d", "nn.max_pool2d")
_MOVES = (
    *("concat", "reshape", "transpose", "compat.v1.transpose", "split", "stack", "unstack", "expand_dims", "squeeze"),
    *("compat.v1.squeeze", "compat.v1.gather", "gather", "tile", "repeat", "reverse", "roll", "slice", "shape"),
    *("compat.v1.shape", "compat.v1.size", "size", "rank", "broadcast_to", "zeros_like", "ones_like", "where", "pad"),
    *("nn.softmax", "nn.log_softmax", "nn.space_to_depth", "nn.depth_to_space", "nn.moments", "nn.l2_normalize"),
    *("math.l2_normalize", "math.argmax", "compat.v1.math.argmax", "one_hot", "math.cumsum", "math.reduce_prod"),
    *("math.reduce_std", "math.reduce_variance", "math.reduce_logsumexp", "norm", "image.flip_left_right"),
)
_OPERATIONS_WITHOUT_PRODUCTS = frozenset((*ELEMENT_WISE_OPERATIONS, *REDUCTIONS, *SPATIAL_OPERATIONS, *_MOVES))


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
    return _counted_only(node) if node.class_name in COUNTED_ONLY else ()


def _counted_only(node: LayerNode) -> tuple[KernelUse, ...]:
    """The kernels of layers that are not timed alone."""
    if node.class_name in _ONCE:
        return (KernelUse(0, 1),)
    if node.class_name == "EinsumDense":
        return _einsum_uses(node)
    steps = node.input_shapes[0][0]
    if node.class_name in _AT_EVERY_STEP:
        return () if node.config.get("time_major") else (KernelUse(0, steps), KernelUse(1, steps))
    inner = _inside(node)
    uses = () if inner is None else kernel_uses(inner)
    return tuple(replace(use, positions=steps * use.positions, kind=None) for use in uses)


def multiplies_nothing(node: LayerNode) -> bool:
    """Whether a layer is known to have no products of tensors that a count of MACs would hold."""
    if not node.from_keras:
        return False
    if node.class_name == "TFOpLambda":
        return node.config["function"] in _OPERATIONS_WITHOUT_PRODUCTS
    if node.class_name == "TimeDistributed":
        inner = _inside(node)
        return inner is not None and multiplies_nothing(inner)
    return node.class_name in _WITHOUT_PRODUCTS


def described(node: LayerNode) -> str:
    """A layer whose MACs are not counted, for people: its path, its class, and what it calls or holds."""
    inner = node.config.get("layer") if node.class_name in ("TimeDistributed", "Bidirectional") else None
    what = node.config.get("function") if node.class_name == "TFOpLambda" else None
    held = inner.get("class_name") if isinstance(inner, Mapping) else what
    return f"{node.path} ({node.class_name}{f' of {held}' if held else ''})"


def _inside(node: LayerNode) -> LayerNode | None:
    """The layer that a TimeDistributed one calls at every step; None where it is not Keras's own."""
    held = node.config["layer"]
    if not isinstance(held, Mapping) or held.get("module", "keras.layers") != "keras.layers":
        return None
    return replace(
        node,
        class_name=str(held["class_name"]),
        read_config=lambda: dict(held["config"]),
        input_shapes=tuple(shape[1:] for shape in node.input_shapes),
        output_shape=node.output_shape[1:],
    )


def _einsum_uses(node: LayerNode) -> tuple[KernelUse, ...]:
    """The kernel once for every combination of the input's indices that it does not have."""
    given, kernel = str(node.config["equation"]).replace(" ", "").partition("->")[0].split(",")
    before, dots, after = given.partition("...")
    shape = (1, *node.input_shapes[0])
    free = [size for label, size in zip(before, shape, strict=False) if label not in kernel]
    free += [size for label, size in zip(reversed(after), reversed(shape), strict=False) if label not in kernel]
    return (KernelUse(0, prod(free) * prod(shape[len(before) : len(shape) - len(after)] if dots else ())),)


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

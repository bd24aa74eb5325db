"""What every Keras layer is, in one table: what reads or changes a network asks here instead of naming classes.

A layer that hands its channels on needs one entry in `LAYERS`; one with a kernel needs an entry, and a rule that says
which axes of its weights are channels (`structured.rules`). A layer that is not listed may do anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "input",
    "kernel",  # multiplies by a matrix of weights
    "normalization",  # statistics of a batch, of channels or of groups of them
    "scale",  # a number, or one for each channel
    "activation",
    "pool",
    "resampling",  # pads, crops, resizes
    "view",  # hands its numbers on in their order
    "move",  # reorders or repeats positions
    "merge",  # element by element of several tensors
    "concatenation",
    "noise",  # does nothing once the model is trained
    "augmentation",  # changes images in training alone
    "lookup",
    "unknown",
]

# How the multiplications of a layer are counted: what each weight of its kernel is multiplied with.
Macs = Literal[
    "none",
    "output positions",
    "input positions",  # a transposed convolution spreads every one
    "depthwise, then pointwise",
    "once",  # every output position has weights of its own
    "steps",  # of a sequence
    "equation",
    "inner layer",
    "unknown",
]


@dataclass(frozen=True)
class LayerTraits:
    """What a layer is.

    Attributes:
        kind: its family.
        passes_channels: each channel of the output is made of the same channel of the input alone, and no weight of the
            layer has a channel axis.
        kernel: the attribute that holds the kernel, of a separable convolution the one that mixes channels.
        macs: how often each weight of its kernels is multiplied in one call.
        prunable: single weights of the kernel may be zeroed: there are many, and each is one of many for its channel.
        keeps_scale: its int8 operator hands codes on, so its input and output have one scale.
        fuses: the converter makes it a part of the operator in front.
        moving_statistics: a fixed scale and shift once trained, which the converter folds into a kernel in front.
        attributes: entries of its config that the layer keeps, in the same form, as attributes of the same name.
    """

    kind: Kind
    passes_channels: bool = False
    kernel: str = ""
    macs: Macs = "none"
    prunable: bool = False
    keeps_scale: bool = False
    fuses: bool = False
    moving_statistics: bool = False
    attributes: frozenset[str] = frozenset()

    @property
    def leaves_no_operator(self) -> bool:
        """Whether a converted model has no operator for it that reads and writes its tensors."""
        return self.fuses or self.kind in ("view", "noise", "augmentation")


UNKNOWN = LayerTraits("unknown", macs="unknown")

_CONVOLUTION = frozenset(("strides", "padding", "data_format", "dilation_rate", "groups", "activation", "use_bias"))
_DEPTHWISE = _CONVOLUTION | {"depth_multiplier"}
_AXIS = frozenset(("axis",))

_CONV = LayerTraits("kernel", kernel="kernel", macs="output positions", attributes=_CONVOLUTION)
_TRANSPOSED = LayerTraits("kernel", kernel="kernel", macs="input positions", attributes=_CONVOLUTION)
_SEPARABLE = LayerTraits("kernel", kernel="pointwise_kernel", macs="depthwise, then pointwise", attributes=_DEPTHWISE)
_ACTIVATION = LayerTraits("activation", passes_channels=True)
_POOL = LayerTraits("pool", passes_channels=True)
_RESAMPLING = LayerTraits("resampling", passes_channels=True)
_NOISE = LayerTraits("noise", passes_channels=True, keeps_scale=True)
_AUGMENTATION = LayerTraits("augmentation", passes_channels=True)
_LOOKUP = LayerTraits("lookup")


def _of_ranks(traits: LayerTraits, *names: str, ranks: Sequence[int] = (1, 2, 3)) -> dict[str, LayerTraits]:
    """Classes that Keras has for one, two and three axes of positions; "*" stands for the number."""
    return {name.replace("*", str(rank)): traits for name in names for rank in ranks}


LAYERS: Mapping[str, LayerTraits] = {
    "InputLayer": LayerTraits("input"),
    **_of_ranks(_CONV, "Conv*D"),
    "Conv2D": replace(_CONV, prunable=True),
    **_of_ranks(_TRANSPOSED, "Conv*DTranspose"),
    # It keeps three numbers where its config has one.
    "Conv3DTranspose": replace(_TRANSPOSED, attributes=_CONVOLUTION - {"dilation_rate"}),
    **_of_ranks(replace(_CONV, kernel="depthwise_kernel", attributes=_DEPTHWISE), "DepthwiseConv*D", ranks=(1, 2)),
    "SeparableConv1D": _SEPARABLE,
    "SeparableConv2D": replace(_SEPARABLE, prunable=True),
    "Dense": replace(_CONV, prunable=True, attributes=frozenset(("activation", "use_bias"))),
    **_of_ranks(LayerTraits("kernel", kernel="kernel", macs="once"), "LocallyConnected*D", ranks=(1, 2)),
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU"), LayerTraits("kernel", macs="steps")),
    "EinsumDense": LayerTraits("kernel", kernel="kernel", macs="equation"),
    "TimeDistributed": LayerTraits("kernel", macs="inner layer"),
    "BatchNormalization": LayerTraits("normalization", moving_statistics=True, attributes=_AXIS),
    "SyncBatchNormalization": LayerTraits("normalization", moving_statistics=True),
    "LayerNormalization": LayerTraits("normalization", attributes=_AXIS),
    "GroupNormalization": LayerTraits("normalization", attributes=_AXIS | {"groups"}),
    "UnitNormalization": LayerTraits("normalization"),
    **dict.fromkeys(("Rescaling", "Normalization", "LayerScale"), LayerTraits("scale")),
    "Activation": replace(_ACTIVATION, attributes=frozenset(("activation",))),
    "ReLU": replace(_ACTIVATION, fuses=True),
    **dict.fromkeys(("LeakyReLU", "ELU", "ThresholdedReLU"), _ACTIVATION),
    **dict.fromkeys(("PReLU", "Softmax"), LayerTraits("activation")),
    **_of_ranks(_POOL, "MaxPooling*D", "AveragePooling*D", "GlobalMaxPooling*D", "GlobalAveragePooling*D"),
    **dict.fromkeys(("MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D"), replace(_POOL, keeps_scale=True)),
    **_of_ranks(_RESAMPLING, "ZeroPadding*D", "Cropping*D", "UpSampling*D"),
    **dict.fromkeys(("ZeroPadding2D", "Cropping2D"), replace(_RESAMPLING, keeps_scale=True)),
    **dict.fromkeys(("Resizing", "CenterCrop", "RandomCrop"), _RESAMPLING),
    **dict.fromkeys(("Flatten", "Reshape"), LayerTraits("view", keeps_scale=True)),
    "Identity": LayerTraits("view", passes_channels=True, keeps_scale=True),
    "RepeatVector": LayerTraits("move", passes_channels=True),
    **dict.fromkeys(("Permute", "Masking", "SlicingOpLambda", "InstanceProperty"), LayerTraits("move")),
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), LayerTraits("merge")),
    "CustomScaleLayer": LayerTraits("merge"),
    "Concatenate": LayerTraits("concatenation", keeps_scale=True),
    **_of_ranks(_NOISE, "SpatialDropout*D"),
    **dict.fromkeys(("Dropout", "AlphaDropout", "GaussianNoise", "GaussianDropout", "StochasticDepth"), _NOISE),
    "ActivityRegularization": _NOISE,
    **dict.fromkeys(("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"), _AUGMENTATION),
    **dict.fromkeys(("RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth"), _AUGMENTATION),
    **dict.fromkeys(("Embedding", "CategoryEncoding", "Discretization", "Hashing", "HashedCrossing"), _LOOKUP),
    "IntegerLookup": _LOOKUP,
}

# Operations of TensorFlow that Keras records as layers of their own, by what they do to channels.
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
OPERATIONS_WITHOUT_PRODUCTS = frozenset((*ELEMENT_WISE_OPERATIONS, *REDUCTIONS, *SPATIAL_OPERATIONS, *_MOVES))

# Activations by name: those that work on each element alone, those among them that the converter fuses into the
# operator in front, and those that mix the channels of one position.
ELEMENT_WISE_ACTIVATIONS = frozenset(
    (
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "swish", "silu", "mish", "exponential"),
        *("sigmoid", "hard_sigmoid", "tanh", "softplus", "softsign"),
    )
)
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
MIXING_ACTIVATIONS = ("softmax", "log_softmax")

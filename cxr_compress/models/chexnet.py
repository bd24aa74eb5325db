"""CheXNet: DenseNet121 over a chest film, ending in one logit per finding, and small variants of the same network.

The graph is that of Huang et al., "Densely Connected Convolutional Networks" (arXiv 1608.06993), with the layer names
of ``tf_keras.applications.DenseNet121``, so that weights move between the two by name or by order. It ends in logits
and not in probabilities: an int8 sigmoid knows only 256 values, which ruins the ranking of rare findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.input_shape import check_classes, check_input_shape

HEAD_NAME = "logits"
BN_EPSILON = 1.001e-5  # of the published weights; tf_keras's applications use it too
# As CheXNet was trained (PyTorch's 0.1): Keras's own 0.99 takes 500 steps to forget its start, all of a short training.
BN_MOMENTUM = 0.9
_CHANNEL_MULTIPLE = 4


class _Widths(NamedTuple):
    """Channel counts that ``width`` scales: first convolution, channels added per layer, and the 1x1 in between."""

    stem: int
    growth: int
    bottleneck: int


def chexnet(
    num_classes: int = 14,
    input_shape: Sequence[int | None] = (224, 224, 3),
    *,
    width: float = 1.0,
    blocks: Sequence[int] = (6, 12, 24, 16),
    name: str = "chexnet",
) -> Any:
    """Build a randomly initialised CheXNet whose output are the logits of ``num_classes`` findings.

    With default arguments it is DenseNet121 with a Dense head: 7,051,854 parameters, 2.83 G multiply-accumulates at
    224 px. A smaller ``width`` costs accuracy and saves about its square in parameters and time; fewer ``blocks``
    layers save less and keep more.

    Args:
        num_classes: Findings, each with a logit of its own (films may show several at once).
        input_shape: (height, width, channels) of the float32 film after ``device.preprocess``; height and width may be
            None (any size from 32 px up), since the network is fully convolutional before its pooling.
        width: Scales stem (64), growth (32) and bottleneck (128) channels; each is rounded to the nearest multiple of
            4 and is never below 4. Transitions halve whatever arrives.
        blocks: Dense layers per block; a transition (BN, ReLU, 1x1 convolution, 2x2 mean) stands between two blocks.
        name: Of the model.

    Returns:
        A ``keras.Model`` from (batch, height, width, channels) to float32 (batch, num_classes).

    Raises:
        CompressionError: An argument is out of range, or the film is smaller than 32 px.
    """
    _check_arguments(num_classes, input_shape, width, blocks)
    widths = _Widths(*(_scaled(base, width) for base in (64, 32, 128)))
    inputs = keras.Input(shape=tuple(input_shape), name="image")
    x = _stem(inputs, widths.stem)
    for stage, layers in enumerate(blocks, start=2):
        if stage > 2:  # noqa: PLR2004 - the first dense block is called conv2
            x = _transition(x, f"pool{stage - 1}")
        for index in range(layers):
            x = _dense_layer(x, widths, f"conv{stage}_block{index + 1}")
    x = _norm_relu(x, "bn", "relu")
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name=HEAD_NAME)(x), name=name)


def tiny_chexnet(num_classes: int = 1, input_shape: Sequence[int | None] = (64, 64, 3)) -> Any:
    """Build the small CheXNet of the demo and the tests: a true DenseNet with three transitions.

    Under 300,000 parameters, so that two CPU cores train it in minutes at 64 px; it is no substitute for the full
    network where the findings are small or rare.

    Args:
        num_classes: Findings, each with a logit of its own.
        input_shape: (height, width, channels); height and width may be None.

    Raises:
        CompressionError: As ``chexnet``.
    """
    return chexnet(num_classes, input_shape, width=0.5, blocks=(2, 4, 6, 4), name="tiny_chexnet")


def _check_arguments(num_classes: int, input_shape: Sequence[int | None], width: float, blocks: Sequence[int]) -> None:
    check_classes(num_classes)
    if not width > 0:
        raise CompressionError(f"width must be above 0, got {width}: 1.0 is DenseNet121, 0.5 half its channels")
    if not blocks or min(blocks) < 1:
        raise CompressionError(f"blocks must be positive layer counts such as (6, 12, 24, 16), got {tuple(blocks)}")
    check_input_shape(input_shape)


def _scaled(base: int, width: float) -> int:
    """Nearest multiple of 4 (halves up) that is at least 4: int8 kernels work on groups of four channels."""
    return max(_CHANNEL_MULTIPLE, int(base * width / _CHANNEL_MULTIPLE + 0.5) * _CHANNEL_MULTIPLE)


def _norm_relu(x: Any, norm_name: str, relu_name: str) -> Any:
    x = keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=norm_name)(x)
    return keras.layers.Activation("relu", name=relu_name)(x)


def _stem(inputs: Any, channels: int) -> Any:
    """7x7 convolution and 3x3 maximum, both with stride 2, zero-padded by hand as in the published network."""
    x = keras.layers.ZeroPadding2D(3, name="conv1_pad")(inputs)
    x = keras.layers.Conv2D(channels, 7, strides=2, use_bias=False, name="conv1/conv")(x)
    x = _norm_relu(x, "conv1/bn", "conv1/relu")
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1")(x)


def _dense_layer(x: Any, widths: _Widths, name: str) -> Any:
    """BN-ReLU-1x1, BN-ReLU-3x3, and the result appended to everything that came before."""
    new = _norm_relu(x, f"{name}_0_bn", f"{name}_0_relu")
    new = keras.layers.Conv2D(widths.bottleneck, 1, use_bias=False, name=f"{name}_1_conv")(new)
    new = _norm_relu(new, f"{name}_1_bn", f"{name}_1_relu")
    new = keras.layers.Conv2D(widths.growth, 3, padding="same", use_bias=False, name=f"{name}_2_conv")(new)
    return keras.layers.Concatenate(name=f"{name}_concat")([x, new])


def _transition(x: Any, name: str) -> Any:
    channels = x.shape[-1] // 2
    x = _norm_relu(x, f"{name}_bn", f"{name}_relu")
    x = keras.layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_conv")(x)
    return keras.layers.AveragePooling2D(2, strides=2, name=f"{name}_pool")(x)

"""The networks of `architectures.MODELS` as Keras graphs over one image, ending in one logit per finding.

They end in logits and not in probabilities: an int8 sigmoid knows only 256 values, which ruins the ranking of rare
findings. All have CheXNet's batch-norm momentum, so that short trainings end with statistics of their own images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.architectures import (
    DENSENET169_BLOCKS,
    DENSENET_EPSILON,
    EFFICIENTNET_EPSILON,
    HEAD_NAME,
    EfficientNetStage,
    efficientnet_lite0_blocks,
)

# As CheXNet was trained (PyTorch's 0.1): Keras's own 0.99 takes 500 steps to forget its start, all of a short training.
_BN_MOMENTUM = 0.9
_CHANNEL_MULTIPLE = 4
_LITE_STEM_FILTERS, _LITE_HEAD_FILTERS = 32, 1280
_SMALLEST_SIDE = 32  # five halvings leave one pixel: every network here halves the image five times


class _Widths(NamedTuple):
    """Channel counts that `width` scales: first convolution, channels added per layer, and the 1x1 in between."""

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
    """Build a randomly initialized CheXNet whose output are the logits of `num_classes` findings.

    With default arguments it is DenseNet121 with a Dense head: 7,051,854 parameters, 2.83 G multiply-accumulates at
    224 px. A smaller `width` costs accuracy and saves about its square in parameters and time; fewer `blocks`
    layers save less and keep more.

    Args:
        num_classes: findings, each with a logit of its own (images may show several at once).
        input_shape: (height, width, channels) of the float32 image after `device.preprocess`; height and width may be
            None (any size from 32 px up), since the network is fully convolutional before its pooling.
        width: scales stem (64), growth (32) and bottleneck (128) channels; each is rounded to the nearest multiple of
            4 and is never below 4. Transitions halve whatever arrives.
        blocks: Dense layers per block; a transition (BN, ReLU, 1x1 convolution, 2x2 mean) stands between two blocks.
        name: of the model.

    Returns:
        A `keras.Model` from (batch, height, width, channels) to float32 (batch, num_classes).

    Raises:
        CompressionError: an argument is out of range, or the image is smaller than 32 px.
    """
    inputs = _image_input(num_classes, input_shape)
    _check_size(width, blocks)
    widths = _Widths(*(_scaled(base, width) for base in (64, 32, 128)))
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

    Arguments as `chexnet`.
    """
    return chexnet(num_classes, input_shape, width=0.5, blocks=(2, 4, 6, 4), name="tiny_chexnet")


def _check_size(width: float, blocks: Sequence[int]) -> None:
    if not width > 0:
        raise CompressionError(f"width must be above 0, got {width}: 1.0 is DenseNet121, 0.5 half its channels")
    if not blocks or min(blocks) < 1:
        raise CompressionError(f"blocks must be positive layer counts such as (6, 12, 24, 16), got {tuple(blocks)}")


def _image_input(num_classes: int, input_shape: Sequence[int | None]) -> Any:
    """The input of a network, once its arguments are checked.

    Raises:
        CompressionError: there is no finding, or the shape has another form or a side below 32 px.
    """
    if num_classes < 1:
        raise CompressionError(f"num_classes must be at least 1, got {num_classes}: pass the number of findings")
    shape = tuple(input_shape)
    if len(shape) != 3 or shape[2] is None or shape[2] < 1:  # noqa: PLR2004 - height, width, channels
        raise CompressionError(f"input_shape must be (height, width, channels) such as (224, 224, 3), got {shape}")
    if any(side is not None and side < _SMALLEST_SIDE for side in shape[:2]):
        raise CompressionError(
            f"input_shape {shape} is too small: the network halves the image five times and needs at least "
            f"{_SMALLEST_SIDE}x{_SMALLEST_SIDE} pixels"
        )
    return keras.Input(shape=shape, name="image")


def _scaled(base: int, width: float) -> int:
    """Nearest multiple of 4 (halves up) that is at least 4: int8 kernels work on groups of four channels."""
    return max(_CHANNEL_MULTIPLE, int(base * width / _CHANNEL_MULTIPLE + 0.5) * _CHANNEL_MULTIPLE)


def _norm_relu(x: Any, norm_name: str, relu_name: str) -> Any:
    x = keras.layers.BatchNormalization(momentum=_BN_MOMENTUM, epsilon=DENSENET_EPSILON, name=norm_name)(x)
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


def efficientnet_lite0(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build a randomly initialized EfficientNet-Lite0 whose output are the logits of `num_classes` findings.

    3,413,024 parameters and the head's 1281 per finding (4.69 million with ImageNet's 1000 classes), 0.38 G
    multiply-accumulates at 224 px: a seventh of CheXNet's, at some cost in accuracy. The drop-out and stochastic depth
    of the original training are left out: they are no part of the network that is delivered.

    Arguments as `chexnet`. Image sides that are a multiple of 32 px pad alike everywhere; others may differ by a pixel
    from ports with a fixed padding.
    """
    inputs = _image_input(num_classes, input_shape)
    x = keras.layers.Conv2D(_LITE_STEM_FILTERS, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = _norm(x, "stem", relu=True)
    for number, stage, stride in efficientnet_lite0_blocks():
        x = _block(x, stage, stride, f"block{number}")
    x = keras.layers.Conv2D(_LITE_HEAD_FILTERS, 1, use_bias=False, name="head_conv")(x)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(_norm(x, "head", relu=True))
    return keras.Model(inputs, keras.layers.Dense(num_classes, name=HEAD_NAME)(x), name="efficientnet_lite0")


def _norm(x: Any, name: str, *, relu: bool) -> Any:
    x = keras.layers.BatchNormalization(momentum=_BN_MOMENTUM, epsilon=EFFICIENTNET_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _block(x: Any, stage: EfficientNetStage, stride: int, name: str) -> Any:
    """Widen (1x1), filter each channel by itself, narrow (1x1); the input is added where shapes allow."""
    shortcut, channels = x, x.shape[-1]
    if stage.expansion > 1:
        x = keras.layers.Conv2D(channels * stage.expansion, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _norm(x, f"{name}_expand", relu=True)
    x = keras.layers.DepthwiseConv2D(
        stage.kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = _norm(x, f"{name}_depthwise", relu=True)
    x = keras.layers.Conv2D(stage.filters, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _norm(x, f"{name}_project", relu=False)
    if stride == 1 and channels == stage.filters:
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def densenet169(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build DenseNet169: CheXNet with more layers in its last two blocks: 12.6 million parameters, 3.36 G MACs.

    Arguments as `chexnet`.
    """
    return chexnet(num_classes, input_shape, blocks=DENSENET169_BLOCKS, name="densenet169")


def resnet50(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build ResNet50 with random weights: 23.6 million parameters and the head's 2049 per finding.

    The body is that of `tf_keras.applications` with the batch-norm momentum of CheXNet, for short trainings.

    Arguments as `chexnet`.
    """
    return _with_head(keras.applications.ResNet50, num_classes, input_shape, "resnet50")


def mobilenet_v2(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build MobileNetV2 with random weights: 2.3 million parameters and the head's 1281 per finding, 0.30 G MACs.

    The body is that of `tf_keras.applications`. Its batch-norm momentum of 0.999 takes thousands of steps to forget
    its start; here it is CheXNet's 0.9, so that short trainings end with statistics of images.

    Arguments as `chexnet`; a height or width of None should be even at every halving (a multiple of 32), since the
    padding is fixed when the network is built.
    """
    return _with_head(keras.applications.MobileNetV2, num_classes, input_shape, "mobilenet_v2")


def _with_head(application: Any, num_classes: int, input_shape: Sequence[int | None], name: str) -> Any:
    """Put pooling and the logits upon a body without weights; nothing is downloaded."""
    inputs = _image_input(num_classes, input_shape)
    body = application(include_top=False, weights=None, input_tensor=inputs)
    for layer in body.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = _BN_MOMENTUM
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(body.output)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name=HEAD_NAME)(x), name=name)

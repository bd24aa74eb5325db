"""EfficientNet-Lite0: the EfficientNet that was made for integer arithmetic, with one logit per finding.

Against EfficientNet-B0 (Tan and Le, arXiv 1905.11946) it has no squeeze-and-excitation and ReLU6 instead of swish, so
that every operator has an int8 kernel, Edge TPUs included. Source of the architecture: the tables of
tensorflow/tpu/models/official/efficientnet/lite. Strided convolutions pad as TensorFlow's "same" does; PyTorch copies
of the network compute that padding by hand, so that weights move between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cxr_compress.keras2 import keras
from cxr_compress.models.chexnet import BN_MOMENTUM, HEAD_NAME
from cxr_compress.models.input_shape import check_classes, check_input_shape

STEM_FILTERS = 32
HEAD_FILTERS = 1280
BN_EPSILON = 1e-3  # of the published weights


class _Stage(NamedTuple):
    """Blocks of one width: how many, the side of their depthwise kernel, the stride of the first, and their filters."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def efficientnet_lite0(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build a randomly initialised EfficientNet-Lite0 whose output are the logits of ``num_classes`` findings.

    3,413,024 parameters and the head's 1281 per finding (4.69 million with ImageNet's 1000 classes), 0.38 G
    multiply-accumulates at 224 px: a seventh of CheXNet's, at some cost in accuracy. The drop-out and stochastic depth
    of the original training are left out: they are no part of the network that is delivered.

    Args:
        num_classes: Findings, each with a logit of its own.
        input_shape: (height, width, channels) of the float32 film; height and width may be None. Sides that are a
            multiple of 32 px pad alike everywhere; others may differ by a pixel from ports with a fixed padding.

    Returns:
        A ``keras.Model`` from (batch, height, width, channels) to float32 (batch, num_classes).

    Raises:
        CompressionError: An argument is out of range, or the film is smaller than 32 px.
    """
    check_classes(num_classes)
    inputs = keras.Input(shape=check_input_shape(input_shape), name="image")
    x = keras.layers.Conv2D(STEM_FILTERS, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = _norm(x, "stem", relu=True)
    for number, stage, stride in numbered_blocks():
        x = _block(x, stage, stride, f"block{number}")
    x = keras.layers.Conv2D(HEAD_FILTERS, 1, use_bias=False, name="head_conv")(x)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(_norm(x, "head", relu=True))
    return keras.Model(inputs, keras.layers.Dense(num_classes, name=HEAD_NAME)(x), name="efficientnet_lite0")


def numbered_blocks() -> Iterator[tuple[int, _Stage, int]]:
    """Yield number from 1, stage and stride of every block in the order of the network."""
    number = 0
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            number += 1
            yield number, stage, stage.stride if repeat == 0 else 1


def _norm(x: Any, name: str, *, relu: bool) -> Any:
    x = keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _block(x: Any, stage: _Stage, stride: int, name: str) -> Any:
    """Widen (1x1), filter each channel by itself, narrow (1x1); what came in is added where shapes allow."""
    came_in, channels = x, x.shape[-1]
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
        x = keras.layers.Add(name=f"{name}_add")([came_in, x])
    return x

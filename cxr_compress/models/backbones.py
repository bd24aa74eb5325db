"""The networks that can be trained by name: each a plain Keras model that ends in one logit per finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.chexnet import BN_MOMENTUM, HEAD_NAME, chexnet, tiny_chexnet
from cxr_compress.models.efficientnet_lite import efficientnet_lite0
from cxr_compress.models.input_shape import check_classes, check_input_shape

DENSENET169_BLOCKS = (6, 12, 32, 32)

Build = Callable[[int, Sequence[int | None]], Any]


def densenet169(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build DenseNet169: CheXNet with more layers in its last two blocks: 12.6 million parameters, 3.36 G MACs.

    Args:
        num_classes: Findings, each with a logit of its own.
        input_shape: (height, width, channels); height and width may be None.

    Raises:
        CompressionError: As ``chexnet``.
    """
    return chexnet(num_classes, input_shape, blocks=DENSENET169_BLOCKS, name="densenet169")


def resnet50(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build ResNet50 with random weights: 23.6 million parameters and the head's 2049 per finding.

    The body is that of ``tf_keras.applications`` with the batch-norm momentum of CheXNet, for short trainings.

    Args:
        num_classes: Findings, each with a logit of its own.
        input_shape: (height, width, channels); height and width may be None.

    Raises:
        CompressionError: An argument is out of range, or the film is smaller than 32 px.
    """
    return _with_head(keras.applications.ResNet50, num_classes, input_shape, "resnet50")


def mobilenet_v2(num_classes: int = 14, input_shape: Sequence[int | None] = (224, 224, 3)) -> Any:
    """Build MobileNetV2 with random weights: 2.3 million parameters and the head's 1281 per finding, 0.30 G MACs.

    The body is that of ``tf_keras.applications``. Its batch-norm momentum of 0.999 takes thousands of steps to forget
    its start; here it is CheXNet's 0.9, so that short trainings end with statistics of films.

    Args:
        num_classes: Findings, each with a logit of its own.
        input_shape: (height, width, channels); height and width may be None and should then be even at every halving
            (multiples of 32), since the padding is fixed when the network is built.

    Raises:
        CompressionError: An argument is out of range, or the film is smaller than 32 px.
    """
    return _with_head(keras.applications.MobileNetV2, num_classes, input_shape, "mobilenet_v2")


def _with_head(application: Any, num_classes: int, input_shape: Sequence[int | None], name: str) -> Any:
    """Put pooling and the logits upon a body without weights; nothing is downloaded."""
    check_classes(num_classes)
    inputs = keras.Input(shape=check_input_shape(input_shape), name="image")
    body = application(include_top=False, weights=None, input_tensor=inputs)
    for layer in body.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BN_MOMENTUM
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(body.output)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name=HEAD_NAME)(x), name=name)


MODELS: Mapping[str, Build] = MappingProxyType(
    {
        "chexnet": chexnet,
        "densenet169": densenet169,
        "resnet50": resnet50,
        "mobilenet_v2": mobilenet_v2,
        "efficientnet_lite0": efficientnet_lite0,
        "tiny_chexnet": tiny_chexnet,
    }
)


def build(name: str, num_classes: int, input_shape: Sequence[int | None]) -> Any:
    """Build a network of `MODELS` with random weights.

    Args:
        name: A key of `MODELS`.
        num_classes: Findings, each with a logit of its own.
        input_shape: (height, width, channels) of the float32 film; height and width may be None.

    Returns:
        A ``keras.Model`` from (batch, height, width, channels) to float32 logits (batch, num_classes); its last layer
        is a Dense called "logits" without activation.

    Raises:
        CompressionError: No such network, or an argument is out of range.
    """
    if name not in MODELS:
        raise CompressionError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name](num_classes, input_shape)

"""Networks that quantization-aware training takes, small, each with a living signal, and images for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet
from tests import nets, nets_families
from tests.lite import nets as lite_nets

layers = keras.layers


def vector_norm() -> keras.Model:
    """The usual head of transfer learning: stem(8) -> GAP -> BN -> dropout -> hidden(6) -> BN -> relu -> logits(3)."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.GlobalAveragePooling2D()(nets.conv_bn(image, 8, "stem"))
    x = layers.Dropout(0.3)(layers.BatchNormalization(name="vector")(x))
    x = layers.Dense(6, name="hidden")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="hidden_norm")(x))
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="vector_norm"))


def bare_norms() -> keras.Model:
    """Batch norms without gamma, without beta, without both; relu is one layer called four times.

    stem(8) -> no gamma -> relu -> a(6) -> no beta -> relu -> b(6) -> relu -> neither -> relu -> GAP -> logits(3)
    """
    image, relu = keras.Input((8, 8, 3), name="image"), layers.ReLU(name="relu")
    x = layers.Conv2D(8, 3, name="stem")(image)
    x = relu(layers.BatchNormalization(scale=False, name="no_gamma")(x))
    x = layers.Conv2D(6, 3, use_bias=False, name="a")(x)
    x = relu(layers.BatchNormalization(center=False, name="no_beta")(x))
    x = relu(layers.Conv2D(6, 1, name="b")(x))
    x = relu(layers.BatchNormalization(scale=False, center=False, name="neither")(x))
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))
    return nets.enliven(keras.Model(image, x, name="bare_norms"))


def tiny_dense() -> Any:
    """One dense block of two layers and a transition, as in DenseNet, and a mean pool before the second block."""
    return lite_nets.settle(chexnet(2, (32, 32, 3), width=0.25, blocks=(2, 1), name="tiny_dense"))


# Every pattern that is taken: chains, sums, concatenations (of a tensor with itself, too), depthwise and separable
# convolutions, pools, paddings, nested models, norms behind everything.
def augmented() -> keras.Model:
    """Layers that work in training alone, and pixels scaled within the model by channel: flip - scale - stem - ..."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomContrast(0.1)])(image)
    x = layers.Rescaling([0.5, 1.5, 2.0], offset=[0.1, 0.0, -0.2], name="scale")(x)
    x = layers.GlobalAveragePooling2D()(nets.conv_bn(x, 8, "stem"))
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="augmented"))


NETS = {
    build.__name__: build
    for build in (
        *(nets.chain, nets.residual, nets.dense_block, nets.depthwise, nets.knot, nets.nested),
        *(nets_families.resnet_v2, nets_families.inception, nets_families.xception, nets_families.mobilenet),
        *(nets_families.mobilenet_v2, nets_families.nasnet, nets_families.nested_head),
        *(vector_norm, bare_norms, tiny_dense, augmented),
    )
}


def images(model: Any, count: int = 32, seed: int = 1) -> np.ndarray:
    """Images with their own brightness and contrast, float32 (count, h, w, c)."""
    _, height, _, channels = model.input_shape
    return lite_nets.batch(count, height, channels=channels, seed=seed)

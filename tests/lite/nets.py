"""Small networks that give logits, with weights and batch-norm statistics under which the output follows the input."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.keras2 import keras

layers = keras.layers


def batch(count: int, size: int = 16, *, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Images with their own brightness and contrast: float32 (count, size, size, channels)."""
    rng = np.random.default_rng(seed)
    contrast = rng.uniform(0.3, 2.0, (count, 1, 1, channels))
    level = rng.normal(size=(count, 1, 1, channels))
    return (rng.normal(size=(count, size, size, channels)) * contrast + level).astype(np.float32)


def settle(model: Any, *, seed: int = 0) -> Any:
    """Seeded weights, then batch-norm statistics of real activations: untouched ones kill or blow up the signal."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        weights = layer.get_weights()
        if weights and not isinstance(layer, layers.BatchNormalization):
            # He: the variance of a layer's output equals that of its input.
            fan_in = int(np.prod(weights[0].shape[:-1])) if weights[0].ndim > 1 else 1
            scaled = [rng.normal(size=weights[0].shape) * np.sqrt(2.0 / fan_in)]
            layer.set_weights(scaled + [rng.normal(size=w.shape) * 0.1 for w in weights[1:]])
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(batch(32, model.input_shape[1] or 16, channels=model.input_shape[3], seed=seed), training=True)
    return model


def chain(size: int | None = 16) -> Any:
    """image - conv 3x3, 8 - BN - ReLU - conv 3x3 /2, 16 - BN - ReLU - mean - logits (4)"""
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="second")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return settle(keras.Model(image, layers.Dense(4, name="logits")(x), name="chain"))


def dense_block() -> Any:
    """The pattern of DenseNet: a batch norm behind a concatenation, which cannot fold into a convolution.

    image - conv 3x3, 8 -+- BN - ReLU - conv 3x3, 8 -+- concat - BN - ReLU - mean - logits (4)
                         +---------------------------+
    """
    image = keras.Input((16, 16, 3))
    stem = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization()(stem))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="growth")(x)
    x = layers.Concatenate(name="concat")([stem, x])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return settle(keras.Model(image, layers.Dense(4, name="logits")(x), name="dense_block"))


def depthwise() -> Any:
    """image - conv 1x1, 8 - ReLU - depthwise 3x3 - ReLU - conv 1x1, 8 - ReLU - mean - logits (4)"""
    image = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.Conv2D(8, 1, name="expand")(image))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same", name="spatial")(x))
    x = layers.ReLU()(layers.Conv2D(8, 1, name="mix")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return settle(keras.Model(image, layers.Dense(4, name="logits")(x), name="depthwise"))


def linear(size: int = 8) -> Any:
    """image - flatten - logits (4): one product, whose int8 error has a bound that can be written down"""
    image = keras.Input((size, size, 3))
    x = layers.Dense(4, name="logits")(layers.Flatten()(image))
    return settle(keras.Model(image, x, name="linear"))


def ends_in(activation: str) -> Any:
    """image - conv 3x3, 4 - mean - dense (4) - activation: gives probabilities, no logits"""
    image = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    return settle(keras.Model(image, layers.Dense(4, activation=activation)(x), name="probabilities"))


def with_float_op() -> Any:
    """image - conv 3x3, 4 - sin - conv 3x3, 4 - mean - logits (4): TFLite's SIN exists in float32 only"""
    import tensorflow as tf

    image = keras.Input((16, 16, 3))
    x = layers.Lambda(tf.sin, name="sine")(layers.Conv2D(4, 3, name="before")(image))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="after")(x))
    return settle(keras.Model(image, layers.Dense(4, name="logits")(x), name="float_island"))


def pixel_net() -> Any:
    """pixels - / 127.5 - 1 - conv 3x3, 6 - BN - ReLU - pool - mean - logits (2), in whatever precision is set"""
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(6, 3, name="first")(layers.Rescaling(1 / 127.5, offset=-1.0)(image))
    x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return settle(keras.Model(image, layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x))))

"""Networks of many operators, for the checks of what a target can run."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.keras2 import keras
from tests.lite import nets

layers = keras.layers
CHANNELS = 4


def images(count: int = 16) -> np.ndarray:
    """Calibration images of these networks."""
    return nets.batch(count, 16, channels=CHANNELS)


def _finish(image: Any, x: Any, name: str) -> Any:
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return nets.settle(keras.Model(image, layers.Dense(4, name="logits")(x), name=name))


def with_leaky_middle() -> Any:
    """image - conv "before" - LeakyReLU - conv "after" - mean - logits (4)"""
    image = keras.Input((16, 16, CHANNELS))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="before")(image)
    x = layers.LeakyReLU(0.1, name="leak")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="after")(x)
    return _finish(image, x, "leaky")


def shapes_and_pools() -> Any:
    """image - conv - pad, pools, resizing, slices, a transpose, a split, a concatenation with batch norm - logits"""
    image = keras.Input((16, 16, CHANNELS))
    x = layers.ZeroPadding2D(1, name="pad")(layers.Conv2D(8, 3, name="stem")(image))
    x = layers.MaxPooling2D(3, 1, padding="same")(x)
    x = layers.AveragePooling2D(2, 1, padding="same", name="average")(x)
    x = layers.Concatenate()([x, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="up")(x)
    x = layers.UpSampling2D(name="nearest")(x[:, ::4, ::4, :])
    x = tf.nn.depth_to_space(tf.nn.space_to_depth(x[:, 1:13, 1:13, :], 2), 2)
    x = layers.Permute((2, 1, 3))(layers.Reshape((6, 24, 8))(x))
    x = layers.Add()(tf.split(x, 2, axis=3))
    x = layers.LeakyReLU(0.2)(x * tf.reduce_sum(x, [1, 2], keepdims=True))
    x = layers.Multiply()([x, layers.GlobalMaxPooling2D(keepdims=True)(x)])
    return _finish(image, tf.tanh(x), "shapes")


def element_wise() -> Any:
    """image - conv - sums, products, quotients, roots and activations - logits; all of them exist in int8 too"""
    image = keras.Input((16, 16, CHANNELS))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    y = layers.Conv2D(8, 1, name="other")(x)
    x = tf.math.squared_difference(tf.sigmoid(x), tf.sigmoid(y))
    x = layers.Maximum()([x, layers.Minimum()([x, tf.sigmoid(y)])])
    x = tf.sqrt(tf.abs(layers.Subtract()([x, tf.sigmoid(y)])))
    x = layers.PReLU(shared_axes=[1, 2], name="slopes")(x)
    x = layers.Activation("gelu")(x) * tf.nn.relu6(x + 3.0) / (1.0 + tf.abs(x))
    x = tf.nn.l2_normalize(layers.Softmax()(x), -1)
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    x = tf.pad(tf.exp(tf.gather(x, [0, 2, 4, 5], axis=3)), [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0)
    return _finish(image, layers.Reshape((20, 40, 4))(tf.stack([x, x], 2)), "elements")


def float_only() -> Any:
    """image - conv - functions that TensorFlow Lite has in float32 only - logits"""
    image = keras.Input((16, 16, CHANNELS))
    x = layers.ELU()(layers.Conv2D(8, 3, padding="same", name="stem")(image))
    x = tf.sin(tf.round(x * 4.0)) - tf.floor(x) + tf.math.ceil(tf.square(x))
    return _finish(image, -tf.math.log(1.0 + tf.math.rsqrt(1.0 + tf.abs(x))), "floats")


def large_layers() -> Any:
    """image - conv - depthwise - conv - logits, with kernels large enough for "dynamic" to store them in 8 bits"""
    image = keras.Input((16, 16, CHANNELS))
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="stem")(image)
    x = layers.DepthwiseConv2D(5, padding="same", name="depthwise")(x)
    x = layers.Conv2D(32, 3, activation="relu6", name="mix")(x)
    return _finish(image, layers.Conv2DTranspose(32, 3, name="up")(x), "large")

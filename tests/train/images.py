"""Drawn images that a very small network learns in seconds: a bright spot where the label says so."""

from __future__ import annotations

import numpy as np

from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.keras2 import keras

SPEC = PreprocessSpec(32, 32)
FINDINGS = ("left spot", "right spot")


def drawn_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (count, 32, 32), labels float32 (count, 2)): a spot in the left half, one in the right half."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 2)).astype(np.float32)
    images = rng.integers(60, 120, (count, 32, 32)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        for side in np.flatnonzero(label):
            row, column = rng.integers(6, 20), rng.integers(3, 8) + 16 * int(side)
            image[row : row + 6, column : column + 6] += 100
    return images, labels


def small_net(seed: int = 0) -> keras.Model:
    """A small network, the same weights for the same seed; it compiles fast, and the training loop sees no difference.

    image 32x32x3 -> conv 3x3/2 (8) -> BN -> ReLU -> conv 3x3/2 (8) -> ReLU -> mean 2x2 -> flatten -> logits (2)
    """
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Conv2D(8, 3, strides=2, use_bias=False, input_shape=(32, 32, 3), name="conv1"),
            layers.BatchNormalization(momentum=0.9, name="bn1"),
            layers.ReLU(name="relu1"),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="conv2"),
            layers.AveragePooling2D(2, name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(2, name="logits"),
        ],
        name="small_net",
    )

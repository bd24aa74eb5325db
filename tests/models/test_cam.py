"""The class activation map of a Keras model is exact, and heads that have none are refused by what they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.ends import with_cam
from tests.lite import nets

layers = keras.layers


def dropped() -> Any:
    """image - conv 3x3 /2, 8 - ReLU - mean, dimensions kept - dropout - flatten - logits (4)"""
    image = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.Conv2D(8, 3, strides=2)(image))
    x = layers.Flatten()(layers.Dropout(0.5)(layers.GlobalAveragePooling2D(keepdims=True)(x)))
    return nets.settle(keras.Model(image, layers.Dense(4, name="logits")(x), name="dropped"))


def sequential() -> Any:
    return nets.settle(
        keras.Sequential(
            [keras.Input((16, 16, 3)), layers.Conv2D(6, 3), layers.GlobalAveragePooling2D(), layers.Dense(4)]
        )
    )


def headed(*head: Any, size: int = 16) -> Any:
    """image - conv 3x3, 6 - what is given"""
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(6, 3, name="features")(image)
    for layer in head:
        x = layer(x)
    return keras.Model(image, x, name="headed")


@pytest.mark.parametrize("build", [nets.chain, nets.dense_block, dropped, sequential])
def test_with_cam_mean_and_bias_are_the_logit_and_another_class_is_not(build: Callable[[], Any]) -> None:
    model = build()
    images = nets.batch(8, seed=2)
    before, config, weights = model(images, training=False).numpy(), model.get_config(), model.get_weights()
    made = with_cam(model)
    logits, cam = (part.numpy() for part in made(images, training=False))
    bias = model.layers[-1].get_weights()[1]
    assert made.output_names[1:] == ["cam"]
    assert cam.shape == (8, *cam.shape[1:3], 4)
    assert np.array_equal(logits, before)
    # Sums of at most 196 positions x 16 channels, each product rounded at 2^-24 of values of about 10.
    assert np.abs(cam.mean(axis=(1, 2)) + bias - logits).max() < 1e-5
    # The control: the map of the next class misses by as much as the logits differ.
    assert np.abs(np.roll(cam, 1, axis=-1).mean(axis=(1, 2)) + bias - logits).max() > 0.1
    assert cam.std(axis=(1, 2)).min() > 1e-3  # a map, not a constant
    assert model.get_config() == config
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


def test_with_cam_makes_a_plain_model_that_keras_loads(tmp_path: Any) -> None:
    made = with_cam(nets.settle(tiny_chexnet(num_classes=3)))
    made.save(tmp_path / "cam.keras")
    loaded = keras.models.load_model(tmp_path / "cam.keras", compile=False)
    assert loaded.output_names[1:] == ["cam"]
    images = nets.batch(2, 64)
    for ours, theirs in zip(made(images), loaded(images), strict=True):
        assert np.array_equal(ours, theirs)
    assert made.outputs[1].shape == (None, 2, 2, 3)


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda: headed(layers.GlobalMaxPooling2D(name="top"), layers.Dense(4, name="d")), "GlobalMaxPooling2D 'top'"),
        (lambda: headed(layers.Flatten(), layers.Dense(4)), "Conv2D 'features' before 'dense"),
        (
            lambda: headed(layers.GlobalAveragePooling2D(), layers.ReLU(name="cut"), layers.Dense(4)),
            "ReLU 'cut' before 'dense",
        ),
        (
            lambda: headed(layers.GlobalAveragePooling2D(), layers.Dense(4, activation="sigmoid", name="p")),
            "sigmoid in 'p'",
        ),
        (lambda: headed(layers.GlobalAveragePooling2D(name="mean")), "GlobalAveragePooling2D 'mean' at its end"),
        (lambda: headed(layers.GlobalAveragePooling2D(keepdims=True), layers.Dense(4, name="d")), "'d', which gives"),
        (
            lambda: headed(layers.Conv2D(3, 1, name="cam"), layers.GlobalAveragePooling2D(), layers.Dense(4)),
            "a layer that is called 'cam'",
        ),
        (lambda: with_cam(nets.chain()), "Functional 'chain' with 2 outputs"),
    ],
)
def test_with_cam_refuses_another_head_by_what_it_is(build: Callable[[], Any], found: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=f"ends GlobalAveragePooling2D, .*found {re.escape(found)}"):
        with_cam(build())

"""Mean results of convolutions, against running them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.lite.int8.tap_means import Window, convolution_mean, dense_mean, depthwise_mean

# Sums of at most 7 * 7 * 6 products of values around 1, in float64 in another order.
EXACT = 1e-12


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("size", "kernel", "strides", "dilation"),
    [
        ((9, 8), (3, 3), (1, 1), (1, 1)),
        ((9, 8), (3, 3), (2, 2), (1, 1)),
        ((12, 13), (7, 7), (2, 2), (1, 1)),
        ((9, 8), (1, 1), (1, 1), (1, 1)),
        ((9, 8), (1, 1), (2, 3), (1, 1)),
        ((9, 11), (3, 2), (1, 1), (2, 3)),
        ((4, 4), (4, 4), (1, 1), (1, 1)),
    ],
)
def test_convolution_mean_is_that_of_the_convolution(padding: str, size, kernel, strides, dilation) -> None:
    rng = np.random.default_rng(0)
    images, weights = rng.normal(size=(5, *size, 6)) + 1, rng.normal(size=(4, *kernel, 6))
    window = Window(strides, dilation, padding == "SAME")
    hwio = np.moveaxis(weights, 0, -1)
    expected = tf.nn.conv2d(images, hwio, strides, padding, dilations=dilation).numpy().mean(axis=(0, 1, 2))
    assert np.abs(convolution_mean(images.mean(axis=0), weights, window) - expected).max() < EXACT
    if kernel not in ((1, 1), size):
        # Control: the other padding has another mean; one that forgot the border would not notice.
        other = Window(strides, dilation, padding != "SAME")
        assert np.abs(convolution_mean(images.mean(axis=0), weights, other) - expected).max() > 1e-3


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_mean_is_that_of_the_convolution(padding: str, multiplier: int) -> None:
    rng = np.random.default_rng(1)
    images, weights = rng.normal(size=(5, 9, 8, 3)) + 1, rng.normal(size=(3, 3, 3, multiplier))
    found = depthwise_mean(
        images.mean(axis=0), weights.reshape(1, 3, 3, 3 * multiplier), Window((2, 2), (1, 1), padding == "SAME")
    )
    expected = tf.nn.depthwise_conv2d(images, weights, (1, 2, 2, 1), padding).numpy().mean(axis=(0, 1, 2))
    assert np.abs(found - expected).max() < EXACT


def test_convolution_mean_of_groups_is_that_of_each_group() -> None:
    rng = np.random.default_rng(2)
    images, weights = rng.normal(size=(5, 6, 6, 4)) + 1, rng.normal(size=(6, 3, 3, 2))
    window = Window((1, 1), (1, 1), True)
    halves = [
        convolution_mean(images[..., 2 * g : 2 * g + 2].mean(axis=0), weights[3 * g : 3 * g + 3], window)
        for g in (0, 1)
    ]
    found = convolution_mean(images.mean(axis=0), weights, window)
    assert np.abs(found - np.concatenate(halves)).max() < EXACT


def test_dense_mean_is_that_of_the_product() -> None:
    rng = np.random.default_rng(3)
    maps, weights = rng.normal(size=(5, 2, 2, 3)), rng.normal(size=(4, 12))
    flat = maps.reshape(5, 12)
    assert np.abs(dense_mean(maps.mean(axis=0), weights) - (flat @ weights.T).mean(axis=0)).max() < EXACT
    per_position = rng.normal(size=(4, 3))
    expected = (maps @ per_position.T).mean(axis=(0, 1, 2))
    assert np.abs(dense_mean(maps.mean(axis=0), per_position) - expected).max() < EXACT

"""Rounding as TFLite stores it, and gradients that pass straight through."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.keras2 import keras
from cxr_compress.lite.qat.quantizers import ActivationQuantizer, SharedRange, export, fake_quant, quantize_kernel

layers = keras.layers


def kernel(*shape, seed=0):
    """Normal values, the last-but-one axis (the channels of a depthwise kernel) from 0.05 to 10 in size."""
    values = np.random.default_rng(seed).normal(size=shape)
    return (values * np.geomspace(0.05, 10.0, shape[-2])[:, np.newaxis]).astype(np.float32)


def codes(rounded, largest):
    return rounded / (largest / 127)


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (layers.Conv2D, (3, 3, 4, 6), (0, 1, 2)),
        (layers.DepthwiseConv2D, (3, 3, 4, 2), (0, 1)),
        (layers.DepthwiseConv2D, (1, 1, 5, 1), (0, 1)),
        (layers.Dense, (7, 4), (0, 1)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_quantize_kernel_gives_127_codes_a_side_per_channel(layer, shape, axes, training):
    values = kernel(*shape)
    rounded = quantize_kernel(tf.constant(values), layer, training=training).numpy()

    largest = np.abs(values).max(axis=axes, keepdims=True)
    # Half a code, and the float32 rounding of what is near a half.
    assert np.all(np.abs(rounded - values) <= largest / 127 * (0.5 + 1e-4))
    assert np.allclose(codes(rounded, largest), np.round(codes(rounded, largest)), atol=1e-3)


def test_quantize_kernel_depthwise_one_scale_for_all_would_lose_the_small_channels():
    values = kernel(1, 1, 5, 1)  # 0.05 to 10: the smallest may well be below half a code of the largest
    own = quantize_kernel(tf.constant(values), layers.DepthwiseConv2D, training=False).numpy()
    one = quantize_kernel(tf.constant(values[0, 0]), layers.Dense, training=False).numpy()

    assert np.allclose(own, values, rtol=1e-5)
    assert one[0, 0] == 0.0


def test_quantize_kernel_zeros_and_dead_channels_stay_zero():
    values = kernel(3, 3, 4, 6)
    values[0] = 0.0
    values[..., 2] = 0.0
    rounded = quantize_kernel(tf.constant(values), layers.Conv2D, training=False).numpy()

    assert np.array_equal(rounded[values == 0], values[values == 0])
    assert np.isfinite(rounded).all()


def test_quantize_kernel_next_to_dead_channel_gets_a_scale_whose_bias_fits_int32():
    values = np.array([1.0, 1e-30], np.float32).reshape(1, 1, 1, 2)
    rounded = quantize_kernel(tf.constant(values), layers.Conv2D, training=False).numpy()

    # Its own scale would be 1e-30 / 127; with 1 / 1024 of the largest it rounds to nothing, which it is.
    assert rounded.ravel().tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("per_channel", [False, True])
def test_fake_quant_gradient_is_that_of_tensorflow(per_channel):
    values = tf.constant(np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    low, high = (
        (tf.constant([-0.5, -1.0, -2.0]), tf.constant([1.0, 0.5, 2.0]))
        if per_channel
        else (
            tf.constant(-1.0),
            tf.constant(0.7),
        )
    )
    gradients = []
    for training in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = tf.reduce_sum(fake_quant(values, low, high, training=training) ** 2)
        gradients.append(tape.gradient(total, values).numpy())

    # TensorFlow moves the ends by up to half a code before it compares: only what lies there may differ.
    differing = gradients[0] != gradients[1]
    assert differing.mean() < 0.02
    assert 0.1 < (gradients[0] == 0).mean() < 0.9  # some were outside, some inside


def test_shared_range_holds_all_members_and_zero():
    shared = built(2)
    shared.assign([(0.5, 2.0), (1.0, 3.0)])
    assert [float(end) for end in shared.ends()] == [0.0, 3.0]


def test_shared_range_follows_the_member_that_is_seen_and_no_other():
    shared = built(2)
    shared.assign([(-1.0, 1.0), (-2.0, 0.5)])
    for _ in range(500):
        shared.follow(0, tf.constant([-4.0, 8.0]))

    # 0.99 ** 500 = 0.7 % of the start is left.
    assert [float(end) for end in shared.ends()] == pytest.approx([-4.0, 8.0], rel=0.01)
    for _ in range(500):
        shared.follow(0, tf.constant([0.0, 0.1]))
    assert [float(end) for end in shared.ends()] == pytest.approx([-2.0, 0.5], abs=0.1)


def test_shared_range_of_a_dead_activation_still_has_a_step():
    shared = built(1)
    shared.assign([(0.0, 0.0)])
    low, high = (float(end) for end in shared.ends())
    assert high > low


def test_activation_quantizer_of_means_rounds_halves_away_from_code_zero_as_the_kernel_does():
    shared = built(1)
    shared.assign([(-1.28, 1.27)])  # step 0.01, code 0 is 0.0
    halves = tf.constant([-0.015, -0.005, 0.005, 0.015])
    means, plain = (ActivationQuantizer(shared, 0, means=flag) for flag in (True, False))

    assert means(halves, False, {}).numpy() == pytest.approx([-0.02, -0.01, 0.01, 0.02], abs=1e-6)
    with export():  # the converter's kernels do it by themselves
        assert np.array_equal(means(halves, False, {}), plain(halves, False, {}))


def built(members):
    shared = SharedRange(members)
    shared.build(layers.Layer())
    return shared

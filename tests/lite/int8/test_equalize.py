"""Equalized networks compute the same bits, and int8 makes less noise of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert, equalize
from cxr_compress.lite.int8.equalize import channel_factors
from cxr_compress.lite.int8.equalize_pairs import find_pairs
from cxr_compress.lite.int8.equalize_weights import divide_outputs, input_shares, multiply_inputs, output_reach
from tests.lite import nets
from tests.lite.conftest import run

layers = keras.layers


def unbalance(model: Any, seed: int = 0) -> Any:
    """The same network with channels up to 30 times louder than others, undone by whoever reads them."""
    rng = np.random.default_rng(seed)
    for pair in find_pairs(model)[0]:
        factors = np.exp2(rng.integers(-5, 6, len(output_reach(pair.source)))).astype(np.float64)
        divide_outputs(pair.source, factors)
        multiply_inputs(pair.consumer, factors)
    return model


def zoo() -> Any:
    """Every layer that can be in a pair, and what may lie between.

    conv a - BN - LeakyReLU - depthwise b (x2) - PReLU - max - separable c - ReLU - up, pad, crop - transpose d - ReLU -
    average - conv e (relu) - dropout - flatten - dense f (relu) - logits
    """
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(image)
    x = layers.LeakyReLU(0.2)(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="b")(x)
    x = layers.MaxPooling2D()(layers.PReLU(shared_axes=[1, 2])(x))
    x = layers.ReLU()(layers.SeparableConv2D(8, 3, padding="same", name="c")(x))
    x = layers.Cropping2D(1)(layers.ZeroPadding2D(1)(layers.UpSampling2D()(x)))
    x = layers.ReLU()(layers.Conv2DTranspose(5, 3, strides=2, padding="same", name="d")(x))
    x = layers.Conv2D(7, 3, strides=2, activation="relu", name="e")(layers.AveragePooling2D(4)(x))
    x = layers.Dense(9, activation="relu", name="f")(layers.Flatten()(layers.Dropout(0.3)(x)))
    return nets.settle(keras.Model(image, layers.Dense(4, name="logits")(x), name="zoo"))


def bottlenecks() -> Any:
    """DenseNet's own pattern: (concat - BN - ReLU - conv 1x1 - BN - ReLU - conv 3x3) twice."""
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    for number in (1, 2):
        y = layers.ReLU()(layers.BatchNormalization(name=f"{number}_0_bn")(x))
        y = layers.Conv2D(12, 1, use_bias=False, name=f"{number}_1_conv")(y)
        y = layers.ReLU()(layers.BatchNormalization(name=f"{number}_1_bn")(y))
        y = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"{number}_2_conv")(y)
        x = layers.Concatenate(name=f"{number}_concat")([x, y])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization(name="last_bn")(x)))
    return nets.settle(keras.Model(image, layers.Dense(4, name="logits")(x), name="bottlenecks"))


NETS = (nets.chain, nets.dense_block, nets.depthwise, zoo, bottlenecks)
ZOO_PAIRS = [("norm", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "f"), ("f", "logits")]


@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("measured", [False, True])
def test_equalize_gives_the_same_bits_and_evener_channels(build: Callable[[], Any], measured: bool) -> None:
    model = unbalance(build())
    images = nets.batch(16, seed=2)
    before, weights = model(images, training=False).numpy(), model.get_weights()
    result, report = equalize(model, [images[:8], images[8:]] if measured else None)
    after = result(images, training=False).numpy()
    # Powers of two: every product and sum is the same number but for its exponent, so there is no tolerance.
    assert np.array_equal(before, after)
    assert before.std(axis=0).min() > 0
    assert report.measured is measured
    assert report.pairs
    spreads = np.array([[pair.spread_before, pair.spread_after] for pair in report.pairs])
    assert (spreads[:, 1] <= spreads[:, 0] * 1.001).all() or spreads[:, 1].max() < spreads[:, 0].max()
    assert spreads[:, 1].mean() < 0.7 * spreads[:, 0].mean()
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))  # left untouched
    changed = [not np.array_equal(a, b) for a, b in zip(weights, result.get_weights(), strict=True)]
    assert sum(changed) >= 2 * len(report.pairs) - 1


@pytest.mark.parametrize("build", NETS)
def test_scaling_one_side_of_a_pair_only_does_change_the_outputs(build: Callable[[], Any]) -> None:
    """The control of the bit-equality: each half alone is seen in the output."""
    images = nets.batch(4, seed=2)
    for number in range(len(find_pairs(build())[0])):
        for scale in (divide_outputs, multiply_inputs):
            model = build()
            before = model(images, training=False).numpy()
            pair = find_pairs(model)[0][number]
            factors = np.exp2(np.arange(len(output_reach(pair.source))) % 3)
            scale(pair.source if scale is divide_outputs else pair.consumer, factors)
            assert np.abs(model(images, training=False).numpy() - before).max() > 1e-3 * np.ptp(before)


def test_equalize_finds_the_pairs_of_every_kind_of_layer() -> None:
    pairs, left = find_pairs(zoo())
    assert [(pair.source.name, pair.consumer.name) for pair in pairs] == ZOO_PAIRS
    assert [pair.flattened for pair in pairs] == [False, False, False, False, True, False]
    assert left == {"a": "reads the model's input"}


def test_equalize_finds_both_pairs_of_a_densenet_bottleneck() -> None:
    pairs, left = find_pairs(bottlenecks())
    named = [(pair.source.name, pair.consumer.name) for pair in pairs]
    assert named == [
        ("1_0_bn", "1_1_conv"),
        ("1_1_bn", "1_2_conv"),
        ("2_0_bn", "2_1_conv"),
        ("2_1_bn", "2_2_conv"),
        ("last_bn", "logits"),
    ]
    assert left == {"stem": "reads the model's input"}


def between(*made: Any, first: Any = None, last: Any = None) -> Any:
    """image - conv `first` - what is given - conv `last` - mean - logits"""
    image = keras.Input((8, 8, 3))
    x = (first or layers.Conv2D(4, 3, name="first"))(image)
    for layer in made:
        x = layer(x)
    x = (last or layers.Conv2D(4, 3, name="last"))(x)
    return keras.Model(image, layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x)))


def branching() -> Any:
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(image)
    y = layers.Conv2D(4, 3, padding="same", name="last")(x)
    x = layers.Add(name="sum")([x, y])
    return keras.Model(image, layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x)))


def twice() -> Any:
    image = keras.Input((8, 8, 4))
    same = layers.Conv2D(4, 3, padding="same", name="last")
    x = layers.GlobalAveragePooling2D()(same(same(layers.Conv2D(4, 3, name="first")(image))))
    return keras.Model(image, layers.Dense(2, name="logits")(x))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: between(layers.ReLU(6.0, name="six")), "six cuts at 6 and is not positively homogeneous"),
        (lambda: between(layers.ReLU(threshold=1.0, name="late")), "late has a threshold and is not positively"),
        (lambda: between(layers.Activation("relu6", name="six")), "six has activation relu6, which is not positively"),
        (lambda: between(layers.ELU(name="elu")), r"elu \(ELU\) does not work on each channel by itself"),
        (lambda: between(layers.BatchNormalization(scale=False, name="bn")), "bn has no gamma to scale"),
        (lambda: between(first=layers.Conv2D(4, 3, activation="tanh", name="t")), "t has activation tanh"),
        (lambda: between(last=layers.Conv2D(4, 3, groups=2, name="last")), "last is a grouped convolution"),
        (branching, "the output of first also goes to sum"),
        (twice, "last is called 2 times: each call would need its own scale"),
    ],
)
def test_equalize_leaves_what_is_not_exact_with_a_reason(build: Callable[[], Any], reason: str) -> None:
    model = build()
    _, left = find_pairs(model)
    assert "last" in left
    assert "last" not in find_pairs(between(layers.ReLU()))[1]  # control: a plain ReLU in the same place
    assert re.search(reason, left["last"]), left["last"]
    images = nets.batch(4, 8, channels=model.input_shape[3])
    result, report = equalize(model)
    assert report.left["last"] == left["last"]
    assert np.array_equal(result(images, training=False).numpy(), model(images, training=False).numpy())


def test_equalize_follows_nested_models_and_keeps_what_they_compute() -> None:
    inner = unbalance(bottlenecks())
    backbone = keras.Model(inner.input, inner.layers[-2].output, name="backbone")
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layers.Dense(4, name="logits")(backbone(image)))
    images = nets.batch(8, seed=2)
    result, report = equalize(model, [images])
    assert [pair.consumer for pair in report.pairs] == ["1_1_conv", "1_2_conv", "2_1_conv", "2_2_conv"]
    assert report.left == {
        "logits": "backbone (Functional) does not work on each channel by itself, or is not positively homogeneous",
        "backbone/stem": "reads the model's input",
    }
    assert np.array_equal(result(images, training=False).numpy(), model(images, training=False).numpy())


def test_equalize_makes_int8_err_less_where_channels_are_uneven() -> None:
    model = unbalance(nets.depthwise())
    images = nets.batch(64, seed=3)
    exact = model(images, training=False).numpy()
    errors = []
    for one in (model, equalize(model)[0]):
        made = convert(one, "int8", calibration=[nets.batch(32, seed=1)])
        errors.append(np.square(run(made.content, images) - exact).mean())
    assert errors[1] < 0.25 * errors[0]


def test_equalize_gives_a_plain_model_that_keras_loads(tmp_path: Path) -> None:
    result, _ = equalize(zoo())
    result.save(tmp_path / "equal.keras")
    loaded = keras.models.load_model(tmp_path / "equal.keras", compile=False)
    images = nets.batch(2)
    assert np.array_equal(loaded(images, training=False).numpy(), result(images, training=False).numpy())
    assert loaded.get_config() == result.get_config()


def test_equalize_keeps_zero_weights_zero_and_dead_channels_as_they_are() -> None:
    model = unbalance(nets.chain())
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    gamma, beta, mean, variance = norm.get_weights()
    gamma[0], beta[0] = 0, -1  # dead behind its ReLU
    norm.set_weights([gamma, beta, mean, variance])
    kernel = model.get_layer("second").get_weights()[0]
    kernel[:, :, 1] = 0  # read by nobody
    kernel[0, 0, 2:4] = 0
    model.get_layer("second").set_weights([kernel])
    result, _ = equalize(model)
    got = result.get_layer("second").get_weights()[0]
    assert np.array_equal(got == 0, kernel == 0)
    assert np.array_equal(got[:, :, :2], kernel[:, :, :2])
    assert not np.array_equal(got, kernel)


@given(
    arrays(np.float64, 12, elements=st.floats(0, 1e6)),
    arrays(np.float64, 12, elements=st.floats(0, 1)),
    st.booleans(),
)
def test_channel_factors_are_powers_of_two_within_bounds(reach: np.ndarray, shares: np.ndarray, level: bool) -> None:
    factors = channel_factors(reach, shares, level=level)
    exponents = np.log2(factors)
    assert np.array_equal(exponents, np.rint(exponents))
    assert np.abs(exponents).max() <= 6
    assert (factors[(reach == 0) | (shares == 0)] == 1).all()


def test_channel_factors_balance_reach_against_weights() -> None:
    ones = np.ones(3)
    assert channel_factors(np.array([1.0, 4.0, 16.0]), ones).tolist() == [0.5, 1, 2]  # half of it in logarithms
    assert channel_factors(np.array([1.0, 4.0, 16.0]), ones, level=True).tolist() == [0.25, 1, 4]
    assert channel_factors(ones, np.array([1.0, 0.25, 1 / 16])).tolist() == [0.5, 1, 2]


def test_input_shares_are_relative_to_the_range_of_each_filter() -> None:
    dense = layers.Dense(2)
    dense.build((None, 3))
    dense.set_weights([np.array([[4.0, 1.0], [2.0, 1.0], [1.0, 0.1]]), np.zeros(2)])
    assert input_shares(dense, 3).tolist() == [1.0, 1.0, 0.25]


def test_equalize_of_a_subclassed_model_fails() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(UnsupportedLayerError, match="expected a functional or built Sequential Keras model, got Own"):
        equalize(Own())


@pytest.mark.densenet
def test_equalize_finds_all_of_densenet121_but_its_stem(densenet121: Any) -> None:
    pairs, left = find_pairs(densenet121)
    named = {(pair.source.name, pair.consumer.name) for pair in pairs}
    blocks = [
        f"conv{stage}_block{n}" for stage, size in ((2, 6), (3, 12), (4, 24), (5, 16)) for n in range(1, size + 1)
    ]
    assert {(f"{block}_1_bn", f"{block}_2_conv") for block in blocks} <= named  # inside the bottlenecks
    assert {(f"{block}_0_bn", f"{block}_1_conv") for block in blocks} <= named  # behind the concatenations
    # 58 blocks twice, three transitions, the head.
    assert len(pairs) == 2 * 58 + 3 + 1
    assert left == {"conv1/conv": "reads the model's input"}

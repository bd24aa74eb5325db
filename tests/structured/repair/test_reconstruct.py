"""Least squares on consumers: exact where theory says so, with the control that must fail."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.keras_graph import unroll
from cxr_compress.structured import (
    Budget,
    analyze_channels,
    reconstruct_consumers,
    remove_channels,
    score_channels,
    select_channels,
)
from cxr_compress.structured.repair.consumers import PatchReader, beside
from cxr_compress.structured.select import ChannelPlan
from tests import nets

layers = keras.layers


def plan_without(model, gone: dict[str, list[int]]) -> ChannelPlan:
    """The plan that removes exactly these channels."""
    analysis = analyze_channels(model)
    channels = {name: analysis.groups[name].channels for name in gone}
    kept = {name: tuple(sorted(set(range(channels[name])) - set(lost))) for name, lost in gone.items()}
    keep = analysis.keep_vector(kept)
    return ChannelPlan(kept, channels, (), {}, analysis.baseline, analysis.cost_model.cost(keep))


def difference(pruned, model, images) -> float:
    """Largest difference of the outputs over the original model's spread."""
    full = model.predict(images, verbose=0)
    return float(np.abs(pruned.predict(images, verbose=0) - full).max() / full.std())


def linear_net(**conv):
    """image -> a(6), linear -> b(5, conv as given) -> relu -> GAP -> logits(3); nothing between a and b."""
    image = keras.Input((9, 9, 3), name="image")
    x = layers.Conv2D(6, 3, name="a")(image)
    x = layers.ReLU()(layers.Conv2D(5, name="b", **conv)(x))
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))))


def combine(model, channel: int, weights: dict[int, float]) -> None:
    """Make a filter of layer a a linear combination of others."""
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., channel] = sum(weight * kernel[..., other] for other, weight in weights.items())
    bias[channel] = sum(weight * bias[other] for other, weight in weights.items())
    model.get_layer("a").set_weights([kernel, bias])


CONVS = {
    "1x1": {"kernel_size": 1},
    "3x3_same": {"kernel_size": 3, "padding": "same"},
    "3x3_stride": {"kernel_size": 3, "strides": 2, "padding": "same"},
    "dilated": {"kernel_size": (3, 2), "dilation_rate": 2},
    "no_bias": {"kernel_size": 3, "use_bias": False},
}


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_reconstruct_a_channel_that_others_combine_to_is_exact_and_without_it_is_not(conv):
    model = linear_net(**conv)
    combine(model, 2, {0: 0.7, 4: -1.1, 5: 0.4})
    plan = plan_without(model, {"a": [2]})
    images = nets.batch(model, images=32)
    pruned = remove_channels(model, plan)
    before = difference(pruned, model, images)
    report = reconstruct_consumers(pruned, model, plan, [images], ridge=1e-9, positions=49)
    held_out = nets.batch(model, images=16, seed=9)
    # The ridge leaves 1e-9 of the weakest direction, float32 weights 1e-7 of every product.
    assert difference(pruned, model, held_out) < 1e-4
    assert before > 100 * 1e-4
    assert before > 100 * difference(pruned, model, held_out)
    assert list(report.errors) == ["b"]
    assert report.errors["b"][1] < 1e-8 < report.errors["b"][0]


def test_reconstruct_dense_behind_flatten_is_exact():
    image = keras.Input((5, 5, 3), name="image")
    x = layers.Flatten()(layers.Conv2D(6, 3, name="a")(image))
    model = nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x)))
    combine(model, 1, {0: 0.5, 3: 2.0})
    plan = plan_without(model, {"a": [1]})
    pruned = remove_channels(model, plan)
    held_out = nets.batch(model, images=8, seed=9)
    before = difference(pruned, model, held_out)
    reconstruct_consumers(pruned, model, plan, [nets.batch(model, images=200)], ridge=1e-9)
    assert difference(pruned, model, held_out) < 1e-4 < before / 100


@pytest.mark.parametrize(
    "build", [nets.dense_block, nets.nested, nets.residual, lambda: nets.enliven(tiny_chexnet(3, (32, 32, 3)))]
)
@pytest.mark.parametrize("criterion", ["l1", "random", "lasso"])
def test_reconstruct_lowers_the_error_on_held_out_images(build, criterion):
    model = build()
    analysis = analyze_channels(model)
    images = nets.batch(model, images=64)
    scores = score_channels(model, analysis, criterion=criterion, batches=[images])
    plan = select_channels(analysis, scores, Budget(macs=0.6), scope="local", round_to=1)
    pruned, repaired = remove_channels(model, plan), remove_channels(model, plan)
    report = reconstruct_consumers(repaired, model, plan, [images])
    held_out = nets.batch(model, images=32, seed=9)
    full = model.predict(held_out, verbose=0)
    error = [float(np.mean((net.predict(held_out, verbose=0) - full) ** 2)) for net in (pruned, repaired)]
    assert error[1] < 0.7 * error[0]
    assert not report.left
    assert report.images == 64
    assert all(after <= before * 1.001 for before, after in report.errors.values())


def test_reconstruct_leaves_the_original_model_alone_and_repeats():
    model = nets.dense_block()
    before = [weight.copy() for weight in model.get_weights()]
    plan = plan_without(model, {"stem": [0, 3], "g1": [1]})
    images = nets.batch(model, images=12)
    first, second = remove_channels(model, plan), remove_channels(model, plan)
    for pruned in (first, second):
        reconstruct_consumers(pruned, model, plan, [images[:5], images[5:]], positions=8)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


def test_reconstruct_lists_what_it_leaves():
    model = nets.depthwise()
    plan = plan_without(model, {"p": [0, 1], "stem": [2]})
    report = reconstruct_consumers(remove_channels(model, plan), model, plan, [nets.batch(model, images=8)])
    assert report.left == {"sep": "is a SeparableConv2D, not a Conv2D, DepthwiseConv2D or Dense"}
    assert "p" in report.errors
    shared = nets.shared_layer()
    plan = plan_without(shared, {next(iter(analyze_channels(shared).groups)): [0]})
    report = reconstruct_consumers(remove_channels(shared, plan), shared, plan, [nets.batch(shared, images=8)])
    assert report.left["both"] == "is called 2 times"


def test_reconstruct_uses_no_more_images_than_memory_holds():
    model = nets.dense_block()
    plan = plan_without(model, {"stem": [0]})
    pruned = remove_channels(model, plan)
    one = plan.before.peak_activation_bytes + plan.after.peak_activation_bytes
    report = reconstruct_consumers(pruned, model, plan, [nets.batch(model, images=9)], memory_bytes=5 * one)
    assert report.images == 5


def test_reconstruct_errors_are_one_line():
    model = nets.dense_block()
    plan, other = plan_without(model, {"stem": [0]}), plan_without(model, {"stem": [0, 1]})
    pruned = remove_channels(model, plan)
    with pytest.raises(DataError, match="reconstruction needs images: pass batches=images; got none"):
        reconstruct_consumers(pruned, model, plan, [])
    with pytest.raises(CompressionError, match="g1: the pruned model was not made from this plan"):
        reconstruct_consumers(pruned, model, other, [nets.batch(model)])
    with pytest.raises(CompressionError, match="the layers differ"):
        reconstruct_consumers(nets.chain(), model, plan, [nets.batch(model)])


def test_reconstruct_with_nothing_removed_changes_nothing():
    model = nets.dense_block()
    plan = plan_without(model, {"stem": []})
    pruned = remove_channels(model, plan)
    assert reconstruct_consumers(pruned, model, plan, []).errors == {}
    assert all(np.array_equal(a, b) for a, b in zip(pruned.get_weights(), model.get_weights(), strict=True))


def test_beside_leaves_a_place_for_each_layer_that_is_gone():
    """x(linear) -> a -> b -> a again against the same without b: the second call of `a` stays the second."""
    image = keras.Input((4,), name="image")
    again, between = layers.Dense(4, name="a"), layers.Dense(4, name="b")
    whole = unroll(keras.Model(image, again(between(again(image)))))
    less = unroll(keras.Model(image, again(again(image))))
    abreast = beside(less, whole)
    assert [step.path for step in abreast.calls] == ["a", "b", "a"]
    assert [step.makes for step in abreast.calls] == [less.calls[0].makes, (), less.calls[1].makes]
    with pytest.raises(CompressionError, match="the layers differ"):
        beside(whole, less)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, (2, 3)])
@pytest.mark.parametrize("kernel", [1, 3, (2, 5), 4])
def test_patch_rows_times_kernel_equal_the_layer(padding, strides, kernel):
    layer = layers.Conv2D(4, kernel, strides=strides, padding=padding, use_bias=False)
    images = np.random.default_rng(0).normal(size=(3, 9, 11, 2)).astype("f4")
    expected = np.asarray(layer(images)).reshape(3, -1, 4)
    reader = PatchReader(layer, (9, 11, 2))
    places = reader.draw(3, 7, np.random.default_rng(1))
    rows = reader.rows(images, places)
    found = rows @ layer.get_weights()[0].reshape(-1, 4)
    assert rows.shape == (3 * min(7, expected.shape[1]), reader.columns)
    np.testing.assert_allclose(found, expected[places.image, places.position], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("strides", [1, 2])
def test_rows_of_a_depthwise_layer_times_its_kernels_equal_the_layer(multiplier, strides):
    layer = layers.DepthwiseConv2D(3, strides=strides, padding="same", depth_multiplier=multiplier, use_bias=False)
    images = np.random.default_rng(0).normal(size=(3, 9, 11, 4)).astype("f4")
    expected = np.asarray(layer(images)).reshape(3, -1, 4 * multiplier)
    reader = PatchReader(layer, (9, 11, 4))
    places = reader.draw(3, 7, np.random.default_rng(1))
    patches = reader.rows(images, places).reshape(-1, 9, 4)
    kernel = layer.get_weights()[0].reshape(9, 4, multiplier)
    products = np.einsum("ntc,tcm->ncm", patches, kernel).reshape(-1, 4 * multiplier)
    np.testing.assert_allclose(products, expected[places.image, places.position], rtol=1e-4, atol=1e-5)


def depthwise_net(**depthwise):
    """image -> a(8) -> b(6) -> depthwise -> c(5) -> GAP -> logits(3), ReLUs between."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.ReLU()(layers.Conv2D(8, 3, name="a")(image))
    x = layers.ReLU()(layers.Conv2D(6, 3, name="b")(x))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, name="depthwise", **depthwise)(x))
    x = layers.ReLU()(layers.Conv2D(5, 1, name="c")(x))
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))))


@pytest.mark.parametrize("depthwise", [{}, {"depth_multiplier": 2}, {"use_bias": False}, {"strides": 2}])
def test_a_depthwise_layer_behind_a_refit_one_is_refitted_channel_by_channel(depthwise):
    model = depthwise_net(**depthwise)
    plan = plan_without(model, {"a": [1, 2, 5], "b": [0, 3]})
    pruned = remove_channels(model, plan)
    kernel = pruned.get_layer("depthwise").get_weights()[0]
    images = nets.batch(model, images=64)
    report = reconstruct_consumers(pruned, model, plan, [images], ridge=1e-6)
    before, after = report.errors["depthwise"]
    assert after < 0.99 * before
    assert not np.allclose(pruned.get_layer("depthwise").get_weights()[0], kernel, atol=1e-3)
    assert not report.left
    # Control: where nothing in front has changed, the weights are the best there are and stay.
    plan = plan_without(model, {"c": [0]})
    untouched = remove_channels(model, plan)
    reconstruct_consumers(untouched, model, plan, [images])
    theirs = model.get_layer("depthwise").get_weights()[0]
    # float32 activations against float64 sums: 1e-6 of a weight; the change above is a thousand times that.
    np.testing.assert_allclose(untouched.get_layer("depthwise").get_weights()[0], theirs, atol=1e-5)


def test_the_pull_is_chosen_by_what_holds_on_other_images():
    model = nets.enliven(tiny_chexnet(3, (32, 32, 3)))
    plan = select_channels(
        analyze_channels(model),
        score_channels(model, analyze_channels(model), criterion="l1"),
        Budget(macs=0.4),
        scope="local",
        round_to=1,
    )
    held_out = nets.batch(model, images=64, seed=9)
    full = model.predict(held_out, verbose=0)

    def error(images: int, ridge: float | None) -> float:
        pruned = remove_channels(model, plan)
        reconstruct_consumers(pruned, model, plan, [nets.batch(model, images=images)], positions=8, ridge=ridge)
        return float(np.mean((pruned.predict(held_out, verbose=0) - full) ** 2))

    # A pull too weak loses where images are few, one too strong where they are many; what is chosen does neither.
    assert error(6, None) < 0.5 * error(6, 1e-7)
    assert error(64, None) < 0.9 * error(64, 100.0)


def test_one_image_is_refitted_without_a_held_out_part():
    model = nets.dense_block()
    plan = plan_without(model, {"stem": [0, 3]})
    pruned = remove_channels(model, plan)
    report = reconstruct_consumers(pruned, model, plan, [nets.batch(model, images=1)])
    assert report.images == 1
    assert np.isfinite(pruned.predict(nets.batch(model), verbose=0)).all()

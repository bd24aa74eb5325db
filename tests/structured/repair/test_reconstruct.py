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
from cxr_compress.structured.repair.reconstruct import NormalEquations
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
    assert report.left == {"sep": "is a SeparableConv2D, not a Conv2D or Dense"}
    assert list(report.errors) == ["p"]
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


def test_normal_equations_in_pieces_equal_least_squares_at_once():
    rng = np.random.default_rng(0)
    rows, targets = rng.normal(size=(80, 6)) + 1.0, rng.normal(size=(80, 2))
    equations = NormalEquations(6, 2, constant=True)
    for part in np.array_split(np.arange(80), 7):
        equations.add(rows[part], targets[part])
    weights, constant = equations.solve(np.zeros((6, 2)), 1e-12)
    augmented = np.column_stack([rows, np.ones(80)])
    expected, residue, _, _ = np.linalg.lstsq(augmented, targets, rcond=None)
    np.testing.assert_allclose(np.vstack([weights, constant]), expected, atol=1e-8)
    spread = np.sum((targets - targets.mean(axis=0)) ** 2)
    assert equations.error(weights, constant) == pytest.approx(residue.sum() / spread, rel=1e-8)


def test_normal_equations_keep_the_start_where_the_data_say_nothing():
    equations = NormalEquations(3, 1, constant=False)
    rows = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 1.0, 0.0]
    equations.add(rows, rows @ [[2.0], [3.0], [0.0]])
    weights, _ = equations.solve(np.array([[0.0], [0.0], [7.0]]), 1e-9)
    np.testing.assert_allclose(weights, [[2.0], [3.0], [7.0]], atol=1e-6)

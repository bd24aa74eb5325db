"""Each criterion against a hand-made case or a brute-force count, and its errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.structured import analyze_channels, score_channels
from cxr_compress.structured.criteria.base import CRITERIA, Member, register_criterion
from cxr_compress.structured.criteria.images import contribution_products, elimination_order
from tests import nets

layers = keras.layers
WEIGHTS_ONLY = ("l1", "l2", "geometric_median", "random")


def scored(model, criterion, **options):
    return score_channels(model, analyze_channels(model), criterion=criterion, **options)


def squared_error(labels, outputs):
    return (labels - outputs) ** 2


def labeled(model, images=6):
    x = nets.batch(model, images=images)
    y = np.random.default_rng(7).normal(size=(images, 3)).astype(np.float32)
    return x, y


@pytest.mark.parametrize("build", nets.SMALL_NETS.values(), ids=nets.SMALL_NETS)
@pytest.mark.parametrize("criterion", WEIGHTS_ONLY)
def test_score_weight_criteria_on_every_net_are_finite_and_leave_the_model_alone(build, criterion):
    model = build()
    before = [weight.copy() for weight in model.get_weights()]
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion=criterion)
    assert {name: values.shape for name, values in scores.items()} == {
        name: (group.channels,) for name, group in analysis.groups.items()
    }
    assert all(np.isfinite(values).all() and np.ptp(values) > 0 for values in scores.values())
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("build", [nets.dense_block, nets.nested, nets.residual, nets.shared_layer, nets.knot])
@pytest.mark.parametrize("criterion", ["taylor", "lasso"])
def test_score_data_criteria_leave_the_model_alone_and_repeat(build, criterion):
    model = build()
    before = [weight.copy() for weight in model.get_weights()]
    data = [labeled(model)]
    first = scored(model, criterion, batches=data, loss=squared_error)
    again = scored(model, criterion, batches=data, loss=squared_error)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.isfinite(values).all() and np.ptp(values) > 0 for values in first.values())
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


def test_geometric_median_is_the_sum_of_distances_to_the_other_filters():
    model = nets.chain()
    rows = model.get_layer("b").get_weights()[0].reshape(-1, 12).T.astype(np.float64)
    expected = [sum(np.linalg.norm(row - other) for other in rows) for row in rows]
    np.testing.assert_allclose(scored(model, "geometric_median", normalizer="none")["b"], expected, rtol=1e-6)


def test_geometric_median_of_equal_filters_is_exactly_zero_distance_to_each_other():
    model = nets.sequential()
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., :] = kernel[..., :1]
    model.get_layer("a").set_weights([kernel, bias])
    # float64 rounding of squares of about 10 leaves a root of at most 1e-7 per pair.
    assert scored(model, "geometric_median", normalizer="none")["a"].max() < 1e-5


def test_bn_scale_without_a_batch_norm_names_the_group():
    with pytest.raises(CompressionError, match=r"bn_scale needs a batch norm with a scale .* group 'b' has none"):
        scored(nets.chain(), "bn_scale")


def test_bn_scale_reductions_over_the_norms_that_a_channel_passes():
    model = nets.dense_block()
    # Channels of the stem pass the three batch norms of the dense block, first of six channels, then ten, fourteen.
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)][:3]
    gammas = np.stack([np.abs(layer.get_weights()[0][:6]) for layer in norms])
    for how, expected in (("sum", gammas.sum(0)), ("mean", gammas.mean(0)), ("max", gammas.max(0))):
        found = scored(model, "bn_scale", normalizer="none", group_reduction=how)["stem"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_taylor_equals_the_squared_slope_of_a_gate_on_the_channel():
    """Brute force: scale all that the consumers read of one channel and watch the loss (central difference)."""
    model = nets.dense_block()
    analysis = analyze_channels(model)
    x, y = labeled(model)
    scores = score_channels(
        model, analysis, criterion="taylor", batches=[(x, y)], loss=squared_error, normalizer="none"
    )
    for name, channel in (("stem", 2), ("g1", 1), ("t", 5)):
        channel_set = analysis.groups[name].start + channel
        losses = [_gated_loss(model, analysis, channel_set, gate, x, y) for gate in (1.002, 0.998)]
        # The loss is smooth but for ReLU kinks: a step of 0.002 in float32 gives two digits.
        assert scores[name][channel] == pytest.approx(((losses[0] - losses[1]) / 0.004) ** 2, rel=0.1)
    assert np.ptp(scores["stem"]) > 0.5 * scores["stem"].mean()


def _gated_loss(model, analysis, channel_set, gate, x, y):
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    for layer in copy.layers:
        slices = analysis.layers.get(layer.name)
        for axis in slices.axes if slices else ():
            if axis.role == "consume":
                weights = layer.get_weights()
                np.moveaxis(weights[axis.weight], axis.axis, 0)[axis.sets == channel_set] *= gate
                layer.set_weights(weights)
    return float(np.mean((y - copy.predict(x, verbose=0)).astype(np.float64) ** 2))


def test_taylor_averages_over_batches():
    model = nets.nested()
    x, y = labeled(model, images=4)
    one = [
        scored(model, "taylor", batches=[(x[s], y[s])], loss=squared_error, normalizer="none")["backbone/body"]
        for s in (slice(0, 2), slice(2, 4))
    ]
    both = scored(model, "taylor", batches=[(x[:2], y[:2]), (x[2:], y[2:])], loss=squared_error, normalizer="none")
    np.testing.assert_allclose(both["backbone/body"], (one[0] + one[1]) / 2, rtol=1e-4)


def test_taylor_errors_are_one_line():
    model = nets.chain()
    with pytest.raises(CompressionError, match="taylor needs a loss"):
        scored(model, "taylor", batches=[labeled(model)])
    with pytest.raises(DataError, match=r"taylor: expected batches of \(images, labels\), got images alone"):
        scored(model, "taylor", batches=[nets.batch(model)], loss=squared_error)
    with pytest.raises(DataError, match=r"taylor needs images: pass batches=\(images, labels\); got none"):
        scored(model, "taylor", loss=squared_error)


def relu_net():
    """image -> a(4, relu) -+-> concat(7) -> max pool -> flatten -> logits(3)
    +-> b(3, relu) ---------+
    """
    image = keras.Input((4, 4, 3), name="image")
    a = layers.Conv2D(4, 1, activation="relu", name="a")(image)
    b = layers.ReLU()(layers.Conv2D(3, 1, name="b")(a))
    x = layers.Flatten()(layers.MaxPooling2D(2)(layers.Concatenate(name="joined")([a, b])))
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x)))


def test_apoz_is_the_share_of_living_values_behind_the_relu_through_concat_pool_and_flatten():
    model = relu_net()
    x = nets.batch(model, images=5)
    probe = keras.Model(model.inputs, [model.get_layer("a").output, model.get_layer("joined").output])
    a, joined = probe.predict(x, verbose=0)
    scores = scored(model, "apoz", batches=[x[:3], x[3:]], normalizer="none", group_reduction="mean")
    np.testing.assert_allclose(scores["a"], (a > 0).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scores["b"], (joined[..., 4:] > 0).mean(axis=(0, 1, 2)), rtol=1e-6)


def test_apoz_works_in_nested_models_and_without_a_relu_names_the_group():
    model = nets.nested()
    scores = scored(model, "apoz", batches=[nets.batch(model)])
    assert set(scores) == {"backbone/stem", "backbone/body", "hidden"}
    with pytest.raises(CompressionError, match=r"apoz needs a ReLU .* group 'a' has none: exclude it"):
        scored(nets.sequential(), "apoz", batches=[nets.batch(nets.sequential())])


def test_elimination_order_of_independent_channels_is_that_of_their_energy():
    energy = np.array([3.0, 0.5, 9.0, 1.0, 0.0])
    # Diagonal: the coefficient is max(0, 1 - penalty / energy), so the channel with least energy leaves first.
    np.testing.assert_array_equal(elimination_order(np.diag(energy)), np.array([4, 2, 5, 3, 1]) / 5)


def test_elimination_order_drops_the_channel_that_others_stand_in_for():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(500, 4))
    # Channel 3 has more energy than 2, but is nearly the sum of 0 and 1; nothing stands in for 2.
    signal[:, 3] = 0.7 * (signal[:, 0] + signal[:, 1]) + 0.05 * signal[:, 3]
    signal *= [1.5, 1.5, 0.8, 1.0]
    energy = np.sum(signal**2, axis=0)
    order = elimination_order(signal.T @ signal)
    assert energy[3] > energy[2]
    assert np.argmin(order) == 3


@pytest.mark.parametrize("limit", [4096, 1])
def test_contribution_products_equal_brute_force_in_both_forms(monkeypatch, limit):
    monkeypatch.setattr("cxr_compress.structured.criteria.images.MAX_GRAM_COLUMNS", limit)
    monkeypatch.setattr("cxr_compress.structured.criteria.images.MAX_BLOCK", 100)
    rng = np.random.default_rng(0)
    rows, kernel = rng.normal(size=(30, 12)).astype("f4"), rng.normal(size=(12, 5)).astype("f4")
    channel = np.tile(np.arange(4, dtype=np.int32), 3)
    centered = rows - rows.mean(axis=0)
    parts = np.stack([centered[:, channel == n] @ kernel[channel == n] for n in range(4)]).reshape(4, -1)
    np.testing.assert_allclose(contribution_products(rows, kernel, channel, 4), parts @ parts.T, rtol=1e-4, atol=1e-3)


def test_lasso_drops_constant_and_unread_channels_first():
    model = nets.dense_block()
    kernel = model.get_layer("t").get_weights()[0]
    # The growth channels 10..13 are read by t alone: unread ones change nothing.
    kernel[:, :, 11:13] = 0
    model.get_layer("t").set_weights([kernel])
    scores = scored(model, "lasso", batches=[nets.batch(model, images=16)], normalizer="none")
    assert set(np.argsort(scores["g2"])[:2]) == {1, 2}
    assert sorted(scores["g2"]) == [0.25, 0.5, 0.75, 1.0]


def test_lasso_counts_every_consumer_of_a_group():
    """A channel that one reader ignores and another needs must stay."""
    model = nets.dense_block()
    first, last = model.get_layer("g1"), model.get_layer("t")
    for layer, ignored in ((first, [0, 1]), (last, [2, 3])):
        kernel = layer.get_weights()[0]
        kernel[:, :, ignored] = 0
        layer.set_weights([kernel])
    second = model.get_layer("g2").get_weights()[0]
    second[:, :, [0, 1, 2, 3, 5]] = 0
    model.get_layer("g2").set_weights([second])
    kernel = last.get_weights()[0]
    kernel[:, :, :2] = 0
    last.set_weights([kernel])
    scores = scored(model, "lasso", batches=[nets.batch(model, images=16)])["stem"]
    # 0 and 1 are read by nobody now; 2 and 3 by the first growth layer alone.
    assert set(np.argsort(scores)[:2]) == {0, 1}


def test_score_options_and_batches_outside_what_is_known_are_one_line_errors():
    model = nets.chain()
    with pytest.raises(CompressionError, match=r"expected group_reduction to be one of max, mean, sum; got 'all'"):
        scored(model, "l1", group_reduction="all")
    with pytest.raises(CompressionError, match=r"expected normalizer to be one of max, mean, none; got 'std'"):
        scored(model, "l1", normalizer="std")
    with pytest.raises(DataError, match=r"lasso needs images: pass batches=images; got none"):
        scored(model, "lasso", batches=[])
    with pytest.raises(DataError, match=r"lasso: expected batches of shape \(n, 8, 8, 3\), got \(2, 8, 8, 1\)"):
        scored(model, "lasso", batches=[np.zeros((2, 8, 8, 1), "f4")])
    with pytest.raises(DataError, match="apoz: expected finite images"):
        scored(model, "apoz", batches=[np.full((2, 8, 8, 3), np.nan, "f4")])


def test_score_max_normalizer_makes_the_best_channel_one():
    found = scored(nets.dense_block(), "l2", normalizer="max")
    assert all(values.max() == 1.0 for values in found.values())


def test_register_criterion_from_outside_scores_by_name():
    @register_criterion("of_the_test", help="position in the group")
    def position(scoring):
        groups = scoring.analysis.groups.values()
        return [
            Member(np.arange(group.start, group.start + group.channels), np.arange(group.channels)) for group in groups
        ]

    try:
        found = scored(nets.chain(), "of_the_test", normalizer="none")
        assert found["b"].tolist() == list(range(12))
        with pytest.raises(CompressionError, match="criterion 'of_the_test' is registered twice: give one"):
            register_criterion("of_the_test", help="another")
    finally:
        del CRITERIA["of_the_test"]


def test_criteria_are_listed_without_tensorflow():
    code = (
        "import sys, cxr_compress.structured.criteria.base as base; print(*base.CRITERIA, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {*CRITERIA, "False"}

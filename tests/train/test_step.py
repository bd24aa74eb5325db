"""The optimizer's schedule, and scoring cached images."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.device.preprocess import normalize
from cxr_compress.errors import CompressionError
from cxr_compress.train import Batches, FitConfig, WeightedBce, fit, predict_logits
from cxr_compress.train.step import Objective, make_optimizer, make_terms
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net


def test_make_optimizer_rate_climbs_then_falls_along_a_half_cosine():
    optimizer = make_optimizer(FitConfig(epochs=1, learning_rate=0.5, warmup_fraction=0.2), steps=50)
    rate = optimizer._learning_rate
    expected = {0: 0.0, 5: 0.25, 10: 0.5, 30: 0.5 * (1 + math.cos(math.pi * 20 / 40)) / 2, 50: 0.0}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6)


def test_make_optimizer_without_warmup_starts_at_the_full_rate():
    rate = make_optimizer(FitConfig(epochs=1, learning_rate=0.5, warmup_fraction=0.0), steps=10)._learning_rate
    assert float(rate(0)) == 0.5


@pytest.mark.parametrize(("epochs", "planned"), [(2, 5), (5, 5), (1, 90)])
def test_make_optimizer_rewound_rate_is_the_end_of_the_planned_schedule_at_every_step(epochs, planned):
    rewound = FitConfig(epochs=epochs, learning_rate=0.5, warmup_fraction=0.3, schedule_epochs=planned)
    rate = make_optimizer(rewound, steps=7 * epochs)._learning_rate
    whole = make_optimizer(FitConfig(epochs=planned, learning_rate=0.5, warmup_fraction=0.0), steps=7 * planned)
    for step in range(7 * epochs + 3):  # and stays at 0 behind the end
        place = min(step + 7 * (planned - epochs), 7 * planned)
        exact = 0.5 * (1 + math.cos(math.pi * place / (7 * planned))) / 2
        # A few roundings of 6e-8, squared; behind the end both are 0 (the written-out cosine misses it by 1e-17).
        assert float(rate(step)) == pytest.approx(exact, rel=1e-5, abs=1e-12)
        # Keras's cosine loses 1e-7 of its 1 to float32, times half the rate.
        assert float(rate(step)) == pytest.approx(float(whole._learning_rate(place)), abs=1e-7)


def test_make_optimizer_rewound_rate_survives_its_config():
    rate = make_optimizer(FitConfig(epochs=2, schedule_epochs=6), steps=8)._learning_rate
    again = type(rate).from_config(rate.get_config())
    assert [float(again(step)) for step in range(9)] == [float(rate(step)) for step in range(9)]


def test_fit_config_schedule_shorter_than_the_run_is_an_error():
    with pytest.raises(CompressionError, match=r"schedule_epochs must be 0, or at least epochs \(4\), got 3"):
        FitConfig(epochs=4, schedule_epochs=3)
    with pytest.raises(CompressionError, match=r"feature_weight must be 0 or a positive number, got -1"):
        FitConfig(epochs=4, feature_weight=-1)


def test_fit_follows_the_rewound_rate(tmp_path):
    images = drawn_images(48, seed=5)
    config = FitConfig(epochs=2, batch_size=16, learning_rate=1e-2, schedule_epochs=4)
    result = fit(small_net(), images, images, SPEC, config, tmp_path, findings=FINDINGS)
    # Of the last step of each epoch: three steps an epoch, half of the twelve planned ones gone at the start.
    expected = [0.5e-2 * (1 + math.cos(math.pi * place / 12)) for place in (8, 11)]
    assert [entry["learning_rate"] for entry in result.history] == pytest.approx(expected, abs=1e-8)


def test_fit_without_younger_options_is_the_plain_loop_to_the_bit_and_writes_none_of_them_down(tmp_path):
    images = drawn_images(64, seed=5)
    config = FitConfig(epochs=2, batch_size=16, learning_rate=5e-3)
    model, plain = small_net(), small_net()
    fit(model, images, images, SPEC, config, tmp_path, findings=FINDINGS, pos_weight=np.ones(2))
    assert not {"feature_weight", "schedule_epochs", "feature_match", "masks"} & set(
        json.loads((tmp_path / "run.json").read_text())
    )
    optimizer, loss = make_optimizer(config, 8), WeightedBce(np.ones(2))
    optimizer.build(plain.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, plain(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(value, plain.trainable_variables), plain.trainable_variables, strict=True)
        )

    batches = Batches(*images, SPEC, 16, seed=config.seed)
    for batches.epoch in range(2):
        for index in range(len(batches)):
            step(*map(tf.constant, batches[index]))
    with np.load(tmp_path / "last.npz") as last:
        for index, weight in enumerate(plain.weights):
            np.testing.assert_array_equal(last[f"weights.{index:04d}"], weight)


def test_make_optimizer_weight_decay_spares_batch_norm_and_biases():
    optimizer = make_optimizer(FitConfig(epochs=1, weight_decay=0.1), steps=10)
    model = small_net()
    optimizer.build(model.trainable_variables)
    decayed = {v.name.rsplit("/", 1)[-1] for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel:0"}
    assert make_optimizer(FitConfig(epochs=1), steps=10).weight_decay is None


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_predict_logits_gives_each_images_own_logits_whatever_the_batches(count):
    model = small_net()
    images, _ = drawn_images(count, seed=2)
    logits = predict_logits(model, images, SPEC, batch_size=4)
    assert logits.shape == (count, 2)
    assert logits.dtype == np.float32
    one_by_one = np.concatenate([model(normalize(image[np.newaxis], SPEC)).numpy() for image in images])
    np.testing.assert_allclose(logits, one_by_one, rtol=0, atol=1e-5)
    if count > 1:
        assert np.ptp(logits, axis=0).min() > 1e-3  # far above the tolerance: the images matter


@pytest.mark.parametrize("batch_norm", ["hold", "train"])
def test_fit_batch_norms_that_are_held_keep_their_statistics_and_learn_scale_and_offset(tmp_path, batch_norm):
    model = small_net()
    norm = model.get_layer("bn1")
    before = [weight.numpy() for weight in norm.weights]
    config = FitConfig(epochs=1, batch_size=16, batch_norm=batch_norm)
    fit(model, drawn_images(48, seed=5), drawn_images(16, seed=6), SPEC, config, tmp_path, findings=FINDINGS)
    gamma, beta, mean, variance = (np.abs(w.numpy() - old).max() for w, old in zip(norm.weights, before, strict=True))
    assert min(gamma, beta) > 0
    held = (mean, variance) == (0, 0)
    assert held == (batch_norm == "hold")
    assert norm.trainable, "the model is as free afterwards as it was before"


def test_terms_of_held_batch_norms_are_those_of_the_network_that_is_scored():
    model, (images, labels) = small_net(), Batches(*drawn_images(16, seed=5), SPEC, 16, augment=False)[0]
    for weight in model.get_layer("bn1").weights[2:]:  # unlike those of any batch
        weight.assign(weight * 3.0 + 0.5)
    loss = WeightedBce(np.ones(2))
    expected = float(loss(labels, model(images, training=False)))
    held, _ = make_terms(model, Objective(loss, holds_norms=True))(images, labels)
    free, _ = make_terms(model, Objective(loss))(images, labels)
    assert float(held) == pytest.approx(expected, rel=1e-6)
    assert abs(float(free) - expected) > 1e-3, "the control"

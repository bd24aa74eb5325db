"""The optimiser's schedule, and scoring cached films."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cxr_compress.device.preprocess import normalize
from cxr_compress.train import FitConfig, predict_logits
from cxr_compress.train.step import make_optimizer
from tests.train.films import SPEC, drawn_films, small_net


def test_make_optimizer_rate_climbs_then_falls_along_a_half_cosine():
    optimizer = make_optimizer(FitConfig(epochs=1, learning_rate=0.5, warmup_fraction=0.2), steps=50)
    rate = optimizer._learning_rate
    expected = {0: 0.0, 5: 0.25, 10: 0.5, 30: 0.5 * (1 + math.cos(math.pi * 20 / 40)) / 2, 50: 0.0}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6)


def test_make_optimizer_without_warmup_starts_at_the_full_rate():
    rate = make_optimizer(FitConfig(epochs=1, learning_rate=0.5, warmup_fraction=0.0), steps=10)._learning_rate
    assert float(rate(0)) == 0.5


def test_make_optimizer_weight_decay_spares_batch_norm_and_biases():
    optimizer = make_optimizer(FitConfig(epochs=1, weight_decay=0.1), steps=10)
    model = small_net()
    optimizer.build(model.trainable_variables)
    decayed = {v.name.rsplit("/", 1)[-1] for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel:0"}
    assert make_optimizer(FitConfig(epochs=1), steps=10).weight_decay is None


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_predict_logits_gives_each_films_own_logits_whatever_the_batches(count):
    model = small_net()
    images, _ = drawn_films(count, seed=2)
    logits = predict_logits(model, images, SPEC, batch_size=4)
    assert logits.shape == (count, 2)
    assert logits.dtype == np.float32
    one_by_one = np.concatenate([model(normalize(image[np.newaxis], SPEC)).numpy() for image in images])
    np.testing.assert_allclose(logits, one_by_one, rtol=0, atol=1e-5)
    if count > 1:
        assert np.ptp(logits, axis=0).min() > 1e-3  # far above the tolerance: the films matter

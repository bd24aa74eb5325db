"""The running average of the weights: its arithmetic, its place in a model, and its part in a resumed run."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.train import FitConfig, fit, predict_logits
from cxr_compress.train.step import WeightAverage
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

TRAIN, DEV = drawn_images(48, seed=1), drawn_images(32, seed=2)
CONFIG = FitConfig(epochs=3, batch_size=16, learning_rate=5e-3, ema_decay=0.8)


def test_average_follows_the_formula_with_its_warm_up():
    weight = tf.Variable([1.0, 5.0])
    average = WeightAverage([weight], decay=0.3)
    expected = np.array([1.0, 5.0])
    for step, value in enumerate(([2.0, 0.0], [4.0, 1.0], [8.0, 1.0], [8.0, 2.0]), start=1):
        weight.assign(value)
        average.update()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.array(value)
        np.testing.assert_allclose(average.weights[0].numpy(), expected, rtol=1e-6)


def test_average_in_model_gives_the_own_weights_back_even_after_an_error():
    weight = tf.Variable([1.0])
    average = WeightAverage([weight], decay=0.9)
    weight.assign([3.0])
    with average.in_model():
        assert weight.numpy() == [1.0]
    assert weight.numpy() == [3.0]
    with pytest.raises(CompressionError, match="within"):
        fail_within(average)
    assert weight.numpy() == [3.0]


def fail_within(average):
    with average.in_model():
        raise CompressionError("within")


def test_fit_with_an_average_keeps_and_scores_the_average(tmp_path):
    model = small_net()
    result = run(model, tmp_path / "run")
    with np.load(tmp_path / "run" / "last.npz") as last:
        averages = [last[f"average.{index:04d}"] for index in range(len(model.weights))]
        own = [last[f"weights.{index:04d}"] for index in range(len(model.weights))]
    assert result.best_epoch == 3
    for weight, average in zip(model.weights, averages, strict=True):
        np.testing.assert_array_equal(weight.numpy(), average)
    assert any(np.abs(one - other).max() > 1e-4 for one, other in zip(own, averages, strict=True))
    logits = predict_logits(model, DEV[0], SPEC)
    loss = result.history[-1]["dev_loss"]
    assert loss == pytest.approx(bce(logits), rel=1e-4)
    model.set_weights(own)  # the control: the last weights themselves score otherwise
    assert loss != pytest.approx(bce(predict_logits(model, DEV[0], SPEC)), rel=1e-4)


def test_fit_with_an_average_resumes_to_the_same_weights(tmp_path):
    whole, stopped = small_net(), small_net()
    run(whole, tmp_path / "whole")

    def stop(_epoch, batch, _batches, _loss):
        seen.append(batch)
        if len(seen) == 5:  # in the second of three epochs of three batches
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path / "stopped", on_step=stop)
    again = small_net()
    run(again, tmp_path / "stopped")
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def bce(logits: np.ndarray) -> float:
    """The plain cross-entropy of the dev images, in float64."""
    z = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0, np.where(DEV[1] == 1, -z, z))))


def run(model, folder, **options):
    return fit(model, TRAIN, DEV, SPEC, CONFIG, folder, findings=FINDINGS, pos_weight=np.ones(2), **options)

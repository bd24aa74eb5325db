"""The dev images' verdict on an epoch: its figures, and which epoch is the best with and without a teacher."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.train import FitConfig, WeightedBce, fit, predict_logits
from cxr_compress.train.dev_score import DevScore, best_epoch
from cxr_compress.train.step import Objective
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

LABELS = np.array([[1, 0], [0, np.nan], [1, 0.5], [0, 1]], np.float32)
LOSS = WeightedBce(np.array([2.0, 0.5], np.float32), masked=True)


def test_dev_score_without_a_teacher_has_no_objective():
    found = DevScore(LABELS, FINDINGS, Objective(LOSS)).of(np.array([[1, 0], [-1, 0], [2, 1], [0, 3]], np.float32))
    assert sorted(found) == ["auroc", "dev_auroc", "dev_loss"]
    assert found["auroc"] == {"left spot": 1.0, "right spot": 1.0}, "labels between 0 and 1 and unknown ones rank none"


def test_dev_score_logits_that_are_no_numbers_give_the_loss_alone():
    found = DevScore(LABELS, FINDINGS, Objective(LOSS, distill_weight=0.5), np.zeros((4, 2))).of(
        np.full((4, 2), np.nan, np.float32)
    )
    assert list(found) == ["dev_loss"]
    assert np.isnan(found["dev_loss"])


@given(weight=st.floats(0.01, 1.0), seed=st.integers(0, 99), scale=st.sampled_from([0.1, 3.0, 60.0]))
def test_dev_score_objective_is_the_loss_that_a_step_minimizes(weight, seed, scale):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(4, 2))).astype(np.float32)
    soft = rng.uniform(0.001, 0.999, (4, 2))
    found = DevScore(LABELS, FINDINGS, Objective(LOSS, distill_weight=weight), np.log(soft / (1.0 - soft))).of(logits)
    pull = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=soft, logits=logits.astype(np.float64)))
    # The loss of the labels is a float32 mean, at most 24 bits exact.
    assert found["dev_objective"] == pytest.approx((1 - weight) * float(LOSS(LABELS, logits)) + weight * float(pull))


def test_dev_score_objective_of_logits_is_their_distance():
    theirs = np.array([[5, 0], [-5, 0], [2, 1], [0, 3]], np.float32)
    objective = Objective(LOSS, distill_weight=1.0, distill_loss="logits")
    found = DevScore(LABELS, FINDINGS, objective, theirs).of(theirs + 2)
    assert found["dev_objective"] == pytest.approx(4 / 8)


def entries(*figures, start=1):
    names = ("dev_auroc", "dev_loss", "dev_objective")
    return [{"epoch": epoch, **dict(zip(names, values, strict=False))} for epoch, values in enumerate(figures, start)]


@pytest.mark.parametrize(
    ("history", "first", "best"),
    [
        (entries((0.9, 0.3), (0.95, 0.4), (0.95, 0.2)), 1, 3),
        (entries((0.9, 0.3), (0.95, 0.4), (None, 0.2)), 1, 2),
        (entries((None, 0.3), (None, 0.1), (None, 0.2)), 1, 2),
        (entries((0.99, 0.3, 0.5), (0.98, 0.1, 0.3), (0.97, 0.2, 0.2)), 1, 3),
        (entries((0.99, 0.3, 0.1), (0.98, 0.1, 0.3), (0.97, 0.2, 0.2)), 2, 3),
        (entries((0.99, 0.3), (0.98, 0.1, 0.3), (0.97, 0.2, 0.2)), 1, 1),  # begun before there was an objective
        (entries((0.99, 0.3)), 2, 0),
        (entries((0.99, 0.3, 0.1), (0.98, 0.1, 0.3), (0.97, 0.2, 0.2), start=0), 0, 0),
        (entries((0.99, 0.3, 0.2), (0.98, 0.1, 0.3), (0.97, 0.2, 0.1), start=0), 0, 2),
        (entries((0.98, 0.3), (0.98, 0.3), start=0), 0, 0),  # an epoch that changed nothing is no better
    ],
)
def test_best_epoch_goes_by_the_objective_where_there_is_one(history, first, best):
    assert best_epoch(history, first) == best


def test_fit_with_a_teacher_keeps_the_epoch_with_the_lowest_objective(tmp_path):
    train, dev, teacher, model = drawn_images(96, seed=10), drawn_images(40, seed=11), small_net(7), small_net(3)
    config = FitConfig(epochs=4, batch_size=16, learning_rate=5e-3, distill_weight=0.9)
    result = fit(model, train, dev, SPEC, config, tmp_path, findings=FINDINGS, teacher=teacher)
    objectives = [entry["dev_objective"] for entry in result.history]
    assert result.best_epoch == 1 + int(np.argmin(objectives))
    theirs = predict_logits(teacher, dev[0], SPEC)
    objective = Objective(WeightedBce(result.pos_weight), distill_weight=0.9)
    again = DevScore(dev[1], FINDINGS, objective, theirs).of(predict_logits(model, dev[0], SPEC))
    # Other batches of the same images: float32 sums in another order.
    assert again["dev_objective"] == pytest.approx(min(objectives), rel=1e-5)
    other = DevScore(dev[1], FINDINGS, objective, -theirs).of(predict_logits(model, dev[0], SPEC))
    assert abs(other["dev_objective"] - min(objectives)) > 1e-3, "the control: it is this teacher that is followed"

"""The weighted cross-entropy against its formula written out in numpy, and the class weights."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.train.config import FitConfig
from cxr_compress.train.losses import WeightedBce, distillation_loss, make_loss, pos_weights


def written_out(labels, logits, weights):
    """The formula, image by image and finding by finding, in float64."""
    total = 0.0
    for image in range(len(labels)):
        for finding in range(labels.shape[1]):
            z = float(logits[image, finding])
            probability = 1 / (1 + np.exp(-z))
            y, w = labels[image, finding], weights[finding]
            total -= w * y * np.log(probability) + (1 - y) * np.log(1 - probability)
    return total / labels.size


def test_weighted_bce_is_the_mean_of_the_formula_over_images_and_findings():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (7, 3)).astype(np.float32)
    logits = rng.normal(0, 3, (7, 3)).astype(np.float32)
    weights = np.array([0.35, 1.0, 20.0])
    # A mean of 21 float32 terms up to 60: a few roundings of 6e-8 relative.
    assert float(WeightedBce(weights)(labels, logits)) == pytest.approx(written_out(labels, logits, weights), rel=1e-5)
    assert float(WeightedBce(weights[::-1])(labels, logits)) != pytest.approx(
        written_out(labels, logits, weights), rel=1e-2
    )


def test_weighted_bce_huge_logits_stay_finite():
    labels, logits = np.array([[1.0], [0.0]], np.float32), np.array([[-1e4], [1e4]], np.float32)
    assert float(WeightedBce(np.array([2.0]))(labels, logits)) == pytest.approx((2e4 + 1e4) / 2)


def test_weighted_bce_best_constant_logit_is_the_log_odds_plus_the_log_weight():
    # What device.modelinfo's logit_offset undoes: 20 % positives, weighted 4 to 1, are learned as even odds.
    labels = np.array([[1.0]] + [[0.0]] * 4, np.float32)
    loss = WeightedBce(np.array([4.0]))
    at = {z: float(loss(labels, np.full((5, 1), z, np.float32))) for z in (-0.2, 0.0, 0.2)}
    assert min(at, key=at.get) == 0.0
    unweighted = WeightedBce(np.array([1.0]))
    assert float(unweighted(labels, np.full((5, 1), np.log(0.25), np.float32))) < float(
        unweighted(labels, np.zeros((5, 1), np.float32))
    )


def test_weighted_bce_unknown_labels_do_not_count_in_value_or_gradient():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (6, 2)).astype(np.float32)
    labels[[0, 2, 5], [1, 0, 1]] = np.nan
    logits, weights = rng.normal(0, 2, (6, 2)).astype(np.float32), np.array([3.0, 0.5])
    known = np.isfinite(labels)
    single = [
        written_out(np.array([[label]]), np.array([[logit]]), [weights[column]])
        for (_, column), label, logit in zip(np.argwhere(known), labels[known], logits[known], strict=True)
    ]
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        value = WeightedBce(weights, masked=True)(labels, variable)
    # A mean of nine float32 terms: a few roundings of 6e-8 relative.
    assert float(value) == pytest.approx(np.mean(single), rel=1e-5)
    gradient = tape.gradient(value, variable).numpy()
    assert np.all(gradient[~known] == 0)
    assert np.all(gradient[known] != 0)
    # The control: unmasked, one unknown label makes the whole loss none.
    assert np.isnan(float(WeightedBce(weights)(labels, logits)))


def test_weighted_bce_batch_without_known_label_is_zero():
    labels = np.full((2, 3), np.nan, np.float32)
    assert float(WeightedBce(np.ones(3), masked=True)(labels, np.ones((2, 3), np.float32))) == 0.0


def test_weighted_bce_masked_without_unknown_label_is_the_plain_loss():
    labels, logits = np.eye(3, dtype=np.float32), np.linspace(-2, 2, 9, dtype=np.float32).reshape(3, 3)
    plain, masked = WeightedBce(np.ones(3)), WeightedBce(np.ones(3), masked=True)
    assert float(masked(labels, logits)) == pytest.approx(float(plain(labels, logits)), rel=1e-6)


def test_weighted_bce_focal_is_the_formula_of_lin_and_plays_down_easy_images():
    labels = np.array([[1.0], [1.0], [0.0], [0.0]], np.float32)
    logits = np.array([[3.0], [-1.0], [2.0], [-4.0]], np.float32)
    q = 1 / (1 + np.exp(-logits.astype(np.float64)))
    truth = np.where(labels == 1, q, 1 - q)
    expected = np.mean(-((1 - truth) ** 2) * np.log(truth) * np.where(labels == 1, 5.0, 1.0))
    assert float(WeightedBce(np.array([5.0]), focal_gamma=2.0)(labels, logits)) == pytest.approx(expected, rel=1e-5)
    assert float(WeightedBce(np.array([5.0]))(labels, logits)) > 1.5 * expected


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_weighted_bce_focal_huge_logits_keep_value_and_gradient_finite(logit):
    variable = tf.Variable([[logit]], dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = WeightedBce(np.ones(1), focal_gamma=2.0)(np.ones((1, 1), np.float32), variable)
    assert np.isfinite(float(value))
    assert np.isfinite(float(tape.gradient(value, variable)[0, 0]))


def test_weighted_bce_label_smoothing_moves_the_best_logit_from_infinity():
    loss = WeightedBce(np.ones(1), label_smoothing=0.1)
    at = {z: float(loss(np.ones((1, 1), np.float32), np.full((1, 1), z, np.float32))) for z in (2.0, 2.944, 8.0)}
    assert min(at, key=at.get) == 2.944  # log(0.95 / 0.05)


def test_make_loss_is_masked_only_where_a_label_is_unknown():
    known, unknown = np.zeros((2, 1)), np.array([[0.0], [np.nan]])
    assert not make_loss(FitConfig(epochs=1), np.ones(1), known).masked
    assert make_loss(FitConfig(epochs=1), np.ones(1), known, unknown).masked
    assert make_loss(FitConfig(epochs=1), np.ones(1), known).focal_gamma == 0.0
    assert make_loss(FitConfig(epochs=1, loss="focal"), np.ones(1), known).focal_gamma == 2.0


def test_pos_weights_count_only_known_labels_and_soft_ones_by_what_is_likelier():
    labels = np.array([[1.0], [0.8], [0.2], [0.0], [0.0], [0.0], [np.nan], [np.nan]])
    assert pos_weights(labels) == pytest.approx([4 / 2])


@pytest.mark.parametrize("weight", [[0.0], [-1.0], [np.nan], [np.inf], [[1.0]]])
def test_weighted_bce_impossible_weight_is_an_error(weight):
    with pytest.raises(CompressionError, match="pos_weight must be one positive number per finding, got"):
        WeightedBce(np.array(weight))


def test_pos_weights_are_negatives_per_positive_clipped_at_fifty():
    labels = np.zeros((1000, 4), np.float32)
    labels[:250, 0] = 1
    labels[:500, 1] = 1
    labels[:2, 2] = 1
    labels[:998, 3] = 1
    np.testing.assert_allclose(pos_weights(labels), [3.0, 1.0, 50.0, 1 / 50], rtol=1e-6)
    assert pos_weights(labels).dtype == np.float32


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pos_weights_one_sided_finding_is_an_error(value):
    labels = np.tile(np.array([0.0, 1.0], np.float32), (2, 1)).T.copy()
    labels[:, 1] = value
    with pytest.raises(DataError, match=rf"column 1 of the labels has {int(2 * value)} positives among 2 images"):
        pos_weights(labels)


def test_pos_weights_something_else_than_a_table_is_an_error():
    with pytest.raises(DataError, match=r"labels must be \(images, findings\).*got shape \(3,\)"):
        pos_weights(np.zeros(3))


@pytest.mark.parametrize(("activation", "shape"), [("sigmoid", (6, 5)), ("softmax", (6, 3)), ("softmax", (6, 2))])
def test_distillation_of_logits_is_what_the_cross_entropy_rises_by_next_to_an_undecided_teacher(activation, shape):
    undecided = np.zeros(shape)
    change = np.random.default_rng(2).normal(size=shape)
    loss = lambda logits, of: float(distillation_loss(undecided, logits, activation, of))  # noqa: E731
    rise = loss(1e-3 * change, "probabilities") - loss(undecided, "probabilities")
    # The next term of the series is a thousandth of this one; float64 loses 1e-16 of a loss of about 1 to 1e-7.
    assert loss(1e-3 * change, "logits") == pytest.approx(rise, rel=2e-3)
    assert loss(change, "logits") == pytest.approx(1e6 * loss(1e-3 * change, "logits"))
    assert loss(undecided, "logits") == 0.0


def test_distillation_of_logits_asks_for_them_where_a_teacher_is_sure():
    theirs, ours = np.array([[8.0, -8.0]]), np.array([[4.0, -4.0]])
    far = float(distillation_loss(theirs, ours, of="logits"))
    assert far == pytest.approx(4.0**2 / 8)
    assert float(distillation_loss(theirs, ours)) < 0.02, "the control: probabilities hardly do"
    shifted = float(distillation_loss(theirs, theirs + 3.0, "softmax", "logits"))
    assert shifted == pytest.approx(0.0), "what all classes share says nothing"
    assert float(distillation_loss(theirs, theirs + 3.0, of="logits")) > 1

"""Probabilities without the class weights of the loss, and thresholds that the device reproduces."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import DataError
from cxr_compress.evaluate import choose_calibration, undo_class_weights


def test_choose_calibration_undoes_the_class_weights_of_an_ideal_network() -> None:
    """A network that has learnt the weighted loss perfectly says log odds + log(pos_weight)."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.9, (20_000, 2))
    labels = (rng.uniform(size=truth.shape) < truth).astype(np.float32)
    pos_weight = np.array([8.0, 0.25])
    logits = np.log(truth / (1 - truth)) + np.log(pos_weight)
    found = choose_calibration(labels, logits, pos_weight)
    assert found.fitted == (True, True)
    probabilities = 1 / (1 + np.exp(-(logits * found.slope + found.offset)))
    # Fitted on 20,000 images: standard errors near 0.03 of slope and offset, which move a probability by 0.01 at most.
    np.testing.assert_allclose(probabilities, truth, atol=0.03)
    # The control: without the offset the mean probability is far from the prevalence.
    assert (np.abs((1 / (1 + np.exp(-logits))).mean(0) - labels.mean(0)) > 0.1).all()
    # Youden's best threshold of calibrated probabilities is the prevalence; 20,000 images pin it to about 0.1.
    np.testing.assert_allclose(found.thresholds, labels.mean(0), atol=0.1)


def test_choose_calibration_thresholds_separate_in_float32_as_on_the_device() -> None:
    """Logits so extreme that their probabilities differ in float64 alone: the device sees one value."""
    labels = np.array([[0], [0], [1], [1]], np.float32)
    logits = np.array([[-3.0], [18.0], [40.0], [41.0]])
    (threshold,) = choose_calibration(labels, logits, np.ones(1)).thresholds
    assert 1 / (1 + np.exp(3.0)) < threshold < 1.0
    assert np.float32(threshold) <= np.float32(1.0)


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        ([[0], [1]], [1.0, 1.0], r"one weight per finding, got \(2, 1\), \(2, 1\) and \(2,\)"),
        ([[0], [1]], [0.0], r"class weights above 0, got \[0.0\]"),
        ([[0], [1]], [np.inf], "class weights above 0"),
        ([[1], [1]], [1.0], "images with and without the finding, got 2 with and 0 without"),
    ],
)
def test_choose_calibration_bad_input_is_refused(labels, weights, message) -> None:
    with pytest.raises(DataError, match=message):
        choose_calibration(labels, [[0.1], [0.2]], weights)


def test_choose_calibration_unknown_labels_choose_nothing() -> None:
    labels = np.array([[0], [0], [1], [1], [np.nan]], np.float32)
    logits = np.array([[-3.0], [-2.0], [2.0], [3.0], [1.0]])
    known = choose_calibration(labels[:4], logits[:4], np.ones(1))
    assert choose_calibration(labels, logits, np.ones(1)) == known
    assert choose_calibration(np.nan_to_num(labels), logits, np.ones(1)) != known


def test_undo_class_weights_gives_back_the_odds_that_the_loss_multiplied() -> None:
    found = undo_class_weights(np.array([[np.log(3.0), 0.0]]), (3.0, 0.25))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.5, 0.8]], rtol=1e-6)

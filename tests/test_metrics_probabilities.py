"""Brier score, calibration error and shares against scikit-learn, and what they are blind to."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import DataError
from cxr_compress.metrics import (
    brier_score,
    expected_calibration_error,
    reliability,
    sensitivity_specificity,
)
from tests.test_metrics import make_images


def test_brier_and_shares_equal_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss, recall_score

    labels, scores, _ = make_images()
    chances = 1 / (1 + np.exp(-scores))
    assert brier_score(labels, chances) == pytest.approx(brier_score_loss(labels, chances), abs=1e-12)
    called = chances > 0.6
    expected = recall_score(labels, called), recall_score(labels, called, pos_label=0)
    assert sensitivity_specificity(labels, called) == pytest.approx(expected, abs=1e-12)


def test_expected_calibration_error_distinct_scores_equals_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    chances = rng.uniform(size=300)  # 15 bins of exactly 20 images: the mean over bins is the mean over images
    labels = (rng.uniform(size=300) < chances**2).astype(float)
    share, mean = calibration_curve(labels, chances, n_bins=15, strategy="quantile")
    assert len(share) == 15
    assert expected_calibration_error(labels, chances) == pytest.approx(np.abs(share - mean).mean(), abs=1e-12)
    binned = reliability(labels, chances, bins=15)
    assert [one.probability for one in binned] == pytest.approx(mean, abs=1e-12)
    assert [one.share for one in binned] == pytest.approx(share, abs=1e-12)
    assert [one.images for one in binned] == [20] * 15


def test_reliability_leaves_out_unknown_labels_and_empty_bins() -> None:
    labels = np.array([0.0, 1.0, np.nan, 1.0, 1.0])
    binned = reliability(labels, np.array([0.25, 0.25, 0.9, 0.25, 0.5]))
    assert binned == (pytest.approx((0.25, 2 / 3, 3)), pytest.approx((0.5, 1.0, 1)))
    assert reliability(np.array([np.nan]), np.array([0.5])) == ()


def test_expected_calibration_error_is_small_for_true_chances_and_large_for_doubled_logits() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=20_000)
    chances = 1 / (1 + np.exp(-logits))
    labels = (rng.uniform(size=20_000) < chances).astype(float)
    # 1333 images a bin: their share errs by at most 0.014, on average by 0.8 of its deviation.
    assert expected_calibration_error(labels, chances) < 0.02
    assert expected_calibration_error(labels, 1 / (1 + np.exp(-2 * logits))) > 0.06


def test_expected_calibration_error_tied_scores_stay_together_whatever_the_order() -> None:
    labels, chances = np.array([0.0, 1.0] * 50), np.repeat([0.25, 0.75], 50)
    order = np.random.default_rng(0).permutation(100)
    assert expected_calibration_error(labels, chances) == 0.25  # two bins: |0.25 - 0.5| and |0.75 - 0.5|
    assert expected_calibration_error(labels[order], chances[order]) == 0.25


def test_brier_score_logits_instead_of_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="probabilities from 0 to 1, got -3 to 2"):
        brier_score([0, 1], [-3.0, 2.0])

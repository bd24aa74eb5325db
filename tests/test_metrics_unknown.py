"""Labels that nobody knows leave their images out, and too few known ones are told apart."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import DataError
from cxr_compress.metrics import (
    auroc,
    auroc_samples,
    average_precision,
    average_precision_samples,
    brier_score,
    choose_threshold,
    count_images,
    expected_calibration_error,
    has_enough_data,
    mean_samples,
    sensitivity_specificity,
)
from tests.test_metrics import make_images


def make_unknown(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of two findings, a third of the labels unknown, scores in [0, 1]."""
    labels, scores, groups = make_images(seed)
    both = np.stack([labels, 1 - labels], 1)
    both[np.random.default_rng(seed + 1).uniform(size=both.shape) < 0.33] = np.nan
    return both, np.stack([1 / (1 + np.exp(-scores)), scores**2 / (1 + scores**2)], 1), groups


@pytest.mark.parametrize(
    "measure",
    [
        auroc,
        average_precision,
        brier_score,
        choose_threshold,
        expected_calibration_error,
        lambda labels, scores: sensitivity_specificity(labels, scores > 0.5),
    ],
)
def test_metric_unknown_labels_are_as_if_the_images_were_not_there(measure) -> None:
    labels, scores, _ = make_unknown()
    known = ~np.isnan(labels[:, 0])
    assert measure(labels[:, 0], scores[:, 0]) == measure(labels[known, 0], scores[known, 0])
    assert measure(labels[:, 0], scores[:, 0]) != measure(
        np.nan_to_num(labels[:, 0], nan=1.0), scores[:, 0]
    )  # and nan is no 1


def test_metric_all_labels_unknown_is_nan() -> None:
    unknown = np.full(3, np.nan)
    for measure in (auroc, average_precision, brier_score, expected_calibration_error):
        assert np.isnan(measure(unknown, [0.1, 0.2, 0.3]))
    assert np.isnan(sensitivity_specificity(unknown, [True, False, True])).all()
    with pytest.raises(DataError, match="got 0 with and 0 without"):
        choose_threshold(unknown, [0.1, 0.2, 0.3])


def test_samples_unknown_labels_equal_the_measure_of_the_images_drawn() -> None:
    labels, scores, groups = make_unknown()
    patients = np.unique(groups)
    errors = (scores - labels) ** 2
    drawn = [
        auroc_samples(labels, scores, groups, samples=20, seed=3),
        average_precision_samples(labels, scores, groups, samples=20, seed=3),
        mean_samples(errors, groups, samples=20, seed=3),
    ]
    rng = np.random.default_rng(3)
    for row in range(20):
        chosen = [np.flatnonzero(groups == patients[p]) for p in rng.integers(0, len(patients), len(patients))]
        images_drawn = np.concatenate(chosen)
        for k in range(2):
            truth, values = labels[images_drawn, k], scores[images_drawn, k]
            expected = [auroc(truth, values), average_precision(truth, values), np.nanmean(errors[images_drawn, k])]
            # Sums of a few hundred float64 in another order: 1e-12 is far above their rounding.
            np.testing.assert_allclose([one[row, k] for one in drawn], expected, rtol=1e-12)


def test_has_enough_data_begins_at_twenty_images_of_each_class() -> None:
    labels = np.zeros((100, 4))
    labels[:20, 0] = labels[:19, 1] = labels[:81, 2] = labels[:80, 3] = 1
    labels[99, 3] = np.nan
    assert has_enough_data(labels).tolist() == [True, False, False, False]
    positives, negatives = count_images(labels)
    assert positives.tolist() == [20, 19, 81, 80]
    assert negatives.tolist() == [80, 81, 19, 19]

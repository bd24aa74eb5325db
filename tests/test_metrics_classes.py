"""Classes that exclude one another: softmax, rankings, accuracies and refusals, against scikit-learn and sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.metrics import confusion_matrix as their_matrix

from cxr_compress.errors import DataError
from cxr_compress.metrics import (
    auroc_per_finding,
    categorical_cross_entropy,
    check_exclusive,
    class_hits,
    class_log_odds,
    confusion_matrix,
    predicted_classes,
    softmax,
)
from cxr_compress.metrics.ranking import mean_defined

NAN = float("nan")
LOGITS = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-1e4, 1e4, allow_nan=False)
)


def drawn(images: int = 300, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """One-hot labels, and logits that know something of them."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, images)
    return np.eye(classes)[truth], rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[truth]


@given(LOGITS)
def test_softmax_adds_up_to_1_and_its_log_odds_belong_to_it(logits: np.ndarray) -> None:
    shares = softmax(logits)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    odds = class_log_odds(logits)
    # p = 1 / (1 + exp(-odds)) for each class against all others; where p is no float above 0 it is 0.
    np.testing.assert_allclose(1 / (1 + np.exp(np.minimum(-odds, 700))), shares, rtol=1e-6, atol=1e-300)


@given(LOGITS)
def test_predicted_classes_are_exactly_one_an_image_the_first_of_equals(logits: np.ndarray) -> None:
    rounded = np.round(logits, -3)  # ties
    called = predicted_classes(rounded)
    assert (called.sum(axis=1) == 1).all()
    for row, flags in zip(rounded, called, strict=True):
        assert int(np.flatnonzero(flags)[0]) == list(row).index(row.max())


def test_class_log_odds_rank_as_the_softmax_does_and_the_logit_alone_does_not() -> None:
    labels, logits = drawn()
    expected = [roc_auc_score(labels[:, k], softmax(logits)[:, k]) for k in range(3)]
    np.testing.assert_allclose(auroc_per_finding(labels, class_log_odds(logits)), expected, atol=1e-12)
    assert np.abs(auroc_per_finding(labels, logits) - expected).max() > 0.01, "control: as independent findings"


def test_cross_entropy_and_accuracies_are_those_of_scikit_learn() -> None:
    labels, logits = drawn()
    assert categorical_cross_entropy(labels, logits) == pytest.approx(log_loss(labels, softmax(logits)), rel=1e-9)
    called = predicted_classes(logits)
    truth, said = labels.argmax(axis=1), called.argmax(axis=1)
    np.testing.assert_array_equal(confusion_matrix(labels, called), their_matrix(truth, said))
    hits = class_hits(labels, called)
    recalls = [mean_defined(hits[:, k]) for k in range(3)]
    assert np.mean(recalls) == pytest.approx(balanced_accuracy_score(truth, said))
    # A class that counts twice counts twice.
    doubled = np.concatenate([labels, labels[truth == 1]]), np.concatenate([logits, logits[truth == 1]])
    weighted = categorical_cross_entropy(labels, logits, [1, 2, 1]) * len(labels)
    assert weighted == pytest.approx(categorical_cross_entropy(*doubled) * len(doubled[0]))


def test_check_exclusive_leaves_unknown_rows_out_and_takes_soft_ones() -> None:
    labels = [[1, 0, 0], [0.25, 0.5, 0.25], [NAN, NAN, NAN], [0, 1, NAN]]
    np.testing.assert_array_equal(check_exclusive(labels, where="dev"), [True, True, False, False])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 0], [1, 0, 0]], r"\(a, b, c\) need exactly one class .* of 2 train images 1 have none and 0 have sev"),
        ([[1, 1, 0], [1, 1, 1], [0, 0, 1]], "of 3 train images 0 have none and 2 have several: correct those rows"),
        ([[1], [0]], r"two or more classes that exclude one another, got labels of shape \(2, 1\)"),
    ],
)
def test_check_exclusive_refuses_rows_without_exactly_one_class(rows: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_exclusive(rows, where="train", names=("a", "b", "c"))

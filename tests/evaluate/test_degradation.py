"""What a step did on dev: three measures, each of which sees what the others do not."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.evaluate.degradation import measure_degradation
from cxr_compress.metrics import mean_auroc

PATIENTS = [f"p{number}" for number in range(400)]


def degradation_of(labels, logits, reference, **options):
    return measure_degradation(labels, logits, reference, PATIENTS[: len(labels)], samples=20, **options)


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    labels = (random.random((400, 1)) < 0.4).astype(np.float32)
    return labels, (2 * labels - 1 + random.normal(0, 1, labels.shape)).astype(np.float32)


def test_degradation_of_nothing_is_nothing(images):
    labels, logits = images
    degradation = degradation_of(labels, logits, logits)
    assert (degradation.auroc_drop.value, degradation.loss_rise, degradation.logit_distance) == (0, 0, 0)
    assert degradation.broken(0.0) == []


def test_degradation_that_keeps_the_order_shows_in_loss_and_distance(images):
    """Every logit moved by 3: AUROC, which knows only the order, does not see it."""
    labels, logits = images
    degradation = degradation_of(labels, logits + 3, logits)
    assert degradation.auroc_drop.value == 0
    assert [text.split(" 0.")[0].split(" 1.")[0].split(" 2.")[0] for text in degradation.broken(0.005)] == [
        "rise of the loss",
        "distance of the logits",
    ]


def test_degradation_to_the_order_shows_in_auroc(images):
    labels, logits = images
    shuffled = logits[np.random.default_rng(1).permutation(len(logits))]
    degradation = degradation_of(labels, shuffled, logits)
    assert degradation.auroc_drop.value > 0.2
    assert degradation.broken(0.005)[0].startswith("AUROC drop")


def test_degradation_without_a_measurable_auroc_does_not_pass(images):
    labels, logits = images
    degradation = degradation_of(np.zeros_like(labels), logits, logits)
    assert np.isnan(degradation.auroc_drop.value)
    assert degradation.broken(0.005)


def test_degradation_leaves_unknown_labels_out(images):
    labels, logits = images
    known, moved = labels.copy(), logits.copy()
    known[:50], moved[:50] = np.nan, 0.0
    degradation = degradation_of(known, moved, logits)
    assert (degradation.auroc_drop.value, degradation.loss_rise) == (0, 0)
    assert degradation.logit_distance > 0


def test_degradation_of_classes_is_measured_on_their_shares():
    """A softmax ignores what all logits of an image have in common; the logits alone would call it degradation."""
    random = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.float32)[random.integers(0, 3, 300)]
    logits = (2 * labels + random.normal(0, 1, labels.shape)).astype(np.float32)
    moved = logits + random.normal(0, 3, (300, 1)).astype(np.float32)
    degradation = degradation_of(labels, moved, logits, activation="softmax")
    assert degradation.broken(0.0005) == []
    assert degradation.logit_distance < 1e-6
    assert len(degradation_of(labels, moved, logits).broken(0.0005)) == 3, "control: as independent findings"
    turned = degradation_of(labels, logits[:, [1, 2, 0]], logits, activation="softmax")
    assert len(turned.broken(0.0005)) == 3


def test_drop_is_measured_in_pairs_on_the_same_patients(images):
    """What makes a set of patients hard for both models cancels out."""
    labels, logits = images
    worse = logits + 0.4 * np.random.default_rng(5).normal(size=logits.shape)
    drop, gain = degradation_of(labels, worse, logits).auroc_drop, degradation_of(labels, logits, worse).auroc_drop
    assert drop.value == pytest.approx(mean_auroc(labels, logits) - mean_auroc(labels, worse))
    assert (drop.value, drop.low, drop.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    alone = degradation_of(labels, logits, logits).auroc
    assert drop.high - drop.low < 0.6 * (alone.high - alone.low)

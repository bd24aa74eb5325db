"""What a step did on dev: three measures, each of which sees what the others do not."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.evaluate.degradation import measure_harm

ONES = np.ones(1, np.float32)


@pytest.fixture(scope="module")
def films():
    random = np.random.default_rng(0)
    labels = (random.random((400, 1)) < 0.4).astype(np.float32)
    return labels, (2 * labels - 1 + random.normal(0, 1, labels.shape)).astype(np.float32)


def test_harm_of_nothing_is_nothing(films):
    labels, logits = films
    harm = measure_harm(labels, logits, logits, ONES)
    assert (harm.auroc_drop, harm.loss_rise, harm.logit_distance) == (0, 0, 0)
    assert harm.broken(0.0) == []


def test_harm_that_keeps_the_order_shows_in_loss_and_distance(films):
    """Every logit moved by 3: AUROC, which knows only the order, does not see it."""
    labels, logits = films
    harm = measure_harm(labels, logits + 3, logits, ONES)
    assert harm.auroc_drop == 0
    assert [text.split(" 0.")[0].split(" 1.")[0].split(" 2.")[0] for text in harm.broken(0.005)] == [
        "rise of the loss",
        "distance of the logits",
    ]


def test_harm_to_the_order_shows_in_auroc(films):
    labels, logits = films
    shuffled = logits[np.random.default_rng(1).permutation(len(logits))]
    harm = measure_harm(labels, shuffled, logits, ONES)
    assert harm.auroc_drop > 0.2
    assert harm.broken(0.005)[0].startswith("AUROC drop")


def test_harm_without_a_measurable_auroc_does_not_pass(films):
    labels, logits = films
    harm = measure_harm(np.zeros_like(labels), logits, logits, ONES)
    assert np.isnan(harm.auroc_drop)
    assert harm.broken(0.005)


def test_harm_leaves_unknown_labels_out(films):
    labels, logits = films
    known, moved = labels.copy(), logits.copy()
    known[:50], moved[:50] = np.nan, 0.0
    harm = measure_harm(known, moved, logits, ONES)
    assert (harm.auroc_drop, harm.loss_rise) == (0, 0)
    assert harm.logit_distance > 0


def test_harm_of_classes_is_measured_on_their_shares():
    """What all logits of an image have in common is nothing to a softmax; the logits alone would call it harm."""
    random = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.float32)[random.integers(0, 3, 300)]
    logits = (2 * labels + random.normal(0, 1, labels.shape)).astype(np.float32)
    moved = logits + random.normal(0, 3, (300, 1)).astype(np.float32)
    ones = np.ones(3, np.float32)
    harm = measure_harm(labels, moved, logits, ones, "softmax")
    assert harm.broken(0.0005) == []
    assert harm.logit_distance < 1e-6
    assert len(measure_harm(labels, moved, logits, ones).broken(0.0005)) == 3, "control: as independent findings"
    turned = measure_harm(labels, logits[:, [1, 2, 0]], logits, ones, "softmax")
    assert len(turned.broken(0.0005)) == 3

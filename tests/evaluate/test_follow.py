"""Probabilities of a file without labels follow the original's: the thresholds then mean what they meant."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.evaluate import follow_info, undo_class_weights

WEIGHTS = np.array([3.0, 1.0])


def info(count: int = 2, activation: str = "sigmoid") -> ModelInfo:
    ones = (1.0,) * count
    labels = tuple(f"finding {k}" for k in range(count))
    shared = {"threshold_source": "the original's", "quant_type": "int8", "activation": activation}
    return ModelInfo("small", labels, PreprocessSpec(8, 8), ones, (0.0,) * count, (0.3,) * count, **shared)


@pytest.fixture(scope="module")
def theirs():
    return np.random.default_rng(0).normal(0, 2, (400, 2))


def probabilities(found: ModelInfo, logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(np.asarray(found.logit_slope) * logits + np.asarray(found.logit_offset))))


def test_logits_that_were_stretched_and_moved_give_the_probabilities_of_the_original_again(theirs):
    ours = 0.4 * theirs + 5
    found = follow_info(info(), ours, theirs, WEIGHTS, images="400 images")
    target = undo_class_weights(theirs, WEIGHTS)
    np.testing.assert_allclose(probabilities(found, ours), target, atol=1e-4)
    assert np.abs(probabilities(info(), ours) - target).max() > 0.5, "control: as they are"
    assert found.thresholds == (0.3, 0.3)
    assert found.threshold_source == "the original's"
    assert found.calibration_source.startswith("slope and offset fitted so that probabilities follow the original")
    assert "whether those are right was not measured" in found.calibration_source


def test_a_side_that_is_hardly_there_gets_no_slope_of_noise(theirs):
    """All images far below the threshold: a fit would shrink whatever the noise is, and miss the first positive."""
    healthy = np.random.default_rng(1).normal(-9, 0.5, (400, 2))
    ours = healthy + np.random.default_rng(2).normal(2, 0.5, healthy.shape)
    found = follow_info(info(), ours, healthy, np.ones(2), images="400 images")
    assert found.logit_slope == (1.0, 1.0)
    np.testing.assert_allclose(found.logit_offset, healthy.mean(axis=0) - ours.mean(axis=0))
    assert "of finding 0, finding 1 the offset alone" in found.calibration_source
    # Of one finding with both sides beside it, only the other is said.
    mixed = np.stack([healthy[:, 0], theirs[:, 1]], axis=1)
    both = follow_info(info(), mixed + 1, mixed, np.ones(2), images="400 images")
    assert "of finding 0 the offset alone" in both.calibration_source


def test_few_images_and_constant_answers_are_no_ground_for_a_slope(theirs):
    few = follow_info(info(), 2 * theirs[:4], theirs[:4], np.ones(2), images="4 images")
    assert few.logit_slope == (1.0, 1.0)
    constant = follow_info(info(), np.full_like(theirs, 3.0), theirs, np.ones(2), images="400 images")
    assert constant.logit_slope == (1.0, 1.0)
    np.testing.assert_allclose(constant.logit_offset, theirs.mean(axis=0) - 3)


def test_classes_that_exclude_one_another_get_one_slope():
    theirs = np.random.default_rng(3).normal(0, 2, (400, 3))
    found = follow_info(info(3, "softmax"), 0.5 * theirs, theirs, np.ones(3), images="400 images")
    assert found.logit_slope[0] == found.logit_slope[1] == found.logit_slope[2]
    assert found.logit_slope[0] == pytest.approx(2, rel=0.1)
    assert "one slope for all classes" in found.calibration_source

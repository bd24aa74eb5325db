"""What a file says of its probabilities and thresholds comes from its own logits, and says where from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cxr_compress.device.modelfile import ModelInfo, read_model
from cxr_compress.errors import DataError
from cxr_compress.evaluate import choose_calibration, file_logits, fit_info, fittable
from tests.device.reference import INT8_MODEL

IMAGES = "400 dev images of somewhere"


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    """Of three findings, nothing fitted."""
    own = read_model(INT8_MODEL).info
    return replace(
        own,
        labels=("Effusion", "Mass", "Nodule"),
        logit_slope=(1.0,) * 3,
        logit_offset=(0.0,) * 3,
        thresholds=(0.5,) * 3,
        threshold_source="0.5 by default",
        calibration_source="not fitted",
        reference=None,
    )


def drawn(count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits twice as sure as they should be."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, count)) * 2
    return (rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32), 2 * logits


def test_fit_info_writes_what_choose_calibration_finds(info: ModelInfo) -> None:
    labels, logits = drawn()
    chosen = choose_calibration(labels, logits, np.ones(3))
    fitted = fit_info(info, labels, logits, np.ones(3), images=IMAGES)
    assert (fitted.logit_slope, fitted.logit_offset, fitted.thresholds) == chosen[:3]
    assert np.allclose(fitted.logit_slope, 0.5, atol=0.15)  # 400 images pin a slope of 0.5 to about 0.05
    assert fitted.threshold_source == (
        "largest sensitivity + specificity on 400 dev images of somewhere, patients held out of training; choose your "
        "own before any use"
    )
    assert fitted.calibration_source == "Platt scaling fitted on 400 dev images of somewhere"
    assert (
        replace(
            fitted,
            **{
                name: getattr(info, name)
                for name in ("logit_slope", "logit_offset", "thresholds", "threshold_source", "calibration_source")
            },
        )
        == info
    )  # nothing else changed


def test_fit_info_of_some_findings_leaves_the_others_and_says_so(info: ModelInfo) -> None:
    labels, logits = drawn(2)
    fitted = fit_info(info, labels, logits, np.ones(2), images=IMAGES, held_out="others", columns=[2, 0])
    chosen = choose_calibration(labels, logits, np.ones(2))
    assert fitted.thresholds == (chosen.thresholds[1], 0.5, chosen.thresholds[0])
    assert (fitted.logit_slope[1], fitted.logit_offset[1]) == (1.0, 0.0)
    assert fitted.threshold_source.endswith(", others; choose your own before any use; of Mass: 0.5 by default")
    assert fitted.calibration_source.endswith("; of Mass: not fitted")


def test_fit_info_of_images_without_a_class_fails(info: ModelInfo) -> None:
    labels, logits = drawn()
    labels[:, 1] = 0
    assert fittable(labels) == [0, 2]
    with pytest.raises(DataError, match="a threshold needs images with and without the finding, got 0 with and 400 w"):
        fit_info(info, labels, logits, np.ones(3), images=IMAGES)


def test_file_logits_are_those_of_the_classifier() -> None:
    file = read_model(INT8_MODEL)
    spec = file.info.preprocess
    images = np.random.default_rng(1).integers(0, 255, (5, spec.height, spec.width), np.uint8)
    told: list[tuple[int, int]] = []
    found = file_logits(file.content, file.info, images, progress=lambda *done: told.append(done))
    assert found.shape == (5, len(file.info.labels))
    assert found.std() > 0
    assert told == [(5, 5)]

"""Platt scaling: gives back what made the labels, stays finite, changes no order, and refuses what says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.evaluate import choose_calibration
from cxr_compress.evaluate.calibrate import fit_platt
from cxr_compress.metrics import ENOUGH_IMAGES


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def images(count: int, slope: float, offset: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels that occur with probability sigmoid(slope * logit + offset)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.0, 3.0, count)
    return (rng.uniform(size=count) < sigmoid(slope * logits + offset)).astype(np.float64), logits


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.3, -2.0), (2.5, 1.0)])
def test_fit_platt_finds_the_slope_and_offset_that_made_the_labels(slope: float, offset: float) -> None:
    found = fit_platt(*images(40_000, slope, offset))
    assert found is not None
    # Standard errors at 40,000 images: some 1.5 % of the slope, 0.03 of the offset; four of them.
    assert found[0] == pytest.approx(slope, rel=0.06)
    assert found[1] == pytest.approx(offset, abs=0.12)


def test_fit_platt_is_the_minimum_of_the_smoothed_cross_entropy() -> None:
    """Against a plain search around it, with Platt's targets written out."""
    labels, logits = images(300, 0.7, -1.0)
    found = fit_platt(labels, logits)
    assert found is not None
    n, m = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(slope: float, offset: float) -> float:
        z = slope * logits + offset
        return float((np.logaddexp(0, z) - target * z).sum())

    best = loss(*found)
    for direction in np.linspace(0, 2 * np.pi, 16):
        assert loss(found[0] + 1e-3 * np.cos(direction), found[1] + 1e-3 * np.sin(direction)) > best


def test_fit_platt_separated_classes_keep_a_finite_slope() -> None:
    labels = np.repeat([0.0, 1.0], 50)
    found = fit_platt(labels, np.where(labels == 1, 5.0, -5.0))
    assert found is not None
    # 51/52 on one side and 1/52 on the other: logit(51/52) = log(51) = slope * 5.
    assert found == (pytest.approx(np.log(51) / 5, rel=1e-4), pytest.approx(0.0, abs=1e-4))


def test_fit_platt_logits_that_fall_or_never_move_fit_nothing() -> None:
    labels, logits = images(500, 1.0, 0.0)
    assert fit_platt(labels, -logits) is None
    assert fit_platt(labels, np.full(500, 2.0)) is None


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 1000), positives=st.integers(2, 58))
def test_fit_platt_probabilities_do_not_depend_on_the_unit_of_the_logits(
    scale: float, shift: float, seed: int, positives: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros(60)
    labels[:positives] = 1
    logits = rng.normal(size=60) + labels
    plain, moved = fit_platt(labels, logits), fit_platt(labels, logits * scale + shift)
    if plain is None or moved is None:
        assert plain is moved is None or min(abs(pair[0]) for pair in (plain, moved) if pair) < 1e-3
        return
    expected = sigmoid(plain[0] * logits + plain[1])
    # 1e3 shifts of logits scaled by 1e-3 lose six of sixteen digits; Newton stops within 1e-5 of the minimum.
    np.testing.assert_allclose(sigmoid(moved[0] * (logits * scale + shift) + moved[1]), expected, atol=1e-4)
    assert plain[0] > 0


def test_choose_calibration_fits_where_images_are_enough_and_says_which() -> None:
    labels, logits = images(2000, 0.5, -1.0)
    rare = np.zeros(2000)
    rare[: ENOUGH_IMAGES - 1] = 1
    found = choose_calibration(np.stack([labels, rare], 1), np.stack([logits, logits], 1), np.array([1.0, 8.0]))
    assert found.fitted == (True, False)
    assert found.slope[0] == pytest.approx(0.5, rel=0.2)
    assert (found.slope[1], found.offset[1]) == (1.0, pytest.approx(-np.log(8.0)))
    said = found.source("2000 dev images of x", ("a", "b"))
    assert (
        said == "Platt scaling fitted on 2000 dev images of x; of b only the class weights of the training loss undone"
    )
    only = choose_calibration(rare[:, None], logits[:, None], np.array([8.0]))
    assert only.source("2000 dev images of x", ("b",)).startswith("class weights of the training loss undone; too few")


def test_choose_calibration_one_more_image_of_the_rare_class_is_enough() -> None:
    labels, logits = np.zeros(400), np.random.default_rng(0).normal(size=400)
    labels[:ENOUGH_IMAGES] = 1
    logits[:ENOUGH_IMAGES] += 1
    assert choose_calibration(labels[:, None], logits[:, None], np.ones(1)).fitted == (True,)
    labels[0] = np.nan
    assert choose_calibration(labels[:, None], logits[:, None], np.ones(1)).fitted == (False,)


def test_choose_calibration_corrects_what_quantization_shifts() -> None:
    """Logits all 1.5 too high and half as steep: a file calibrated on itself gives the same probabilities."""
    labels, logits = images(5000, 1.0, -0.5)
    exact, moved = (
        choose_calibration(labels[:, None], values[:, None], np.ones(1)) for values in (logits, 0.5 * logits + 1.5)
    )
    before = sigmoid(exact.slope[0] * logits + exact.offset[0])
    after = sigmoid(moved.slope[0] * (0.5 * logits + 1.5) + moved.offset[0])
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert moved.thresholds == (pytest.approx(exact.thresholds[0], abs=1e-5),)

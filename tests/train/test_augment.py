"""Augmentation: a pure function of its generator, small in its effect, and never a mirror image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.recipe import AugmentRanges
from cxr_compress.train.batches import DEFAULT_RANGES, augment

NONE = AugmentRanges(shift=0, rotation=0, scale=0, contrast=0, brightness=0)


def image(shape=(48, 40), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(48, 40), (48, 40, 3)])
def test_augment_keeps_shape_and_dtype_and_leaves_its_argument_alone(shape):
    original = image(shape)
    kept = original.copy()
    changed = augment(original, np.random.default_rng(1))
    assert changed.shape == shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(original, kept)
    assert np.mean(changed != original) > 0.5


def test_augment_same_generator_state_gives_the_same_image():
    first, second, other = (augment(image(), np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def test_augment_ranges_of_zero_change_nothing():
    np.testing.assert_array_equal(augment(image(), np.random.default_rng(2), NONE), image())


def test_augment_ranges_of_zero_draw_as_many_numbers():
    generators = np.random.default_rng(3), np.random.default_rng(3)
    augment(image(), generators[0], NONE)
    augment(image(), generators[1])
    assert generators[0].random() == generators[1].random()


@given(seed=st.integers(0, 2**32))
def test_augment_spot_stays_on_its_side_and_near_its_place(seed):
    side = 64
    image = np.zeros((side, side), np.uint8)
    image[28:36, 8:16] = 200  # 20 px left of the middle
    ranges = AugmentRanges(contrast=0, brightness=0)
    moved = augment(image, np.random.default_rng(seed), ranges)
    column = np.average(np.arange(side), weights=moved.sum(axis=0, dtype=float))
    # Shift 0.06 * 64 px, scale 8 % of 20 px, 7 degrees move a point on the horizontal axis by under 0.2 px; 1 px grid.
    limit = ranges.shift * side + ranges.scale * 20 + 0.2 + 1.0
    assert abs(column - 11.5) < limit < 20


@given(seed=st.integers(0, 2**32))
def test_augment_exposure_never_reorders_gray_values(seed):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    ranges = AugmentRanges(shift=0, rotation=0, scale=0)
    changed = augment(ramp, np.random.default_rng(seed), ranges)[0].astype(int)
    assert np.all(np.diff(changed) >= 0)
    # Contrast acts around the mean (127.5), brightness on all; half a level of rounding.
    limit = DEFAULT_RANGES.contrast * 127.5 + DEFAULT_RANGES.brightness + 0.5
    assert np.abs(changed - np.arange(256)).max() <= limit


def test_augment_gamma_bends_gray_values_and_keeps_black_and_white():
    ranges = AugmentRanges(shift=0, rotation=0, scale=0, contrast=0, brightness=0, gamma=0.5)
    image = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    seen = [augment(image, np.random.default_rng(seed), ranges) for seed in range(20)]
    for changed in seen:
        assert (changed[0, 0], changed[-1, -1]) == (0, 255)
        assert np.all(np.diff(changed.ravel().astype(int)) >= 0)
        # 128 at the largest exponents, exp(0.5) and its inverse: 255 * (128 / 255) ** 1.649 = 81.8, ** 0.607 = 168
        assert 81 <= changed.ravel()[32] <= 169
    assert {int(changed.ravel()[32]) > int(image.ravel()[32]) for changed in seen} == {True, False}


def test_augment_mirror_is_off_by_default_and_mirrors_about_half():
    image = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    ranges = AugmentRanges(shift=0, rotation=0, scale=0, contrast=0, brightness=0, mirror=True)
    mirrored = [bool(augment(image, np.random.default_rng(seed), ranges)[0, 0]) for seed in range(100)]
    assert 30 < sum(mirrored) < 70  # 100 fair draws: 4 standard deviations are 20
    assert not AugmentRanges().mirror
    assert not any(augment(image, np.random.default_rng(seed), NONE)[0, 0] for seed in range(100))

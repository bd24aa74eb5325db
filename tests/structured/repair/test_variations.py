"""Varied copies: how many, of what, and that the images themselves stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_compress.structured import vary_images
from cxr_compress.structured.repair.variations import LEAST_IMAGES


def drawn(count: int, *shape: int) -> np.ndarray:
    """Smooth images, each of its own."""
    rng = np.random.default_rng(5)
    waves = np.cumsum(np.cumsum(rng.normal(size=(count, *shape)), axis=1), axis=2)
    low, high = (edge(waves, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    return ((waves - low) / (high - low) * 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 3)])
def test_every_image_is_followed_by_its_copies(shape):
    images = drawn(100, *shape)
    varied = vary_images(images)
    assert varied.shape == (300, *shape)
    assert varied.dtype == np.uint8
    assert np.array_equal(varied[::3], images)
    changes = np.abs(varied[1::3].astype(int) - images).mean(axis=tuple(range(1, images.ndim)))
    assert (changes > 1).all()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 12), most=st.one_of(st.none(), st.integers(1, 40)))
def test_there_are_no_more_than_fit_and_never_images_alone(count, most):
    images = drawn(count, 16, 16)
    varied = vary_images(images, most=most)
    assert any(np.array_equal(varied[0], image) for image in images)
    assert len(varied) >= 2
    if most is None:
        assert len(varied) >= max(LEAST_IMAGES, 2 * count)
    else:
        assert len(varied) <= max(2, most)


def test_a_seed_gives_the_same_copies_and_another_gives_others():
    images = drawn(3, 16, 16)
    first, again, other = (vary_images(images, most=12, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("levels", [1, 6, 25])
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_no_copy_of_a_dark_image_is_black(levels, shape):
    dark = np.round(drawn(20, *shape) / 255 * levels).astype(np.uint8)
    for seed in range(3):
        varied = vary_images(dark, seed=seed)
        assert np.ptp(varied.reshape(len(varied), 256, -1), axis=1).any(axis=1).all()

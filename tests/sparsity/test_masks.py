"""Masks: exactly as many zeros as asked for, the smallest weights first, ties in a fixed order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxr_compress.sparsity.masks import exact_mask, zeros_wanted

# Few distinct values, so that most kernels have ties.
KERNELS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]),
)
SPARSITIES = st.floats(0.0, 0.999)


@given(kernel=KERNELS, target=SPARSITIES)
def test_exact_mask_zeroes_exactly_the_wanted_number_of_the_smallest(kernel, target):
    mask = exact_mask(kernel, target)
    assert mask.shape == kernel.shape
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert np.count_nonzero(mask == 0) == zeros_wanted(kernel.size, target)
    gone, kept = np.abs(kernel[mask == 0]), np.abs(kernel[mask == 1])
    assert gone.size == 0 or gone.max() <= kept.min()


@given(kernel=KERNELS, target=SPARSITIES, more=SPARSITIES)
def test_exact_mask_higher_target_only_adds_zeros(kernel, target, more):
    low, high = sorted((target, more))
    assert np.all(exact_mask(kernel, high) <= exact_mask(kernel, low))


@given(kernel=KERNELS, target=SPARSITIES, seed=st.integers(0, 99))
def test_exact_mask_weights_zeroed_before_go_before_all_others(kernel, target, seed):
    held = (np.random.default_rng(seed).random(kernel.shape) < 0.5).astype(np.float32)
    mask = exact_mask(kernel, target, held=held)
    gone_before, gone_now = held == 0, mask == 0
    if gone_now.sum() >= gone_before.sum():
        assert np.all(gone_now[gone_before])
    else:
        assert np.all(gone_before[gone_now])


def test_exact_mask_equal_weights_lose_the_last_ones():
    np.testing.assert_array_equal(exact_mask(np.ones((2, 4)), 0.5), [[1, 1, 1, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("weights", "target", "expected"),
    [(10, 0.5, 5), (9, 0.5, 5), (7, 0.5, 4), (1000, 0.7, 700), (4, 0.99, 3), (1, 0.5, 0), (10, 0.0, 0), (8, 0.7, 6)],
)
def test_zeros_wanted_rounds_halves_up_and_keeps_one_weight(weights, target, expected):
    assert zeros_wanted(weights, target) == expected

"""Masks: exactly as many zeros as asked for, the smallest weights first, ties in a fixed order, in every pattern."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxr_compress.keras2 import keras, tfmot
from cxr_compress.sparsity import SparsityTarget
from cxr_compress.sparsity.allocate import zeros_wanted
from cxr_compress.sparsity.masks import block_magnitudes, exact_mask, why_not, zeros_of_two_of_four

# Few distinct values, so that most kernels have ties.
VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0])
KERNELS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=VALUES)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 11), st.integers(1, 4))
GROUPED = hnp.arrays(np.float32, SHAPES, elements=VALUES)
SPARSITIES = st.floats(0.0, 0.999)
FREE = SparsityTarget(sparsity=0.5)
TWO_OF_FOUR = SparsityTarget(pattern="2:4", schedule="constant")
BLOCKS = SparsityTarget(sparsity=0.5, pattern="block", block=(2, 3))


def cut(kernel, sparsity, held=None):
    return exact_mask(kernel, zeros_wanted(kernel.size, sparsity), FREE, held)


@given(kernel=KERNELS, target=SPARSITIES)
def test_exact_mask_zeroes_exactly_the_wanted_number_of_the_smallest(kernel, target):
    mask = cut(kernel, target)
    assert mask.shape == kernel.shape
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert np.count_nonzero(mask == 0) == zeros_wanted(kernel.size, target)
    gone, kept = np.abs(kernel[mask == 0]), np.abs(kernel[mask == 1])
    assert gone.size == 0 or gone.max() <= kept.min()


@given(kernel=KERNELS, target=SPARSITIES, more=SPARSITIES)
def test_exact_mask_higher_target_only_adds_zeros(kernel, target, more):
    low, high = sorted((target, more))
    assert np.all(cut(kernel, high) <= cut(kernel, low))


@given(kernel=KERNELS, target=SPARSITIES, seed=st.integers(0, 99))
def test_exact_mask_weights_zeroed_before_go_before_all_others(kernel, target, seed):
    held = (np.random.default_rng(seed).random(kernel.shape) < 0.5).astype(np.float32)
    mask = cut(kernel, target, held=held)
    gone_before, gone_now = held == 0, mask == 0
    if gone_now.sum() >= gone_before.sum():
        assert np.all(gone_now[gone_before])
    else:
        assert np.all(gone_before[gone_now])


def test_exact_mask_equal_weights_lose_the_last_ones():
    np.testing.assert_array_equal(cut(np.ones((2, 4)), 0.5), [[1, 1, 1, 1], [0, 0, 0, 0]])


@given(kernel=GROUPED)
def test_two_of_four_groups_along_the_input_channels_keep_two(kernel):
    mask = exact_mask(kernel, 0, TWO_OF_FOUR)
    assert np.count_nonzero(mask == 0) == zeros_of_two_of_four(kernel.shape)
    for start in range(0, kernel.shape[2], 4):
        group, kept = np.abs(kernel[:, :, start : start + 4]), mask[:, :, start : start + 4]
        np.testing.assert_array_equal(kept.sum(axis=2), min(2, group.shape[2]))
        largest_gone = np.where(kept == 0, group, -1).max(axis=2)
        assert np.all(np.where(kept == 1, group, np.inf).min(axis=2) >= largest_gone)


@pytest.mark.parametrize("shape", [(8, 5), (3, 3, 7, 4), (1, 1, 9, 3), (1, 1, 2, 3)])
def test_two_of_four_is_what_tfmot_makes_of_the_same_kernel(shape):
    kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    ours = exact_mask(kernel, 0, TWO_OF_FOUR)
    utils = _tfmot_utils()
    theirs = utils.generate_m_by_n_mask(utils.weights_rearrange(tf.constant(kernel)), (2, 4))
    np.testing.assert_array_equal(ours, utils.m_by_n_sparsity_mask_prepare(theirs, tf.constant(kernel).shape).numpy())
    assert utils.is_pruned_m_by_n(tf.constant(kernel * ours))
    assert utils.is_pruned_m_by_n(tf.constant(kernel)) == (shape[-2] <= 2)  # the control


def test_two_of_four_held_weights_go_before_larger_ones_and_before_padding():
    kernel = np.array([9.0, 8, 1, 2, 9, 8, 7], np.float32).reshape(1, 1, 7, 1)
    held = np.array([0.0, 1, 0, 1, 0, 1, 1], np.float32).reshape(kernel.shape)
    mask = exact_mask(kernel, 0, TWO_OF_FOUR, held)
    np.testing.assert_array_equal(mask.ravel(), [0, 1, 0, 1, 0, 1, 1])


@given(kernel=hnp.arrays(np.float32, (6, 9), elements=VALUES), blocks=st.integers(0, 8))
def test_block_mask_zeroes_whole_blocks_the_smallest_means_first(kernel, blocks):
    mask = exact_mask(kernel, blocks * 6, BLOCKS)
    tiles = mask.reshape(3, 2, 3, 3).transpose(0, 2, 1, 3).reshape(9, 6)
    assert np.all(tiles.min(axis=1) == tiles.max(axis=1))
    gone = tiles[:, 0] == 0
    assert gone.sum() == blocks
    means = block_magnitudes(kernel, (2, 3)).ravel()
    assert not gone.any() or gone.all() or means[gone].max() <= means[~gone].min()


@pytest.mark.parametrize("block", [(1, 4), (2, 2), (4, 1)])
def test_block_mask_is_what_tfmot_makes_of_the_same_kernel(block):
    target = SparsityTarget(sparsity=0.5, pattern="block", block=block)
    schedule = tfmot().sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    layer = tfmot().sparsity.keras.prune_low_magnitude(
        keras.layers.Dense(8, use_bias=False), pruning_schedule=schedule, block_size=block
    )
    layer.build((None, 12))
    kernel = np.random.default_rng(2).normal(size=(12, 8)).astype(np.float32)
    layer.layer.kernel.assign(kernel)
    layer.pruning_step.assign(1)
    layer.pruning_obj.conditional_mask_update()
    ((_, theirs, _),) = layer.pruning_vars
    np.testing.assert_array_equal(exact_mask(kernel, 48, target), theirs.numpy())
    assert np.count_nonzero(theirs.numpy() == 0) == 48


@pytest.mark.parametrize(
    ("target", "shape", "reason"),
    [
        (FREE, (3, 3, 1, 1), None),
        (TWO_OF_FOUR, (3, 3, 3, 8), None),
        (TWO_OF_FOUR, (3, 3, 2, 8), "2:4 needs more than two input channels, it has 2"),
        (BLOCKS, (4, 6), None),
        (BLOCKS, (1, 1, 4, 6), "TF-MOT prunes blocks in rank-2 kernels only, this one has rank 4"),
        (BLOCKS, (4, 7), "its 4x7 kernel does not divide into blocks of 2x3"),
    ],
)
def test_why_not_says_which_kernels_a_pattern_cannot_prune(target, shape, reason):
    assert why_not(shape, target) == reason


def _tfmot_utils():
    tfmot()  # imports TF-MOT after the Keras it needs
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils

    return pruning_utils

"""Deciding the zeros of every kernel before training: counts by hand, words for the user, refusals in one line."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.zeros import kernel_of, prunable_layers
from cxr_compress.sparsity import SparsityTarget, allocate, layer_outcomes
from tests.nets import chain, nested

layers = keras.layers


def two_dense() -> keras.Model:
    """wide 4 -> narrow(3) -> hidden(2) -> logits(1), with kernels of known numbers.

    narrow: 1..12 / 10        hidden: 0.05, 0.15, ..., 0.55
    """
    model = keras.Sequential(
        [
            layers.Dense(3, input_shape=(4,), name="narrow"),
            layers.Dense(2, name="hidden"),
            layers.Dense(1, name="logits"),
        ],
        name="two_dense",
    )
    model.get_layer("narrow").kernel.assign((np.arange(12, dtype=np.float32).reshape(4, 3) + 1) / 10)
    model.get_layer("hidden").kernel.assign(np.arange(6, dtype=np.float32).reshape(3, 2) / 10 + 0.05)
    return model


def zeros(allocation):
    return {layer.name: layer.zeros for layer in allocation.layers}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sparsity": 0.5}, {"narrow": 6, "hidden": 3}),
        # The 9 smallest of all: .05 .1 .15 .2 .25 .3 .35 .4 .45.
        ({"sparsity": 0.5, "allocation": "global"}, {"narrow": 4, "hidden": 5}),
        # 9 stay, in shares of 4+3 to 3+2: 5.25 and 3.75.
        ({"sparsity": 0.5, "allocation": "erk"}, {"narrow": 12 - 5, "hidden": 6 - 4}),
        ({"threshold": 0.3}, {"narrow": 2, "hidden": 3}),  # 0.3 itself is not below it
        ({"pattern": "2:4", "schedule": "constant"}, {"narrow": 2 * 3, "hidden": 1 * 2}),
    ],
)
def test_allocate_counts_by_hand(fields, expected):
    allocation = allocate(two_dense(), SparsityTarget(**fields))
    assert zeros(allocation) == expected
    assert allocation.zeros == sum(expected.values())
    assert allocation.weights == 12 + 6
    assert allocation.total == sum(expected.values()) / 18
    assert [layer.sparsity for layer in allocation.layers] == [expected["narrow"] / 12, expected["hidden"] / 6]


def test_allocate_leaves_the_model_as_it_is():
    model = two_dense()
    before = model.get_weights()
    allocate(model, SparsityTarget(sparsity=0.5, allocation="global"))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_allocate_threshold_in_standard_deviations_is_of_each_kernel():
    model = two_dense()
    kernel = model.get_layer("hidden").kernel
    kernel.assign(kernel * 100)
    target = SparsityTarget(threshold=1.0, threshold_unit="std")
    allocation = allocate(model, target)
    for layer in allocation.layers:
        values = kernel_of(prunable_layers(model)[layer.name]).numpy()
        assert layer.below == pytest.approx(values.std(), rel=1e-6)
        assert layer.zeros == np.count_nonzero(np.abs(values) < values.std())
    # Of equally spread numbers about the same share is below one deviation, whatever their scale.
    assert zeros(allocation) == {"narrow": 3, "hidden": 2}
    assert allocation.notes() == (
        "the threshold |w| < 1 standard deviations of each layer zeroes 5 of 18 weights (27.8%), counted before "
        "training",
    )


def test_allocate_threshold_above_a_whole_kernel_keeps_its_largest_and_says_so():
    allocation = allocate(two_dense(), SparsityTarget(threshold=0.7))
    assert zeros(allocation) == {"narrow": 6, "hidden": 5}
    assert [layer.kept_one for layer in allocation.layers] == [False, True]
    assert allocation.notes()[1] == "every weight of hidden is below the threshold: the largest of each is kept"


def test_allocate_global_ranking_that_nearly_empties_a_layer_says_so():
    model = keras.Sequential(
        [layers.Dense(10, input_shape=(10,), name="small"), layers.Dense(20, name="large"), layers.Dense(1)]
    )
    for name, scale in {"small": 0.01, "large": 1.0}.items():
        kernel = model.get_layer(name).kernel
        kernel.assign(scale * (1 + np.arange(np.prod(kernel.shape), dtype=np.float32).reshape(kernel.shape)))
    (line,) = allocate(model, SparsityTarget(sparsity=0.4, allocation="global")).notes()
    assert line == "the global ranking leaves almost nothing of small (99.0%); layer or erk spare them"
    assert allocate(model, SparsityTarget(sparsity=0.4)).notes() == ()


def test_allocate_blocks_leave_other_kernels_dense_and_name_them():
    model = chain()  # a, b: 3x3 kernels; hidden: (3*3*12) x 10, which is 27 x 5 blocks
    allocation = allocate(model, SparsityTarget(sparsity=0.5, pattern="block", block=(4, 2)))
    assert zeros(allocation) == {"a": 0, "b": 0, "hidden": 68 * 4 * 2}  # half of 135 blocks, the half rounded up
    assert list(allocation.pruned) == ["hidden"]
    assert allocation.notes() == (
        "left dense: a, b (TF-MOT prunes blocks in rank-2 kernels only, this one has rank 4)",
    )
    assert allocation.total < 0.5


def test_allocate_blocks_are_counted_whole_in_every_allocation():
    model = two_dense()
    for kind in ("layer", "global", "erk"):
        target = SparsityTarget(sparsity=0.6, pattern="block", block=(1, 2), allocation=kind)
        # narrow has 3 columns, which blocks of 2 do not divide: hidden alone, 2 of its 3 blocks.
        assert zeros(allocate(model, target)) == {"narrow": 0, "hidden": 4}


@pytest.mark.parametrize(
    ("build", "target", "error", "message"),
    [
        (
            two_dense,
            SparsityTarget(threshold=0.01),
            CompressionError,
            r"no weight of two_dense would become zero with \|w\| < 0.01: ask for more; its smallest magnitude is 0.05",
        ),
        (
            two_dense,
            SparsityTarget(sparsity=0.01),
            CompressionError,
            "no weight of two_dense would become zero with sparsity 0.01",
        ),
        (
            nested,
            SparsityTarget(sparsity=0.5, pattern="block", block=(4, 4)),
            UnsupportedLayerError,
            r"block fits no kernel of nested: backbone/stem, backbone/body \(TF-MOT prunes blocks in rank-2 kernels "
            r"only, .* rank 4\); hidden \(its 10x6 kernel does not divide .* 4x4\); choose the pattern unstructured",
        ),
    ],
)
def test_allocate_target_that_reaches_nothing_is_an_error(build, target, error, message):
    with pytest.raises(error, match=message):
        allocate(build(), target)


def test_allocate_kernel_that_is_no_number_is_named():
    model = two_dense()
    model.get_layer("hidden").kernel.assign(np.full((3, 2), np.nan))
    with pytest.raises(CompressionError, match="the kernels of hidden hold NaN or infinity"):
        allocate(model, SparsityTarget(sparsity=0.5))


def test_layer_outcomes_show_what_was_asked_beside_what_is_there():
    model = two_dense()
    allocation = allocate(model, SparsityTarget(threshold=0.3))
    kernel = model.get_layer("narrow").kernel
    values = kernel.numpy()
    values.ravel()[:3] = [0, 0, 0.29]  # pruned, and one more weight drifted below the threshold
    kernel.assign(values)
    narrow, hidden = layer_outcomes(model, allocation)
    assert (narrow.name, narrow.weights, narrow.zeros_asked, narrow.zeros) == ("narrow", 12, 2, 2)
    assert (narrow.threshold, narrow.still_below, narrow.sparsity) == (0.3, 1, 2 / 12)
    assert (hidden.zeros_asked, hidden.zeros, hidden.still_below) == (3, 0, 3)
    assert layer_outcomes(model, allocate(model, SparsityTarget(sparsity=0.5)))[0].still_below is None

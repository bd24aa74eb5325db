"""Sharing zeros out: the total is exact, no kernel is emptied, more never gives a kernel fewer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.sparsity.allocate import erk_zeros, global_zeros, layer_zeros, zeros_wanted

SPARSITIES = st.floats(0.001, 0.999)
SIDES = st.integers(1, 6)
SHAPES = st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES) | st.tuples(SIDES, SIDES), min_size=1, max_size=6)
# Few distinct values, so that most rankings have ties within and between kernels.
VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0])
KERNELS = st.lists(st.lists(VALUES, min_size=1, max_size=20), min_size=1, max_size=5)


def named(items):
    return {f"kernel{place}": item for place, item in enumerate(items)}


def sizes_of(shapes):
    return {name: int(np.prod(shape)) for name, shape in shapes.items()}


def reachable(units, sparsity):
    """The wanted total, or all but one unit per kernel."""
    total = sum(units.values())
    return min(zeros_wanted(total, sparsity), total - len(units))


@pytest.mark.parametrize(
    ("weights", "target", "expected"),
    [(10, 0.5, 5), (9, 0.5, 5), (7, 0.5, 4), (1000, 0.7, 700), (4, 0.99, 3), (1, 0.5, 0), (10, 0.0, 0), (8, 0.7, 6)],
)
def test_zeros_wanted_rounds_halves_up_and_keeps_one_weight(weights, target, expected):
    assert zeros_wanted(weights, target) == expected


@given(shapes=SHAPES, sparsity=SPARSITIES)
def test_layer_zeros_total_is_exact_within_half_a_weight_per_kernel(shapes, sparsity):
    units = sizes_of(named(shapes))
    zeros = layer_zeros(units, sparsity)
    assert all(0 <= zeros[name] < units[name] for name in units)
    # Rounding moves each kernel by at most 1/2, keeping one weight by less than 1.
    assert abs(sum(zeros.values()) - sparsity * sum(units.values())) <= len(units)


@given(kernels=KERNELS, sparsity=SPARSITIES)
def test_global_zeros_total_is_exact_and_every_kernel_keeps_its_largest(kernels, sparsity):
    magnitudes = {name: np.array(values, np.float32) for name, values in named(kernels).items()}
    zeros = global_zeros(magnitudes, sparsity)
    assert sum(zeros.values()) == reachable({name: values.size for name, values in magnitudes.items()}, sparsity)
    assert all(0 <= zeros[name] < values.size for name, values in magnitudes.items())
    gone = [np.sort(values)[: zeros[name]] for name, values in magnitudes.items()]
    # All that stays, but for the one unit that each kernel keeps anyway, is at least as large as all that goes.
    kept = [np.sort(values)[zeros[name] : -1] for name, values in magnitudes.items()]
    gone, kept = np.concatenate(gone), np.concatenate(kept)
    assert not gone.size or not kept.size or gone.max() <= kept.min()


def test_global_zeros_small_weights_of_one_layer_go_first():
    magnitudes = {"small": np.full(8, 0.1) * np.arange(1, 9), "large": np.full(8, 10.0)}
    assert global_zeros(magnitudes, 0.25) == {"small": 4, "large": 0}
    assert layer_zeros({"small": 8, "large": 8}, 0.25) == {"small": 2, "large": 2}  # what it is not


def test_global_zeros_of_equal_weights_the_later_kernel_loses_first():
    equal = {name: np.ones(4) for name in ("first", "second", "third")}
    # 6 of 12: three of "third" (its first one is kept), then three of "second".
    assert global_zeros(equal, 0.5) == {"first": 0, "second": 3, "third": 3}


@given(shapes=SHAPES, sparsity=SPARSITIES)
def test_erk_zeros_total_is_exact_and_no_kernel_is_emptied(shapes, sparsity):
    shapes = named(shapes)
    units = sizes_of(shapes)
    zeros = erk_zeros(shapes, units, sparsity)
    assert sum(zeros.values()) == reachable(units, sparsity)
    assert all(0 <= zeros[name] < units[name] for name in shapes)


@given(shapes=SHAPES, sparsity=SPARSITIES)
def test_erk_zeros_kernels_that_are_not_full_keep_in_proportion_to_the_sum_of_their_sides(shapes, sparsity):
    shapes = named(shapes)
    units = sizes_of(shapes)
    zeros = erk_zeros(shapes, units, sparsity)
    kept = {name: units[name] - zeros[name] for name in shapes}
    inside = [name for name in shapes if 1 < kept[name] < units[name]]
    # Rounded at one scale: kept is within 1/2 of scale * sum(sides), so these intervals of the scale all overlap.
    lowest = max((((kept[name] - 0.5) / sum(shapes[name])) for name in inside), default=0.0)
    highest = min((((kept[name] + 0.5) / sum(shapes[name])) for name in inside), default=1.0)
    assert lowest <= highest * (1 + 1e-9)
    for name in shapes:
        if kept[name] == units[name] and inside:  # full: the scale would give it all it has, or more, but for rounding
            assert highest * sum(shapes[name]) >= units[name] - 0.5 - 1e-6


def test_erk_zeros_by_hand_with_one_kernel_clipped_at_dense():
    shapes = {"stem": (1, 1, 2, 2), "wide": (1, 1, 20, 20), "wider": (1, 1, 20, 40)}
    units = {"stem": 4, "wide": 400, "wider": 800}
    # 301 of 1204 stay. Sides sum to 6, 42, 62: the scale 301/110 gives the stem 16 of its 4, so it is full; the other
    # 297 are shared 42 : 62, which is 119.94 and 177.06.
    assert erk_zeros(shapes, units, 0.75) == {"stem": 0, "wide": 400 - 120, "wider": 800 - 177}


@pytest.mark.parametrize("kind", ["layer", "global", "erk"])
@given(shapes=SHAPES, one=SPARSITIES, other=SPARSITIES, seed=st.integers(0, 99))
def test_more_zeros_in_all_never_means_fewer_in_a_kernel(kind, shapes, one, other, seed):
    shapes = named(shapes)
    rng = np.random.default_rng(seed)
    magnitudes = {name: rng.integers(0, 5, shape).astype(np.float32) for name, shape in shapes.items()}
    units = sizes_of(shapes)

    def share(sparsity):
        if kind == "layer":
            return layer_zeros(units, sparsity)
        return global_zeros(magnitudes, sparsity) if kind == "global" else erk_zeros(shapes, units, sparsity)

    few, many = share(min(one, other)), share(max(one, other))
    assert all(few[name] <= many[name] for name in shapes)

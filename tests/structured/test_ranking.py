"""The order of removal on plain numbers: lower hulls of error over saving, and the curves they are read from."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.structured import Curve
from cxr_compress.structured.select import removal_ranks


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5)), max_size=12))
def test_removal_ranks_never_fall_and_spread_the_whole_error(steps):
    errors, savings = [step[0] for step in steps], [step[1] for step in steps]
    ranks = removal_ranks(errors, savings)
    assert len(ranks) == len(steps)
    assert ranks == sorted(ranks)
    # What is pooled is shared out, not lost: 12 sums of numbers up to 120 stay within 1e-9 in float64.
    assert abs(np.dot(ranks, savings) - sum(errors)) < 1e-9


def test_removal_ranks_are_the_slopes_of_the_lower_hull():
    # 4 then 0 save 1 each: together 2 a step; the third costs 3. A step that frees nothing and hurts goes last.
    assert removal_ranks([4.0, 0.0, 3.0, 1.0], [1.0, 1.0, 1.0, 0.0]) == [2.0, 2.0, 3.0, np.inf]
    assert removal_ranks([0.0, 0.0], [0.0, 1.0]) == [0.0, 0.0]


def test_curve_rises_is_linear_between_points_and_steep_behind_the_last():
    curve = Curve(8, (0.25, 0.5, 0.75), (0.2, 0.1, 0.4))
    np.testing.assert_allclose(curve.error_at([0, 0.125, 0.25, 0.5, 0.625, 0.75]), [0, 0.1, 0.2, 0.2, 0.3, 0.4])
    # The last slope is 0.2 in a quarter, the mean one 0.4 in three quarters.
    np.testing.assert_allclose(curve.error_at([1.0]), [0.6])
    flat = Curve(8, (0.25, 0.5), (1.0, 1.0))
    np.testing.assert_allclose(flat.error_at([1.0]), [2.0], err_msg="a destroyed output does not make the rest free")
    assert Curve(1, (), ()).error_at([0.0]).tolist() == [0.0]

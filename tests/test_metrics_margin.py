"""Losses against a margin: chances, power, how many more images, and Holm."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from cxr_compress.metrics import LEVEL, WANTED_POWER, Loss, holm
from cxr_compress.metrics.bootstrap import normal_of, student_of


@pytest.mark.parametrize("true_loss", [0.0, 0.004, 0.02])
def test_chances_are_those_of_student(true_loss) -> None:
    loss = Loss(0.004, 0.003, 100, 80)
    t = (0.004 - true_loss) / 0.003
    # Wallace's approximation of Student's distribution, with 79 degrees of freedom: to 4 digits.
    assert loss.chance_if(true_loss, so_small=True) == pytest.approx(student.cdf(t, 79), abs=5e-5)
    assert loss.chance_if(true_loss, so_small=False) == pytest.approx(student.sf(t, 79), abs=5e-5)
    if true_loss == 0.0:
        assert abs(loss.chance_if(0.0, so_small=False) - (1 - NormalDist().cdf(t))) > 1e-3, "control: a normal error"


@pytest.mark.parametrize("degrees", [5, 11, 20, 100])
def test_students_quantiles_are_those_of_scipy_and_back(degrees) -> None:
    for level in (0.9, 0.975, 0.998):
        z, t = NormalDist().inv_cdf(level), student.ppf(level, degrees)
        # What Wallace's bounds leave: most with few degrees, far out.
        assert student_of(z, degrees) == pytest.approx(t, rel=0.02)
        assert normal_of(student_of(-z, degrees), degrees) == pytest.approx(-z)


def test_a_loss_that_nobody_knows_shows_nothing() -> None:
    for loss in (Loss(math.nan, 0.01, 30, 30), Loss(0.0, math.nan, 30, 30)):
        assert loss.chance_if(0.01, so_small=True) == loss.chance_if(0.0, so_small=False) == 1.0
        assert loss.more_needed(0.01) is None
        assert math.isnan(Loss(0.0, math.nan, 30, 30).power(0.01))


def test_without_any_variation_only_equal_orders_or_many_images_show_that_nothing_is_lost() -> None:
    few, many, same = Loss(0.0, 0.0, 20, 20), Loss(0.0, 0.0, 400, 400), Loss(0.0, 0.0, 20, 20, same=True)
    assert few.chance_if(0.01, so_small=True) == pytest.approx(0.99**20)
    assert few.chance_if(0.01, so_small=True) > LEVEL > many.chance_if(0.01, so_small=True)
    assert same.chance_if(0.01, so_small=True) == 0.0
    # So many more that the chance falls to the level, and not one fewer.
    more = few.more_needed(0.01)
    assert more is not None
    assert 0.99 ** (20 + more) <= LEVEL < 0.99 ** (20 + more - 1)


def test_loss_of_resampled_values_has_their_spread_and_none_where_half_are_undefined() -> None:
    drawn = np.random.default_rng(0).normal(0.01, 0.002, 1000)
    # Of 50 patients: their own mean is 50 / 49 nearer to them than the truth is.
    assert Loss.of(0.01, drawn, 60, 50).spread == pytest.approx(drawn.std(ddof=1) * math.sqrt(50 / 49))
    assert math.isnan(Loss.of(0.01, drawn, 60, 1).spread)
    drawn[:501] = np.nan
    assert math.isnan(Loss.of(0.01, drawn, 60, 50).spread)
    assert Loss.of(0.01, drawn[500:], 60, 50).spread > 0, "control: a single undefined one changes nothing"


def test_more_needed_gives_the_wanted_power_and_one_percent_fewer_does_not() -> None:
    """Of a candidate that measured as good as its reference: the spread falls with the root of the images."""
    loss, margin = Loss(-0.001, 0.01, 4000, 3000), 0.01
    more = loss.more_needed(margin)
    assert more is not None
    total = 4000 + more

    def power(images: float) -> float:
        return Loss(0.0, 0.01 * math.sqrt(4000 / images), round(images), 3000).power(margin)

    # Student's 2999 degrees of freedom, which the number leaves out, take 0.0003 of the power; 1 % of the images 0.004.
    assert power(total) == pytest.approx(WANTED_POWER, abs=0.001)
    assert power(0.99 * total) < WANTED_POWER - 0.001


def test_more_needed_is_for_the_nearer_proof() -> None:
    # A loss of twice the margin is sooner shown to be there than one of half of it to be small.
    assert Loss(0.02, 0.02, 40, 40).more_needed(0.01) < Loss(0.005, 0.02, 40, 40).more_needed(0.01)  # type: ignore[operator]


def test_holm_is_that_of_its_paper() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_adjustment_and_bonferroni_and_keeps_the_order(chances) -> None:
    adjusted = holm(chances)
    assert all(p <= a <= min(1.0, len(chances) * p) + 1e-12 for p, a in zip(chances, adjusted, strict=True))
    order = np.argsort(chances, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()

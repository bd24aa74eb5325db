"""Losses against a margin: chances, power, how many more images, and Holm."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.metrics import LEVEL, WANTED_POWER, Loss, holm


@pytest.mark.parametrize("true_loss", [0.0, 0.004, 0.02])
def test_chances_are_those_of_a_normal_error(true_loss) -> None:
    loss = Loss(0.004, 0.003, 100)
    z = (0.004 - true_loss) / 0.003
    assert loss.chance_if(true_loss, so_small=True) == pytest.approx(NormalDist().cdf(z))
    assert loss.chance_if(true_loss, so_small=False) == pytest.approx(1 - NormalDist().cdf(z))


def test_a_loss_that_nobody_knows_shows_nothing() -> None:
    for loss in (Loss(math.nan, 0.01, 30), Loss(0.0, math.nan, 30)):
        assert loss.chance_if(0.01, so_small=True) == loss.chance_if(0.0, so_small=False) == 1.0
        assert loss.more_needed(0.01) is None
        assert math.isnan(Loss(0.0, math.nan, 30).power(0.01))


def test_without_any_variation_only_equal_orders_or_many_images_show_that_nothing_is_lost() -> None:
    few, many, same = Loss(0.0, 0.0, 20), Loss(0.0, 0.0, 400), Loss(0.0, 0.0, 20, same=True)
    assert few.chance_if(0.01, so_small=True) == pytest.approx(0.99**20)
    assert few.chance_if(0.01, so_small=True) > LEVEL > many.chance_if(0.01, so_small=True)
    assert same.chance_if(0.01, so_small=True) == 0.0
    # So many more that the chance falls to the level, and not one fewer.
    more = few.more_needed(0.01)
    assert more is not None
    assert 0.99 ** (20 + more) <= LEVEL < 0.99 ** (20 + more - 1)


def test_loss_of_resampled_values_has_their_spread_and_none_where_half_are_undefined() -> None:
    drawn = np.random.default_rng(0).normal(0.01, 0.002, 1000)
    assert Loss.of(0.01, drawn, 50).spread == pytest.approx(drawn.std(ddof=1))
    drawn[:501] = np.nan
    assert math.isnan(Loss.of(0.01, drawn, 50).spread)
    assert Loss.of(0.01, drawn[500:], 50).spread > 0, "control: a single undefined one changes nothing"


def test_more_needed_gives_the_wanted_power_and_one_image_fewer_does_not() -> None:
    """Of a candidate that measured as good as its reference: the spread falls with the root of the images."""
    loss, margin = Loss(-0.001, 0.01, 40), 0.01
    more = loss.more_needed(margin)
    assert more is not None
    powers = [Loss(0.0, 0.01 * math.sqrt(40 / (40 + n)), 40 + n).power(margin) for n in (more, more - 1)]
    assert powers[0] >= WANTED_POWER > powers[1]


def test_more_needed_is_for_the_nearer_proof() -> None:
    # A loss of twice the margin is sooner shown to be there than one of half of it to be small.
    assert Loss(0.02, 0.02, 40).more_needed(0.01) < Loss(0.005, 0.02, 40).more_needed(0.01)  # type: ignore[operator]


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

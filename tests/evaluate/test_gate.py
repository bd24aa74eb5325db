"""The verdict on a compressed model: bounds decided beforehand, and how often equals would pass."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cxr_compress.evaluate import Gate
from cxr_compress.metrics import Interval


def gate_of(value, low, high, **changes):
    return Gate.of(Interval(value, low, high), **{"max_loss": 0.005, "margin": 0.01, **changes})


@pytest.mark.parametrize(
    ("drop", "small", "non_inferior"),
    [
        ((0.001, -0.002, 0.004), True, True),
        ((0.001, -0.010, 0.012), True, False),  # few images: a small loss that may be a large one
        ((0.007, 0.005, 0.009), False, True),  # many images: surely worse, surely not by the margin
        ((0.03, 0.01, 0.05), False, False),
        ((-0.01, -0.02, 0.0), True, True),
        ((math.nan, math.nan, math.nan), False, False),  # nothing was measured: nothing holds
    ],
)
def test_gate_checks_loss_and_bound_separately(drop, small, non_inferior):
    gate = gate_of(*drop)
    assert (gate.small_loss, gate.non_inferior, gate.holds) == (small, non_inferior, small and non_inferior)
    assert gate.to_dict()["holds"] == gate.holds


def test_gate_bound_at_the_margin_does_not_hold():
    assert not gate_of(0.0, -0.01, 0.01).non_inferior


def test_gate_power_is_the_share_of_equal_models_that_pass():
    """Equal models: differences drawn around 0 with the spread that the interval shows pass as often as it says."""
    spread, margin = 0.004, 0.01
    gate = gate_of(0.0, -1.96 * spread, 1.96 * spread, margin=margin)
    drawn = np.random.default_rng(0).normal(0.0, spread, 200_000)
    passed = np.mean(-(drawn - 1.96 * spread) < margin)
    # 200,000 draws: a standard error of at most 0.0011; 1.96 is rounded.
    assert gate.power == pytest.approx(passed, abs=0.005)
    assert 0.5 < gate.power < 0.9, "control: neither always nor never"


def test_gate_power_falls_with_fewer_images():
    powers = [gate_of(0.0, -width, width).power for width in (0.002, 0.005, 0.01, 0.03)]
    assert powers == sorted(powers, reverse=True)
    assert gate_of(0.0, 0.0, 0.0).power == 1.0

"""Pruning schedules: the boundary steps, and runs that are too short for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import CompressionError
from cxr_compress.sparsity import PruningSteps, plan_steps
from cxr_compress.sparsity.tfmot import sparsity_api


@given(epochs=st.integers(1, 50), per_epoch=st.integers(1, 3000), ramp=st.floats(0.01, 1.0))
def test_plan_steps_any_run_of_two_steps_reaches_its_target_in_time(epochs, per_epoch, ramp):
    if epochs * per_epoch < 2:
        return
    steps = plan_steps(epochs, per_epoch, ramp)
    steps.check(epochs, per_epoch)
    assert steps.end_step <= max(1, ramp * epochs * per_epoch)
    assert steps.end_step // steps.frequency <= 100
    assert (steps.final_epoch(per_epoch) - 1) * per_epoch < steps.end_step <= steps.final_epoch(per_epoch) * per_epoch


@pytest.mark.parametrize(("end_step", "epoch"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2)])
def test_final_epoch_is_the_one_in_which_the_masks_become_final(end_step, epoch):
    assert PruningSteps(0, end_step, 1).final_epoch(10) == epoch


def test_planned_schedule_prunes_first_after_its_begin_and_last_at_its_end():
    steps = PruningSteps(begin_step=4, end_step=10, frequency=3)
    schedule = sparsity_api().PolynomialDecay(0.0, 0.6, begin_step=4, end_step=10, frequency=3)
    pruned = {step: float(schedule(step)[1]) for step in range(1, 15) if bool(schedule(step)[0])}
    assert list(pruned) == [4, 7, 10]
    # Cubic: 0.6 - 0.6 * (1 - 3/6)^3 half-way.
    assert list(pruned.values()) == pytest.approx([0.0, 0.6 - 0.6 / 8, 0.6])
    steps.check(epochs=2, steps_per_epoch=5)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (PruningSteps(0, 11, 1), r"ends at step 11, the run after 10 \(2 epochs of 5 batches\): train more epochs"),
        (PruningSteps(0, 10, 3), "every 3 steps from step 0, which misses end_step 10.*that divides 10"),
        (PruningSteps(5, 5, 1), "needs 0 <= begin_step < end_step and frequency >= 1, got begin_step 5, end_step 5"),
        (PruningSteps(-1, 5, 1), "got begin_step -1"),
        (PruningSteps(0, 5, 0), "frequency 0"),
    ],
)
def test_check_schedule_that_cannot_reach_its_target_is_an_error(steps, message):
    PruningSteps(0, 10, 1).check(epochs=2, steps_per_epoch=5)  # the last step of the run is just in time
    with pytest.raises(CompressionError, match=message):
        steps.check(epochs=2, steps_per_epoch=5)


def test_plan_steps_single_step_is_an_error():
    with pytest.raises(CompressionError, match="pruning needs at least 2 training steps, got 1: train more epochs"):
        plan_steps(1, 1)


@pytest.mark.parametrize("ramp", [0.0, 1.01, -0.5])
def test_plan_steps_impossible_ramp_is_an_error(ramp):
    with pytest.raises(CompressionError, match=rf"ramp_fraction must be in \(0, 1\], got {ramp}"):
        plan_steps(2, 10, ramp)

"""Pruning schedules: the boundary steps, and runs that are too short for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import tfmot
from cxr_compress.sparsity import PruningSteps, SparsityTarget, plan_steps
from cxr_compress.sparsity.prune import make_schedule


@given(epochs=st.integers(1, 50), per_epoch=st.integers(1, 3000), ramp=st.floats(0.01, 1.0))
def test_plan_steps_any_run_of_two_steps_reaches_its_target_in_time(epochs, per_epoch, ramp):
    if epochs * per_epoch < 2:
        return
    steps = plan_steps(epochs, per_epoch, ramp)
    steps.check(epochs, per_epoch)
    assert steps.end_step <= max(1, ramp * epochs * per_epoch)
    assert steps.end_step // steps.frequency <= 100
    assert (steps.final_epoch(per_epoch) - 1) * per_epoch < steps.end_step <= steps.final_epoch(per_epoch) * per_epoch
    assert steps.reachable(epochs * per_epoch) == steps


@pytest.mark.parametrize(("end_step", "epoch"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2)])
def test_final_epoch_is_the_one_in_which_the_masks_become_final(end_step, epoch):
    assert PruningSteps(0, end_step, 1).final_epoch(10) == epoch


TARGETS = {
    "cubic": (SparsityTarget(sparsity=0.6), lambda way: 0.6 - 0.6 * (1 - way) ** 3),
    "polynomial": (
        SparsityTarget(sparsity=0.6, schedule="polynomial", power=2.0, initial_sparsity=0.2),
        lambda way: 0.6 - 0.4 * (1 - way) ** 2,
    ),
    "constant": (SparsityTarget(sparsity=0.6, schedule="constant"), lambda way: 0.6),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("steps", [PruningSteps(4, 10, 3), PruningSteps(0, 8, 2), PruningSteps(1, 2, 1)])
def test_planned_schedule_fires_in_tfmot_at_its_updates_and_last_at_its_end(kind, steps):
    target, curve = TARGETS[kind]
    schedule = make_schedule(0.6, target, steps)
    pruned = {step: float(schedule(step)[1]) for step in range(1, 15) if bool(schedule(step)[0])}
    assert list(pruned) == list(steps.updates())
    assert max(pruned) == steps.end_step
    ways = [(step - steps.begin_step) / (steps.end_step - steps.begin_step) for step in pruned]
    assert list(pruned.values()) == pytest.approx([curve(way) for way in ways])
    assert pruned[steps.end_step] == pytest.approx(0.6)


def test_schedule_that_check_refuses_stops_short_of_its_target_in_tfmot():
    missed = PruningSteps(0, 10, 3)
    schedule = make_schedule(0.6, TARGETS["cubic"][0], missed)
    last = max(step for step in range(1, 15) if bool(schedule(step)[0]))
    assert last == 9
    assert float(schedule(last)[1]) < 0.6 - 1e-4
    with pytest.raises(CompressionError, match="would stop short"):
        missed.check(epochs=2, steps_per_epoch=5)


def test_tfmots_own_default_never_fires_in_a_short_run():
    schedule = tfmot().sparsity.keras.PolynomialDecay(0.0, 0.6, begin_step=0, end_step=1000)  # frequency 100
    assert not any(bool(schedule(step)[0]) for step in range(1, 99 + 1))
    with pytest.raises(CompressionError, match="this run reaches begin_step 0, end_step 99, frequency 99"):
        PruningSteps(0, 1000, 100).check(epochs=9, steps_per_epoch=11)


@pytest.mark.parametrize(
    ("steps", "message", "reachable"),
    [
        (
            PruningSteps(0, 11, 1),
            r"ends at step 11, the run after 10 \(2 epochs of 5 batches\): train more epochs",
            "begin_step 0, end_step 10, frequency 1",
        ),
        (
            PruningSteps(0, 10, 3),
            "every 3 steps from step 0, which misses end_step 10.*that divides 10",
            "begin_step 0, end_step 10, frequency 2",
        ),
        (
            PruningSteps(5, 5, 1),
            "needs 0 <= begin_step < end_step and frequency >= 1, got begin_step 5, end_step 5",
            "begin_step 5, end_step 6, frequency 1",
        ),
        (PruningSteps(-1, 5, 1), "got begin_step -1", "begin_step 0, end_step 5, frequency 1"),
        (PruningSteps(0, 5, 0), "frequency 0", "begin_step 0, end_step 5, frequency 1"),
        (PruningSteps(40, 80, 10), "ends at step 80, the run after 10", "begin_step 9, end_step 10, frequency 1"),
    ],
)
def test_check_schedule_that_cannot_reach_its_target_is_an_error(steps, message, reachable):
    PruningSteps(0, 10, 1).check(epochs=2, steps_per_epoch=5)  # the last step of the run is just in time
    with pytest.raises(CompressionError, match=message) as caught:
        steps.check(epochs=2, steps_per_epoch=5)
    assert str(caught.value).endswith(f"; this run reaches {reachable}")
    steps.reachable(10).check(epochs=2, steps_per_epoch=5)


@given(begin=st.integers(-5, 60), end=st.integers(-5, 60), frequency=st.integers(-2, 60), epochs=st.integers(1, 6))
def test_reachable_steps_of_anything_pass_the_check(begin, end, frequency, epochs):
    PruningSteps(begin, end, frequency).reachable(epochs * 7).check(epochs, 7)


def test_plan_steps_single_step_is_an_error():
    with pytest.raises(CompressionError, match="pruning needs at least 2 training steps, got 1: train more epochs"):
        plan_steps(1, 1)


@pytest.mark.parametrize("ramp", [0.0, 1.01, -0.5])
def test_plan_steps_impossible_ramp_is_an_error(ramp):
    with pytest.raises(CompressionError, match=rf"ramp_fraction must be in \(0, 1\], got {ramp}"):
        plan_steps(2, 10, ramp)

"""Removing in steps: composed plans give the same model, budgets hold at the end, one step is the plain way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import BudgetError, CompressionError
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    analyze_channels,
    measure_cost,
    remove_channels,
    select_channels,
)
from cxr_compress.structured.rebuild import remove_iteratively
from tests import nets


def random_score(seed: int):
    """Other scores for every model it is asked about, as a data-driven criterion would give."""

    def score(model, analysis):
        rng = np.random.default_rng([seed, measure_cost(model).params])
        return {name: rng.random(group.channels) for name, group in analysis.groups.items()}

    return score


def equal_weights(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


@pytest.mark.parametrize("build", [nets.dense_block, nets.residual, nets.depthwise, nets.nested])
def test_remove_iteratively_composed_plan_gives_the_same_model_at_once(build):
    model = build()
    pruned, whole, plans = remove_iteratively(model, Budget(macs=0.5), random_score(1), steps=3, round_to=1)
    assert len(plans) == 3
    assert equal_weights(remove_channels(model, whole), pruned)
    assert whole.after == measure_cost(pruned)
    assert whole.after.macs <= 0.5 * whole.before.macs
    # Control: the composition is not just the last plan.
    assert whole.kept != plans[-1].kept


def test_remove_iteratively_one_step_is_select_and_remove():
    model = nets.dense_block()
    score = random_score(4)
    analysis = analyze_channels(model)
    pruned, whole, _ = remove_iteratively(model, Budget(params=0.6), score, steps=1, round_to=2)
    plain = select_channels(analysis, score(model, analysis), Budget(params=0.6), round_to=2)
    assert (whole.kept, whole.before, whole.after) == (plain.kept, plain.before, plain.after)
    assert equal_weights(pruned, remove_channels(model, whole))


def test_remove_iteratively_costs_fall_by_equal_factors():
    _, _, plans = remove_iteratively(nets.chain(), Budget(macs=0.25), random_score(2), steps=2, round_to=1)
    start = plans[0].before.macs
    # Half the way to a quarter is a half; a step of `round_to` is at most 1/8 of this net.
    assert start * (0.5 - 1 / 8) <= plans[0].after.macs <= start * 0.5


def test_remove_iteratively_between_sees_every_model_and_no_steps_raise():
    seen = []
    remove_iteratively(
        nets.chain(),
        Budget(macs=0.5),
        random_score(3),
        steps=2,
        round_to=1,
        between=lambda model, number: seen.append((number, measure_cost(model).macs)),
    )
    assert [number for number, _ in seen] == [1, 2]
    assert seen[0][1] > seen[1][1]
    with pytest.raises(CompressionError, match="expected steps of 1 or more, got 0"):
        remove_iteratively(nets.chain(), Budget(macs=0.5), random_score(3), steps=0)


def test_remove_iteratively_shares_are_of_the_starting_model():
    """Half of a half would be three quarters gone: the floors hold for the whole way (pitfall 9)."""
    model = nets.chain()
    options = {"round_to": 1, "max_removed_fraction": 0.5, "overrides": {"a": 0.25}}
    whole = remove_iteratively(model, Budget(macs=0.5), random_score(5), steps=3, **options)[1]
    for name, kept in whole.kept.items():
        share = 0.25 if name == "a" else 0.5
        assert len(kept) >= whole.channels[name] * (1 - share)
    # Control: with shares of each step's model a third of the MACs could be reached.
    with pytest.raises(BudgetError, match="reachable are"):
        remove_iteratively(model, Budget(macs=0.33), random_score(5), steps=3, **options)
    assert whole.settings["overrides"] == {"a": 0.25}


def test_plan_then_plan_of_another_model_is_refused():
    _, _, plans = remove_iteratively(nets.chain(), Budget(macs=0.5), random_score(3), steps=2, round_to=1)
    with pytest.raises(CompressionError, match="expected a plan for the model that the first one leaves"):
        plans[1].then(plans[0])


@given(st.data())
def test_plan_then_keeps_what_both_keep(data):
    """Composition on indices against brute force: carry the channels' original numbers through both plans."""
    channels = data.draw(st.integers(1, 12))
    first = sorted(data.draw(st.sets(st.integers(0, channels - 1), min_size=1)))
    second = sorted(data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1)))
    cost = measure_like(channels), measure_like(len(first)), measure_like(len(second))
    a = ChannelPlan({"g": tuple(first)}, {"g": channels}, (), {}, cost[0], cost[1])
    b = ChannelPlan({"g": tuple(second)}, {"g": len(first)}, (), {}, cost[1], cost[2])
    names = np.arange(channels)
    assert a.then(b).kept["g"] == tuple(names[first][second].tolist())
    assert a.then(b).channels == {"g": channels}


def measure_like(width: int):
    from cxr_compress.structured import ModelCost

    return ModelCost(width, width, width)

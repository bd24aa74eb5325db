"""Selection on plain data: budgets, floors, ties, round trips, and the order of removal by measured error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import BudgetError, CompressionError
from cxr_compress.structured import Budget, ChannelPlan, analyze_channels, score_channels, select_channels
from cxr_compress.structured.latency import removal_ranks
from tests import nets


@pytest.fixture(scope="module")
def analysis():
    return analyze_channels(nets.dense_block())


def constant_scores(analysis):
    """The machinery's trivial stand-in: every channel is worth the same, so order alone decides."""
    return {name: np.ones(group.channels) for name, group in analysis.groups.items()}


def random_scores(analysis, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.random(group.channels) for name, group in analysis.groups.items()}


def test_select_budget_one_mac_below_the_whole_removes_exactly_one_step(analysis):
    plan = select_channels(
        analysis, constant_scores(analysis), Budget(macs=analysis.baseline.macs - 1), round_to=2, scope="global"
    )
    # Ties go in model order and from the first channel on: stem loses channels 0 and 1, nobody else loses any.
    assert plan.kept == {"stem": (2, 3, 4, 5)}


def test_select_whole_budget_keeps_everything(analysis):
    plan = select_channels(analysis, constant_scores(analysis), Budget(macs=1.0, params=1.0))
    assert plan.kept == {}
    assert plan.after == plan.before == analysis.baseline


def test_select_unreachable_budget_says_the_minimum(analysis):
    smallest = select_channels(analysis, constant_scores(analysis), Budget(macs=0.5), round_to=2)
    with pytest.raises(BudgetError, match=r"at most 1 macs, reachable are [\d,]+"):
        select_channels(analysis, constant_scores(analysis), Budget(macs=1), round_to=2)
    with pytest.raises(BudgetError, match="reachable are") as caught:
        select_channels(analysis, constant_scores(analysis), Budget(macs=1), round_to=2)
    reachable = int(str(caught.value).split("reachable are ")[1].split(" ")[0].replace(",", ""))
    assert reachable < smallest.after.macs
    plan = select_channels(analysis, constant_scores(analysis), Budget(macs=reachable), round_to=2)
    assert plan.after.macs == reachable


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(), "expected a budget on macs, params, tflite_bytes or latency_ms, got none"),
        (Budget(macs=0.0), "expected a budget on macs above 0"),
        (Budget(params=-5), "expected a budget on params above 0"),
        (Budget(tflite_bytes=1_000_000), "tflite_bytes needs measured file bytes: pass cost_table="),
        (
            Budget(latency_ms=3.0, macs=0.5),
            "latency_ms needs measured layer times: pass cost_table= .*cxr_benchmark --layers",
        ),
    ],
)
def test_select_bad_budget_raises(analysis, budget, message):
    with pytest.raises(BudgetError, match=message):
        select_channels(analysis, constant_scores(analysis), budget)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "both"}, "expected scope to be one of global, local, sensitivity, latency; got 'both'"),
        ({"round_to": 0}, "round_to and min_channels of 1 or more; got 0"),
        ({"max_removed_fraction": 1.5}, r"max_removed_fraction in \[0, 1\]; got 1.5"),
    ],
)
def test_select_bad_option_raises(analysis, options, message):
    with pytest.raises(CompressionError, match=message):
        select_channels(analysis, constant_scores(analysis), Budget(macs=0.5), **options)


def test_select_scores_with_nan_raise(analysis):
    scores = constant_scores(analysis)
    scores["g1"][0] = np.nan
    with pytest.raises(CompressionError, match="4 scores without NaN for group 'g1'"):
        select_channels(analysis, scores, Budget(macs=0.5))


def test_select_global_takes_the_lowest_scores_wherever_they_are(analysis):
    scores = constant_scores(analysis)
    scores["t"][[1, 6]] = 0.0
    plan = select_channels(analysis, scores, Budget(params=analysis.baseline.params - 1), round_to=2)
    assert plan.kept == {"t": (0, 2, 3, 4, 5, 7)}


@given(
    seed=st.integers(0, 50),
    macs=st.floats(0.3, 1.0),
    params=st.floats(0.35, 1.0),
    scope=st.sampled_from(["global", "local"]),
    round_to=st.sampled_from([1, 2, 4]),
    min_channels=st.integers(1, 3),
    max_removed=st.floats(0.6, 1.0),
)
def test_select_any_budget_holds_with_every_floor(
    analysis, seed, macs, params, scope, round_to, min_channels, max_removed
):
    scores = random_scores(analysis, seed)
    budget = Budget(macs=macs, params=params)
    options = {
        "scope": scope,
        "round_to": round_to,
        "min_channels": min_channels,
        "max_removed_fraction": max_removed,
    }
    try:
        plan = select_channels(analysis, scores, budget, **options)
    except BudgetError:
        return  # the floors forbid this budget; test_select_unreachable_budget_says_the_minimum checks that path
    assert plan.after.macs <= macs * analysis.baseline.macs
    assert plan.after.params <= params * analysis.baseline.params
    for name, kept in plan.kept.items():
        channels = analysis.groups[name].channels
        assert len(kept) % round_to == 0
        assert len(kept) >= max(min_channels, channels * (1 - max_removed) - 1e-6)
        lost = set(range(channels)) - set(kept)
        # Exactly the lowest scores of the group go, never more of them.
        assert max(scores[name][list(lost)]) <= min(scores[name][list(kept)])


@given(seed=st.integers(0, 20), low=st.floats(0.4, 0.9), more=st.floats(0.0, 0.1))
def test_select_more_budget_never_keeps_less(analysis, seed, low, more):
    scores = random_scores(analysis, seed)
    tight = select_channels(analysis, scores, Budget(macs=low), round_to=1)
    loose = select_channels(analysis, scores, Budget(macs=low + more), round_to=1)
    for name, kept in loose.kept.items():
        assert set(tight.kept[name]) <= set(kept)


@given(seed=st.integers(0, 20), macs=st.floats(0.3, 0.9))
def test_select_budget_is_met_within_one_step_from_below(analysis, seed, macs):
    """Giving back the dearest single channel that went would break the budget."""
    scores = random_scores(analysis, seed)
    plan = select_channels(analysis, scores, Budget(macs=macs), round_to=1)
    keep = plan.keep_vector(analysis)
    dearest = 0
    for group in analysis.groups.values():
        gone = np.flatnonzero(~keep[group.sets])
        if len(gone):
            back = keep.copy()
            back[group.start + gone[0]] = True
            dearest = max(dearest, analysis.cost_model.cost(back).macs - plan.after.macs)
    limit = int(macs * analysis.baseline.macs)
    assert limit - dearest < plan.after.macs <= limit


def test_select_override_holds_for_the_groups_it_matches_alone(analysis):
    scores = constant_scores(analysis)
    free = select_channels(analysis, scores, Budget(macs=0.5), round_to=1)
    assert len(free.kept["stem"]) < 5
    held = select_channels(analysis, scores, Budget(macs=0.5), round_to=1, overrides={"st.*": 0.2, "g1": 0.0})
    # A fifth of 6 is 1.2: one channel may go; g1 must stay whole; the others make up for it.
    assert len(held.kept.get("stem", range(6))) >= 5
    assert "g1" not in held.kept
    assert held.after.macs <= 0.5 * held.before.macs


def test_select_override_without_a_match_or_out_of_range_raises(analysis):
    with pytest.raises(CompressionError, match="override 'nothing' matches no layer whose filters may go"):
        select_channels(analysis, constant_scores(analysis), Budget(macs=0.5), overrides={"nothing": 0.1})
    with pytest.raises(CompressionError, match=r"max_removed_fraction in \[0, 1\]; got 2"):
        select_channels(analysis, constant_scores(analysis), Budget(macs=0.5), overrides={"stem": 2})


def test_select_override_that_is_no_regular_expression_raises(analysis):
    with pytest.raises(CompressionError, match=r"^overrides: expected regular expressions .* got '\(': .*unterminated"):
        select_channels(analysis, constant_scores(analysis), Budget(macs=0.5), overrides={"(": 0.1})


def test_plan_json_round_trip_is_equal(analysis):
    plan = select_channels(analysis, random_scores(analysis, 3), Budget(macs=0.5), round_to=2)
    assert ChannelPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}', "null"])
def test_plan_from_json_other_text_raises(text):
    with pytest.raises(CompressionError, match="expected a channel plan"):
        ChannelPlan.from_json(text)


def test_plan_for_another_model_is_refused(analysis):
    plan = select_channels(analysis, random_scores(analysis, 3), Budget(macs=0.5), round_to=2)
    with pytest.raises(CompressionError, match="group 'stem' has 6 channels; this one has 8"):
        plan.keep_vector(analyze_channels(nets.two_outputs()))
    with pytest.raises(CompressionError, match="is not in this model"):
        plan.keep_vector(analyze_channels(nets.chain()))


def test_score_l1_is_the_absolute_sum_of_each_filter():
    model = nets.chain()
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion="l1", normalizer="none")
    kernel = model.get_layer("a").get_weights()[0]
    np.testing.assert_allclose(scores["a"], np.abs(kernel).sum(axis=(0, 1, 2)), rtol=1e-6)


def test_score_tied_group_sums_its_members():
    model = nets.residual()
    scores = score_channels(model, analyze_channels(model), normalizer="none")
    expected = sum(
        np.abs(model.get_layer(name).get_weights()[0]).sum(axis=(0, 1, 2), dtype=np.float64)
        for name in ("stem", "b", "d")
    )
    np.testing.assert_allclose(scores["stem"], expected, rtol=1e-6)


def test_score_mean_normalizer_makes_groups_average_one():
    model = nets.dense_block()
    scores = score_channels(model, analyze_channels(model), criterion="l2")
    assert {name: round(float(values.mean()), 9) for name, values in scores.items()} == dict.fromkeys(scores, 1.0)


def test_score_unknown_criterion_names_the_known_ones():
    model = nets.chain()
    with pytest.raises(CompressionError, match=r"expected criterion to be one of .*l1, l2.*; got 'best'"):
        score_channels(model, analyze_channels(model), criterion="best")


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

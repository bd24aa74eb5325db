"""Budgets on bytes and latency from made-up tables, and what an unreachable budget says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_compress.device.cost_table import CostTable, FileBytes, LayerTimes
from cxr_compress.errors import BudgetError
from cxr_compress.keras2 import keras
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    ModelCost,
    analyze_channels,
    remove_channels,
    remove_iteratively,
    select_channels,
    survey_kernels,
)
from tests import nets, nets_families
from tests.structured.test_rules_random import programs, random_net

NETS = {
    net.__name__: net
    for net in (nets.dense_block, nets.residual, nets.depthwise, nets.shared_layer, nets_families.mobilenet_v2)
}


def table_for(analysis, seed: int = 0, block: int = 1) -> CostTable:
    """A made-up table that knows every kind of kernel of a model."""
    rng = np.random.default_rng(seed)
    kinds = {
        spec.kind.name: tuple((rng.uniform(0, 1, 4) * (1e-2, 1e-3, 1e-3, 1e-4)).tolist())
        for spec in survey_kernels(analysis).probes
    }
    times = LayerTimes("r", "m", 1, "none", kinds, block, float(rng.uniform(0, 1e-6)), 0.01)
    return CostTable(FileBytes(1.0, 27.5, 2.0, 4000.0), times)


@pytest.fixture(scope="module")
def analyses():
    return {name: analyze_channels(net()) for name, net in NETS.items()}


@pytest.fixture(scope="module")
def block_analysis(analyses):
    return analyses["dense_block"]


def scores_of(analysis, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(group.channels) for name, group in analysis.groups.items()}


def random_keep(analysis, seed: int, share: float):
    """Some channel sets of every group that may shrink gone, at least one left."""
    rng = np.random.default_rng(seed)
    keep = np.ones(analysis.set_count, dtype=bool)
    for group in analysis.groups.values():
        keep[group.sets] = rng.random(group.channels) < share
        keep[group.start + rng.integers(group.channels)] = True
    return keep


@given(
    name=st.sampled_from(sorted(NETS)),
    seed=st.integers(0, 50),
    share=st.floats(0.2, 1.0),
    block=st.sampled_from([1, 4, 16]),
)
def test_cost_with_a_table_never_grows_when_a_channel_goes(analyses, name, seed, share, block):
    analysis = analyses[name].priced(table_for(analyses[name], seed, block))
    keep = random_keep(analysis, seed, share)
    before = analysis.cost_model.cost(keep)
    for channel_set in np.flatnonzero(keep):
        fewer = keep.copy()
        fewer[channel_set] = False
        after = analysis.cost_model.cost(fewer)
        assert after.tflite_bytes <= before.tflite_bytes
        assert after.latency_ms <= before.latency_ms


@pytest.mark.parametrize("name", sorted(NETS))
def test_cost_with_a_table_equals_that_of_the_rebuilt_models_own_analysis(name):
    model = NETS[name]()
    analysis = analyze_channels(model)
    for seed in range(3):
        table = table_for(analysis, seed, block=4)
        keep = random_keep(analysis, seed, 0.6)
        plan = ChannelPlan.of(analysis.priced(table), keep, {})
        own = analyze_channels(remove_channels(model, plan)).priced(table).baseline
        # Equal, not close: sums are exact, so neither their order nor the numbering of axes shows.
        assert own == plan.after
        assert own != plan.before


@settings(max_examples=12)
@given(program=programs, seed=st.integers(0, 99))
def test_cost_with_a_table_equals_the_rebuilt_random_nets_own(program, seed):
    model = random_net(program)
    analysis = analyze_channels(model)
    table = table_for(analysis, seed)
    keep = random_keep(analysis, seed, 0.6)
    for group in analysis.groups.values():
        # With one channel left, "as many groups as channels" is an ordinary convolution, another kind of kernel.
        keep[group.start : group.start + 2] = True
    plan = ChannelPlan.of(analysis.priced(table), keep, {})
    assert analyze_channels(remove_channels(model, plan)).priced(table).baseline == plan.after


def test_survey_depthwise_counts_by_hand(analyses):
    """stem 3->8, depthwise x2, p 16->10, separable 10->12 with stride 2, logits 192->3; no batch norm stays."""
    survey = survey_kernels(analyses["depthwise"])
    assert survey.file_counts.kernels == 9 * 3 * 8 + 9 * 16 + 16 * 10 + 9 * 10 + 10 * 12 + 192 * 3
    assert survey.file_counts.filters == 8 + 16 + 10 + 10 + 12 + 3
    # The batch norm behind the depthwise convolution folds into it, like the one behind the stem.
    assert survey.file_counts.norm_channels == 0
    assert [(use.kind, use.inputs, use.outputs) for use in survey.uses] == [
        ("Conv2D 3x3 s1 8x8", 3, 8),
        ("DepthwiseConv2D 3x3 s1 m2 8x8", 8, 1),
        ("Conv2D 1x1 s1 10x10", 16, 10),
        ("DepthwiseConv2D 3x3 s2 4x4", 10, 1),
        ("Conv2D 1x1 s1 4x4", 10, 12),
        ("Dense 1", 192, 3),
    ]
    # Padding reads 8 x 8 x 16 and writes 10 x 10 x 16; ReLU and ReLU6 are part of what comes before.
    assert survey.moved == 64 * 16 + 100 * 16


def test_survey_norms_behind_a_concat_or_a_shared_kernel_stay(analyses):
    """BN behind the stem, which the concat reads too (6), behind concat1 (10) and concat2 (14); that of t folds."""
    assert survey_kernels(analyses["dense_block"]).file_counts.norm_channels == 6 + 10 + 14


def test_survey_shared_layer_is_stored_once_and_run_twice(analyses):
    survey = survey_kernels(analyses["shared_layer"])
    assert survey.file_counts.filters == 6 + 6 + 5 + 3
    assert [use.kind for use in survey.uses].count("Conv2D 3x3 s1 4x4") == 2


def test_select_bytes_and_latency_budgets_hold_and_stand_in_the_plan(block_analysis):
    table = table_for(block_analysis)
    whole = block_analysis.priced(table).baseline
    budget = Budget(tflite_bytes=whole.tflite_bytes - 200, latency_ms=0.7, macs=0.9)
    plan = select_channels(block_analysis, scores_of(block_analysis), budget, round_to=1, cost_table=table)
    assert plan.before == whole
    assert plan.after.tflite_bytes <= whole.tflite_bytes - 200
    assert plan.after.latency_ms <= 0.7 * whole.latency_ms
    assert plan.after.macs <= 0.9 * whole.macs
    assert ChannelPlan.from_json(plan.to_json()) == plan
    assert '"latency_ms"' in plan.to_json()


def test_select_latency_budget_is_met_within_one_step_from_below(block_analysis):
    """What was met, asked for, changes nothing; the least bit less takes more channels."""
    table = table_for(block_analysis)
    scores = scores_of(block_analysis)
    plan = select_channels(block_analysis, scores, Budget(latency_ms=0.6), round_to=1, cost_table=table)
    met = Budget(latency_ms=plan.after.latency_ms, absolute=True)
    assert select_channels(block_analysis, scores, met, round_to=1, cost_table=table).kept == plan.kept
    below = Budget(latency_ms=plan.after.latency_ms - 1e-9, absolute=True)
    assert select_channels(block_analysis, scores, below, round_to=1, cost_table=table).kept != plan.kept


def test_plan_without_a_table_has_no_predicted_numbers(block_analysis):
    plan = select_channels(block_analysis, scores_of(block_analysis), Budget(macs=0.5), round_to=1)
    assert plan.after.tflite_bytes is None
    assert plan.after.latency_ms is None
    assert "tflite_bytes" not in plan.to_json()
    assert ModelCost.from_dict(plan.after.to_dict()) == plan.after


def test_budget_limits_fractions_absolutes_and_small_latencies():
    whole = ModelCost(1000, 2000, 30, tflite_bytes=4001, latency_ms=2.0)
    assert Budget(macs=0.5, params=1.0, tflite_bytes=0.5, latency_ms=0.8).limits(whole) == {
        "macs": 1000,
        "params": 1000,
        "tflite_bytes": 2000,
        "latency_ms": 1.6,
    }
    assert Budget(macs=1, tflite_bytes=3000, latency_ms=1.5).limits(whole) == {
        "macs": 1,
        "tflite_bytes": 3000,
        "latency_ms": 1.5,
    }
    assert Budget(latency_ms=1).limits(whole) == {"latency_ms": 1.0}
    assert Budget(latency_ms=0.8, absolute=True).limits(whole) == {"latency_ms": 0.8}
    assert Budget(latency_ms=0.8, absolute=True).settings() == {"latency_ms": 0.8, "absolute": True}


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_budget_not_above_zero_raises(value):
    with pytest.raises(BudgetError, match="expected a budget on latency_ms above 0"):
        Budget(latency_ms=value).limits(ModelCost(1, 1, 1, latency_ms=2.0))


def test_budget_with_the_other_part_of_a_table_says_which_is_needed(block_analysis):
    table = table_for(block_analysis)
    with pytest.raises(BudgetError, match="tflite_bytes needs measured file bytes: pass cost_table="):
        select_channels(
            block_analysis,
            scores_of(block_analysis),
            Budget(tflite_bytes=0.5),
            cost_table=CostTable(layer_times=table.layer_times),
        )
    with pytest.raises(BudgetError, match=r"latency_ms needs measured layer times: .*cxr_benchmark --layers"):
        select_channels(
            block_analysis, scores_of(block_analysis), Budget(latency_ms=0.5), cost_table=CostTable(table.file_bytes)
        )


def test_latency_table_of_another_model_is_refused(analyses):
    table = table_for(analyses["residual"])
    with pytest.raises(BudgetError, match=r"no times for 'Dense|no times for '.* was measured for another model"):
        analyses["depthwise"].priced(table).cost_model.cost(np.ones(analyses["depthwise"].set_count, dtype=bool))


def test_remove_iteratively_latency_below_one_millisecond_stays_absolute():
    model = nets.dense_block()
    table = table_for(analyze_channels(model))
    whole = analyze_channels(model).priced(table).baseline
    # The bounds of the steps are below 1 ms: taken as fractions they would ask for far less than the end does.
    assert whole.latency_ms < 1
    pruned, composed, plans = remove_iteratively(
        model, Budget(latency_ms=0.7), lambda _, now: scores_of(now), steps=2, round_to=1, cost_table=table
    )
    assert plans[0].after.latency_ms <= whole.latency_ms * 0.7**0.5
    assert 0.5 * whole.latency_ms < composed.after.latency_ms <= 0.7 * whole.latency_ms
    assert composed.before == whole
    assert analyze_channels(pruned).priced(table).baseline == composed.after


# What an unreachable budget says.


def told(analysis, budget=None, **options) -> str:
    with pytest.raises(BudgetError) as caught:
        select_channels(analysis, scores_of(analysis), budget or Budget(macs=1), **options)
    text = str(caught.value)
    assert text.startswith("the budget cannot be reached: at most ")
    assert text.endswith(": raise the budget or loosen those")
    assert "\n" not in text
    return text


def test_unreachable_with_excluded_layers_names_them_their_share_and_the_minimum():
    analysis = analyze_channels(nets.dense_block(), exclude=("g1", "t"))
    text = told(analysis, round_to=1)
    # The least: stem, g2 with 1 filter; 64 positions each: 27 s, 9 s g1, 9 (s+4) g2, (s+4+g2) t and 8 * 3 logits.
    least = 64 * (27 * 1 + 9 * 1 * 4 + 9 * 5 * 1 + 6 * 8) + 8 * 3
    assert f"at most 1 macs, reachable are {least:,} " in text
    # Without g1's four channels go its own kernel, a part of g2's and of t's.
    share = 64 * (9 * 4 + 9 * 4 + 4 * 8) / least
    assert f" of the macs left, most of it 'g1' {share:.0%} (excluded by 'g1'), 't' " in text
    # With t too go the last two products as a whole, and what reads g1 is counted once.
    together = 1 - 64 * (27 * 1 + 9 * 1) / least
    assert f"(protected groups hold {together:.0%} of" in text
    assert "round_to=1, min_channels=1, max_removed_fraction=1.0 hold up nothing" in text


def test_unreachable_with_an_unknown_layer_names_the_groups_it_protects():
    image = keras.Input((8, 8, 3), name="image")
    wide = nets.conv_bn(image, 24, "wide")
    x = nets.conv_bn(keras.layers.Lambda(lambda y: y, name="odd")(wide), 8, "b")
    model = keras.Model(image, keras.layers.Dense(3, name="logits")(keras.layers.GlobalAveragePooling2D()(x)))
    text = told(analyze_channels(model), Budget(params=1), round_to=1)
    assert re.search(
        r"protected groups hold \d+% of the params left, most of it 'wide' \d\d% \(odd \(Lambda\) has no", text
    )
    assert "'image'" not in text


def test_unreachable_by_constraints_alone_says_so_and_what_would_be(block_analysis):
    text = told(block_analysis, round_to=4, min_channels=2, max_removed_fraction=0.5)
    assert "no protected group is the cause; without round_to=4, min_channels=2, max_removed_fraction=0.5 " in text
    # One channel in every group: stem, g1, g2 and t.
    least = 64 * (27 + 9 + 9 * 2 + 3) + 3
    assert f" {least:,} would be)" in text
    assert f"reachable are {least:,}" in told(block_analysis, round_to=1)


def test_unreachable_override_is_named(block_analysis):
    assert "overrides={'stem': 0.1}" in told(block_analysis, round_to=1, overrides={"stem": 0.1})


def test_unreachable_latency_and_bytes_say_the_minimum_of_each_that_is_missed(block_analysis):
    table = table_for(block_analysis)
    budget = Budget(latency_ms=1e-4, tflite_bytes=3999, absolute=True)
    text = told(block_analysis, budget, round_to=1, cost_table=table)
    assert re.search(r"at most 3,999 tflite_bytes, reachable are 4,\d\d\d; at most 0.0001 latency_ms, reachable", text)

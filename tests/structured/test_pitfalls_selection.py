"""Pitfalls 2, 9 and 10: what a batch norm leaves of a filter, emptied layers, ties, rounding, time, what is counted."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import BudgetError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet
from cxr_compress.structured import (
    Budget,
    ChannelAnalysis,
    ChannelPlan,
    analyze_channels,
    measure_cost,
    remove_channels,
    select_channels,
)
from tests import nets

layers = keras.layers


def stack(width: int = 16, depth: int = 6) -> keras.Model:
    """image(3) -> c0 -> c1 -> ... -> GAP -> logits(2): convolutions of one width without biases, nothing else."""
    x = image = keras.Input((8, 8, 3), name="image")
    for number in range(depth):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"c{number}")(x)
    x = layers.Dense(2, use_bias=False, name="logits")(layers.GlobalAveragePooling2D()(x))
    return nets.enliven(keras.Model(image, x, name="stack"))


@pytest.fixture(scope="module")
def analysis() -> ChannelAnalysis:
    return analyze_channels(nets.dense_block())


def scores_of(analysis: ChannelAnalysis, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Groups of different scale: the usual way in which global mode empties a layer.
    return {name: rng.random(group.channels) * 10.0 ** rng.integers(-6, 6) for name, group in analysis.groups.items()}


def least_macs(analysis: ChannelAnalysis, **options: object) -> int:
    """The reachable minimum that the error names."""
    with pytest.raises(BudgetError) as caught:
        select_channels(analysis, scores_of(analysis, 0), Budget(macs=1), round_to=1, **options)
    return int(str(caught.value).split("reachable are ")[1].split(" ")[0].rstrip(";").replace(",", ""))


def test_removing_a_filter_is_masking_it_with_its_batch_norm_and_not_without():
    """Pitfall 2: a filter of zeros becomes a constant in the batch norm behind it; gamma, beta and the rest go too."""
    model = nets.chain()
    analysis = analyze_channels(model)
    keep = np.ones(analysis.set_count, dtype=bool)
    keep[analysis.groups["a"].sets.start] = False
    plan = ChannelPlan.of(analysis, keep, {})
    pruned = remove_channels(model, plan)
    (norm,) = (layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    for got, before in zip(pruned.get_layer(norm.name).get_weights(), norm.get_weights(), strict=True):
        assert np.array_equal(got, before[1:])
    images = nets.batch(model)
    expected = np.asarray(pruned(images))
    kernel = model.get_layer("a").get_weights()[0]
    kernel[..., 0] = 0
    model.get_layer("a").set_weights([kernel])
    gamma, beta, mean, variance = norm.get_weights()
    # A constant that the ReLU lets through, whatever was drawn.
    norm.set_weights([gamma, np.concatenate([[2.0], beta[1:]]), np.concatenate([[0.0], mean[1:]]), variance])
    assert np.abs(np.asarray(model(images)) - expected).max() > 1e-2
    norm.set_weights([np.concatenate([[0.0], gamma[1:]]), np.concatenate([[0.0], beta[1:]]), mean, variance])
    # The same float32 products, summed in another order.
    np.testing.assert_allclose(model(images), expected, atol=1e-5)


@given(seed=st.integers(0, 1000), scope=st.sampled_from(["global", "local"]))
def test_select_never_removes_every_channel_of_a_group(analysis, seed, scope):
    """Pitfall 9: down to the smallest reachable model, whatever the scores, every group keeps a channel."""
    plan = select_channels(
        analysis, scores_of(analysis, seed), Budget(macs=least_macs(analysis)), scope=scope, round_to=1
    )
    assert {name: len(kept) for name, kept in plan.kept.items()} == dict.fromkeys(analysis.groups, 1)


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.25, 0.5, 0.75]))
def test_select_max_removed_fraction_holds_in_global_mode(analysis, seed, share):
    """Pitfall 9: however far apart the scores of the layers lie, none loses more than the share."""
    limit = Budget(macs=least_macs(analysis, max_removed_fraction=share))
    plan = select_channels(analysis, scores_of(analysis, seed), limit, round_to=1, max_removed_fraction=share)
    for name, kept in plan.kept.items():
        assert len(kept) >= analysis.groups[name].channels * (1 - share)


def test_select_max_removed_fraction_makes_other_groups_pay_in_global_mode(analysis):
    """Pitfall 9: without the guard, the layer with the lowest scores is emptied down to one channel first."""
    scores = {name: np.full(group.channels, 1e-9 if name == "g1" else 1.0) for name, group in analysis.groups.items()}
    keep = np.ones(analysis.set_count, dtype=bool)
    keep[analysis.groups["g1"].sets] = (True, False, False, False)
    budget = Budget(macs=analysis.cost_model.cost(keep).macs)
    free = select_channels(analysis, scores, budget, round_to=1)
    assert {name: len(kept) for name, kept in free.kept.items()} == {"g1": 1}
    held = select_channels(analysis, scores, budget, round_to=1, max_removed_fraction=0.5)
    assert len(held.kept["g1"]) == 2
    assert set(held.kept) > {"g1"}


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("gone", [1, 2, 5])
def test_select_ties_go_in_model_order_and_exactly_as_many_as_needed(scope, gone):
    """Pitfall 9: with equal scores a threshold takes all or none; here k channels go, the first of the first."""
    analysis = analyze_channels(stack(width=8, depth=1))
    scores = {"c0": np.ones(8)}
    # A channel of c0 costs 8 * 8 positions of a 3x3x3 kernel, and a weight of each of the two logits.
    channel = 8 * 8 * 3 * 3 * 3 + 2
    budget = Budget(macs=analysis.baseline.macs - gone * channel)
    plans = [select_channels(analysis, scores, budget, scope=scope, round_to=1) for _ in range(2)]
    assert plans[0].kept == {"c0": tuple(range(gone, 8))}
    assert plans[0] == plans[1]


def test_select_ties_between_groups_go_in_model_order():
    """Pitfall 9: the first layers of the model lose first; which ones does not depend on a dict or a sort."""
    analysis = analyze_channels(stack(width=4, depth=3))
    scores = {name: np.ones(group.channels) for name, group in reversed(analysis.groups.items())}
    plan = select_channels(analysis, scores, Budget(macs=analysis.baseline.macs - 1), round_to=2)
    assert plan.kept == {"c0": (2, 3)}


@pytest.mark.parametrize(("round_to", "widths"), [(1, {9, 10}), (4, {8, 12}), (8, {8})])
def test_select_rounds_widths_to_multiples_and_the_budget_down(round_to, widths):
    """Pitfall 9: kept widths are multiples of round_to and the cost lies under the budget, never above it."""
    analysis = analyze_channels(stack())
    scores = {name: np.ones(group.channels) for name, group in analysis.groups.items()}
    # (10 / 16)^2 of the MACs between the layers, all in all 0.38 of the model: 10 or 9 wide where that is allowed.
    plan = select_channels(analysis, scores, Budget(macs=0.38), scope="local", round_to=round_to)
    assert {len(kept) for kept in plan.kept.values()} <= widths
    assert plan.after.macs <= 0.38 * plan.before.macs


@pytest.mark.densenet
def test_analyze_densenet201_takes_seconds_at_most():
    """Pitfall 9: graph build time. 0.15 s on a quiet machine; 2 s catches work that grows with the layers squared."""
    model = chexnet(blocks=(6, 12, 48, 32))
    started = time.perf_counter()
    analysis = analyze_channels(model)
    seconds = time.perf_counter() - started
    assert len(analysis.groups) == 1 + 2 * (6 + 12 + 48 + 32) + 3
    assert seconds < 2


def test_cost_counts_the_thinner_input_of_the_next_layer():
    """Pitfall 10: removing half of one layer saves half of its MACs and half of those that read it."""
    analysis = analyze_channels(nets.chain())
    keep = np.ones(analysis.set_count, dtype=bool)
    keep[analysis.groups["a"].sets.start :][:4] = False
    saved = analysis.baseline.macs - analysis.cost_model.cost(keep).macs
    # a: 8x8 positions, 3x3 over 3 channels, 4 filters less; b: 6x6 positions, 12 filters of 3x3 over 4 channels less.
    assert saved == 8 * 8 * (3 * 3 * 3 * 4) + 6 * 6 * (3 * 3 * 4 * 12)


@pytest.mark.parametrize("removed", [0.25, 0.5, 0.75])
def test_removed_share_p_leaves_the_square_of_one_minus_p(removed):
    """Pitfall 10: a layer loses filters and inputs, so params and MACs fall to (1-p)^2, not to 1-p."""
    model = stack(width=16, depth=6)
    analysis = analyze_channels(model)
    scores = {name: np.ones(group.channels) for name, group in analysis.groups.items()}
    floor = least_macs(analysis, max_removed_fraction=removed)
    options = {"scope": "local", "round_to": 1, "max_removed_fraction": removed}
    plan = select_channels(analysis, scores, Budget(macs=floor), **options)
    width = int(16 * (1 - removed))
    assert {len(kept) for kept in plan.kept.values()} == {width}
    # Exact between the layers; the first reads 3 channels and the head makes 2, which stay: they fall with 1-p.
    inner, ends = 5 * 9 * 16 * 16, 9 * 3 * 16 + 16 * 2
    assert plan.before.params == inner + ends
    assert plan.after.params == inner * (1 - removed) ** 2 + ends * (1 - removed)
    assert plan.after.params / plan.before.params == pytest.approx((1 - removed) ** 2, abs=0.02)
    assert plan.after.macs / plan.before.macs == pytest.approx((1 - removed) ** 2, abs=0.02)
    assert measure_cost(remove_channels(model, plan)) == plan.after


def test_select_unreachable_budget_names_the_minimum_which_is_reachable(analysis):
    """Pitfall 10: the error's number is a budget that works, and one below it is not."""
    least = least_macs(analysis)
    scores = scores_of(analysis, 1)
    assert select_channels(analysis, scores, Budget(macs=least), round_to=1).after.macs == least
    with pytest.raises(BudgetError, match=f"at most {least - 1:,} macs, reachable are {least:,}"):
        select_channels(analysis, scores, Budget(macs=least - 1), round_to=1)

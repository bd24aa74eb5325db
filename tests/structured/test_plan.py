"""Plans as JSON that a person reads and edits: round trips, edits, old files, composition, and the same model again."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import CompressionError
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    ModelCost,
    analyze_channels,
    measure_cost,
    remove_channels,
    score_channels,
    select_channels,
)
from tests import nets
from tests.nets_families import FAMILIES


def make_plan(model, analysis, macs=0.6, seed=2):
    scores = score_channels(model, analysis, criterion="random", seed=seed)
    return select_channels(analysis, scores, Budget(macs=macs), round_to=1)


@pytest.fixture(scope="module")
def residual():
    model = nets.residual()
    analysis = analyze_channels(model)
    return model, analysis, make_plan(model, analysis)


def edited(plan: ChannelPlan, **groups: object) -> str:
    """The plan's JSON with other entries of its groups, as an editor would leave it."""
    values = json.loads(plan.to_json())
    for name, change in groups.items():
        values["groups"].setdefault(name, {"channels": 3}).update(change)
    return json.dumps(values)


def equal_weights(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_plan_json_says_per_group_what_it_is_and_what_it_loses(residual):
    _, _, plan = residual
    values = json.loads(plan.to_json())
    stem = values["groups"]["stem"]
    assert (stem["members"], stem["channels"]) == (["stem", "b", "d"], 8)
    assert stem["removed"] == 8 - len(stem["kept"]) > 0
    assert stem["kept"] == list(plan.kept["stem"])
    assert values["protected"] == {"image": "is an input of the model", "logits": "reaches the output of the model"}
    assert values["before"]["macs"] > values["after"]["macs"] > 0
    assert (values["format"], values["allow_inexact"], values["settings"]["round_to"]) == (3, False, 1)


def test_plan_json_has_one_group_a_line(residual):
    _, _, plan = residual
    for name in plan.kept:
        (line,) = (line for line in plan.to_json().splitlines() if line.startswith(f'    "{name}": '))
        assert json.loads("{" + line.rstrip(",") + "}")[name]["kept"] == list(plan.kept[name])


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@st.composite
def plans(draw):
    channels = draw(st.dictionaries(names, st.integers(1, 9), max_size=4))
    kept = {
        name: tuple(sorted(draw(st.sets(st.integers(0, count - 1), min_size=1)))) for name, count in channels.items()
    }
    costs = [ModelCost(*draw(st.tuples(*[st.integers(0, 10**12)] * 3))) for _ in range(2)]
    return ChannelPlan(
        kept=kept,
        channels=channels,
        exclude=tuple(draw(st.lists(names, max_size=2))),
        settings=draw(st.dictionaries(names, st.integers() | st.text(max_size=5) | st.booleans(), max_size=3)),
        before=costs[0],
        after=costs[1],
        members={name: tuple(draw(st.lists(names, max_size=3))) for name in channels},
        protected=draw(st.dictionaries(names, names, max_size=3)),
        allow_inexact=draw(st.booleans()),
    )


@given(plans())
def test_plan_json_round_trip_is_equal_for_any_plan(plan):
    again = ChannelPlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_plan_json_of_format_1_is_read(residual):
    _, _, plan = residual
    values = json.loads(plan.to_json())
    old = {name: values[name] for name in ("settings", "exclude", "before", "after")}
    groups = {name: {"channels": group["channels"], "kept": group["kept"]} for name, group in values["groups"].items()}
    read = ChannelPlan.from_json(json.dumps({"format": 1, **old, "groups": groups}))
    assert read == replace(plan, members={}, protected={}, allow_inexact=False)
    assert read.kept == plan.kept
    assert ChannelPlan.from_json(read.to_json()) == read


def test_plan_json_of_a_newer_format_says_what_to_do(residual):
    values = {**json.loads(residual[2].to_json()), "format": 4}
    with pytest.raises(CompressionError, match="channel plan of format 3 or older, got 4: upgrade cxr-compress"):
        ChannelPlan.from_json(json.dumps(values))


@pytest.mark.parametrize("build", [nets.residual, nets.dense_block, nets.nested, nets.depthwise])
def test_plan_applied_again_from_json_gives_the_same_model_bit_for_bit(build):
    model = build()
    plan = make_plan(model, analyze_channels(model))
    first = remove_channels(model, plan)
    again = remove_channels(build(), ChannelPlan.from_json(plan.to_json()))
    assert equal_weights(first, again)
    # Keras numbers unnamed layers on from model to model, so configs are those of one model only.
    assert first.get_config() == remove_channels(model, ChannelPlan.from_json(plan.to_json())).get_config()
    images = nets.batch(model)
    assert np.array_equal(first(images), again(images))


def test_plan_edited_by_hand_is_applied_and_counted_anew(residual):
    model, analysis, plan = residual
    # In any order, with "removed" and the costs left as they were.
    plan = ChannelPlan.from_json(edited(plan, stem={"kept": [7, 0]}))
    assert plan.kept["stem"] == (0, 7)
    assert plan.was_edited(analysis)
    pruned = remove_channels(model, plan)
    assert np.array_equal(
        pruned.get_layer("stem").get_weights()[0], model.get_layer("stem").get_weights()[0][..., [0, 7]]
    )
    assert measure_cost(pruned) != plan.after
    counted = plan.with_costs(analysis)
    assert (counted.after, counted.before) == (measure_cost(pruned), measure_cost(model))
    assert not counted.was_edited(analysis)
    assert json.loads(counted.to_json())["groups"]["stem"]["removed"] == 6


def test_plan_edited_to_leave_a_group_out_keeps_all_of_it(residual):
    model, analysis, plan = residual
    values = json.loads(plan.to_json())
    del values["groups"]["stem"]
    pruned = remove_channels(model, ChannelPlan.from_json(json.dumps(values)))
    assert pruned.get_layer("stem").filters == analysis.groups["stem"].channels
    assert pruned.get_layer("a").filters == len(plan.kept["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": {"kept": []}}, "group 'stem' would keep none of its 8 channels, but no path from the"),
        ({"stem": {"kept": [0, 3, 0]}}, "group 'stem': the plan keeps channel 0 twice: list each channel once"),
        ({"stem": {"kept": [0, 8]}}, "group 'stem' has 8 channels, numbered from 0: the plan keeps 8"),
        ({"stem": {"kept": [-1]}}, "group 'stem' has 8 channels, numbered from 0: the plan keeps -1"),
        ({"stem": {"kept": [0.5]}}, "group 'stem': expected \"kept\" as a list of channel numbers, got [0.5]"),
        ({"stem": {"kept": [True]}}, "group 'stem': expected \"kept\" as a list of channel numbers, got [True]"),
        ({"stem": {"kept": "all"}}, "group 'stem': expected \"kept\" as a list of channel numbers, got 'all'"),
        ({"stem": {"channels": 5, "kept": [0]}}, "group 'stem' has 5 channels; this one has 8: apply the plan to the"),
        ({"nowhere": {"kept": [0]}}, "group 'nowhere' of the plan is not in this model: apply the plan to the model"),
        ({"logits": {"kept": [0]}}, "'logits' is protected: reaches the output of the model"),
        ({"new": {}}, "expected a channel plan written by cxr_compress; could not read it: KeyError('kept')"),
    ],
)
def test_plan_edited_to_nonsense_ends_with_one_clear_error(residual, change, message):
    model, _, plan = residual
    with pytest.raises(CompressionError, match=re.escape(message)) as caught:
        remove_channels(model, ChannelPlan.from_json(edited(plan, **change)))
    assert "\n" not in str(caught.value)


def test_plan_carries_allow_inexact_to_the_removal():
    model = FAMILIES["convnext"]()
    analysis = analyze_channels(model, allow_inexact=True)
    plan = ChannelPlan.from_json(make_plan(model, analysis).to_json())
    assert plan.allow_inexact
    assert "stem/conv" in plan.kept
    pruned = remove_channels(model, plan)
    assert pruned.count_params() == plan.after.params
    # Control: without the word, the group is protected; the keyword still stands in for it.
    silent = replace(plan, allow_inexact=False)
    with pytest.raises(CompressionError, match="'stem/conv' is protected: "):
        remove_channels(model, silent)
    assert equal_weights(remove_channels(model, silent, allow_inexact=True), pruned)


def test_plan_then_keeps_members_reasons_and_allow_inexact(residual):
    model, _, plan = residual
    pruned = remove_channels(model, plan)
    after = analyze_channels(pruned)
    later = make_plan(pruned, after, macs=0.5, seed=9)
    whole = plan.then(replace(later, allow_inexact=True))
    assert whole.members["stem"] == ("stem", "b", "d")
    assert set(whole.members) == set(whole.kept)
    assert whole.protected == plan.protected
    assert whole.allow_inexact
    assert equal_weights(remove_channels(model, whole), remove_channels(pruned, later))


def test_plan_then_of_an_edited_plan_needs_its_costs_counted(residual):
    model, analysis, plan = residual
    plan = replace(plan, kept={**plan.kept, "stem": (0, 1)})
    pruned = remove_channels(model, plan)
    later = make_plan(pruned, analyze_channels(pruned))
    with pytest.raises(CompressionError, match="expected a plan for the model that the first one leaves"):
        plan.then(later)
    assert equal_weights(remove_channels(model, plan.with_costs(analysis).then(later)), remove_channels(pruned, later))

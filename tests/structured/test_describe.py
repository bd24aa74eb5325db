"""What cxr_inspect says of a model and of a plan: per-layer costs that add up, groups and reasons."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cxr_compress.keras2 import keras
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    analyze_channels,
    measure_cost,
    remove_channels,
    score_channels,
    select_channels,
)
from cxr_compress.structured.describe import describe_model, describe_plan
from tests import nets
from tests.nets_families import FAMILIES

NETS = {**nets.SMALL_NETS, **FAMILIES}


@pytest.fixture(scope="module", params=NETS.values(), ids=NETS)
def described(request):
    model = request.param()
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion="random", seed=4)
    plan = select_channels(analysis, scores, Budget(macs=0.6), round_to=1)
    return model, analysis, plan


def test_describe_model_layers_add_up_to_the_measured_cost(described):
    """Nested, shared and several times called layers included (nested, shared_layer, siamese)."""
    model, analysis, _ = described
    found = describe_model(analysis, model)
    cost = measure_cost(model)
    assert sum(layer["params"] for layer in found["layers"]) == cost.params == found["summary"]["params"]
    assert sum(layer["macs"] for layer in found["layers"]) == cost.macs == found["summary"]["macs"]


def test_describe_plan_layers_add_up_to_the_pruned_models_measured_cost(described):
    model, analysis, plan = described
    found = describe_plan(analysis, model, plan)
    pruned = remove_channels(model, plan)
    cost = measure_cost(pruned)
    assert sum(layer["params_after"] for layer in found["layers"]) == cost.params == found["after"]["params"]
    assert sum(layer["macs_after"] for layer in found["layers"]) == cost.macs == found["after"]["macs"]
    assert cost.macs < analysis.baseline.macs
    # Layer by layer, too: what is said of each is what the rebuilt one has.
    rebuilt = {
        layer["path"]: (layer["params"], layer["macs"], layer["filters"])
        for layer in describe_model(analyze_channels(pruned), pruned)["layers"]
    }
    said = {
        layer["path"]: (layer["params_after"], layer["macs_after"], layer["filters_kept"]) for layer in found["layers"]
    }
    assert said == {path: rebuilt[path] for path in said}


def test_describe_is_plain_json(described):
    model, analysis, plan = described
    for found in (describe_model(analysis, model), describe_plan(analysis, model, plan)):
        assert json.loads(json.dumps(found)) == found


def test_describe_model_residual_groups_and_layers_are_those_of_the_drawing():
    model = nets.residual()
    found = describe_model(analyze_channels(model), model)
    stem = found["groups"][0]
    assert (stem["name"], stem["channels"], stem["members"]) == ("stem", 8, ["stem", "b", "d"])
    assert stem["consumers"] == ["a", "d", "c"]
    c = found["groups"][2]
    # c(6) is 3x3 over 8 channels at 8x8, read by logits(3) once; its BN has 4 numbers a channel.
    assert c["macs"] == 8 * 8 * 3 * 3 * 8 * 6 + 6 * 3
    assert c["params"] == 3 * 3 * 8 * 6 + 4 * 6 + 6 * 3
    assert c["macs_fraction"] == pytest.approx(c["macs"] / measure_cost(model).macs)
    layers = {layer["path"]: layer for layer in found["layers"]}
    assert (layers["b"]["group"], layers["b"]["removable"], layers["b"]["why_not"]) == ("stem", True, "")
    assert layers["b"]["groups"] == ["stem", "a"]
    assert (layers["logits"]["removable"], layers["logits"]["why_not"]) == (False, "reaches the output of the model")
    assert layers["first_add"]["why_not"] == "has no filters of its own"
    assert layers["b"]["output_shape"] == [8, 8, 8]
    assert found["summary"]["channels"] == 8 + 16 + 6
    assert found["summary"]["protected_reasons"] == {
        "is an input of the model": 1,
        "reaches the output of the model": 1,
    }


def test_describe_model_layer_behind_a_concat_belongs_to_several_groups():
    model = nets.dense_block()
    layers = {layer["path"]: layer for layer in describe_model(analyze_channels(model), model)["layers"]}
    assert (layers["concat2"]["group"], layers["concat2"]["groups"]) == (None, ["stem", "g1", "g2"])
    assert layers["t"]["groups"] == ["stem", "g1", "g2", "t"]


def test_describe_model_shared_layer_counts_its_calls():
    model = nets.shared_layer()
    both = next(layer for layer in describe_model(analyze_channels(model), model)["layers"] if layer["path"] == "both")
    assert (both["calls"], both["params"]) == (2, 3 * 3 * 6 * 5 + 5)
    assert both["macs"] == 2 * 4 * 4 * 3 * 3 * 6 * 5


def test_describe_model_reasons_of_one_kind_are_counted_together():
    image = keras.Input((8, 8, 3))
    x = image
    for number in range(2):
        x = keras.layers.Conv2D(4, 1, name=f"conv{number}")(x)
        x = keras.layers.LayerNormalization(name=f"norm{number}")(x)
    model = keras.Model(image, keras.layers.Conv2D(2, 1, name="last")(x))
    found = describe_model(analyze_channels(model), model)
    kind = "LayerNormalization takes statistics over the channels, which would change"
    # Each protects the channels in front of it and those it gives.
    assert found["summary"]["protected_reasons"][kind] == 4
    assert found["protected"]["conv1"] == f"norm1 ({kind.replace(' ', ') ', 1)}"
    layers = {layer["path"]: layer for layer in found["layers"]}
    assert layers["conv0"]["why_not"] == found["protected"]["conv0"]


def test_describe_model_exclude_is_said_of_every_member_of_a_group():
    model = nets.residual()
    found = describe_model(analyze_channels(model, exclude=("b",)), model)
    assert found["exclude"] == ["b"]
    layers = {layer["path"]: layer for layer in found["layers"]}
    assert [layers[name]["why_not"] for name in ("stem", "b", "d")] == ["excluded by 'b'"] * 3


def test_describe_plan_counts_nothing_of_layers_that_go_as_a_whole():
    model = nets.residual()
    analysis = analyze_channels(model)
    plan = ChannelPlan.of(analysis, analysis.keep_vector({"a": ()}), {})
    rows = {layer["path"]: layer for layer in describe_plan(analysis, model, plan)["layers"]}
    # b makes channels that the shortcut makes too: they stay, b does not.
    for path in ("a", "b"):
        assert (rows[path]["filters_kept"], rows[path]["params_after"], rows[path]["macs_after"]) == (0, 0, 0)
    assert sum(row["params_after"] for row in rows.values()) == plan.after.params
    assert sum(row["macs_after"] for row in rows.values()) == plan.after.macs
    assert rows["stem"]["filters_kept"] == rows["stem"]["filters_before"]


def test_describe_plan_edited_plan_is_counted_anew():
    model = nets.residual()
    analysis = analyze_channels(model)
    plan = select_channels(analysis, score_channels(model, analysis), Budget(macs=0.6), round_to=1)
    assert describe_plan(analysis, model, plan)["edited"] is False
    plan = replace(plan, kept={**plan.kept, "stem": (0, 1)})
    found = describe_plan(analysis, model, plan)
    assert found["edited"] is True
    assert found["after"] == measure_cost(remove_channels(model, plan)).to_dict() != plan.after.to_dict()

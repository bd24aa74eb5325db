"""Every architecture family, shrunk, through the oracle with its control; `experiments/zoo.py` runs the real ones."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import own_layers
from cxr_compress.structured import (
    Budget,
    analyze_channels,
    measure_cost,
    remove_channels,
    score_channels,
    select_channels,
)
from tests import nets
from tests.nets_families import FAMILIES
from tests.structured.oracle import parity

# As in test_rebuild.py: float32 sums in another order against whole channels swapped.
PARITY = 1e-5
CONTROL = 1e-2


def random_plan(model, macs=0.6, seed=2):
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion="random", seed=seed)
    return select_channels(analysis, scores, Budget(macs=macs), round_to=1)


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    model = request.param()
    return model, random_plan(model)


def test_remove_channels_family_equals_the_oracle_and_other_channels_do_not(family):
    """Pitfall 7: the pruned model against the big one with the removed inputs zeroed, never against itself."""
    model, plan = family
    found = parity(model, plan, nets.batch(model, images=8))
    assert found.error < PARITY
    assert found.control > CONTROL
    assert found.input_sensitivity > 1e-3
    assert found.removal_effect > CONTROL


def test_remove_channels_family_costs_exactly_what_the_plan_predicts(family):
    model, plan = family
    pruned = remove_channels(model, plan)
    assert measure_cost(pruned) == plan.after
    assert pruned.count_params() == plan.after.params
    assert plan.after.macs <= 0.6 * plan.before.macs


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        # sep2, shortcut and the add are one group of 12.
        ("xception", {"stem": 8, "sep1": 10, "sep2": 12, "sep3": 14}),
        # The gate follows what it multiplies: stem and s2 are one group (and dw follows stem).
        ("efficientnet", {"stem": 8, "s1": 3, "p": 6}),
        ("mobilenet_v3", {"stem": 8, "s1": 4, "p": 6}),
        # LayerNormalization protects all but the hidden layers of its blocks, and what the last one makes.
        ("convnext", {"hidden": 64, "down/conv": 8}),
        # Two groups of four: channel i of both goes at once, so there are four decisions (pitfall 4).
        ("regnet", {"stem": 8, "a": 4, "grouped": 4, "s1": 3}),
        # Three groups of two channels each: whole groups go.
        ("volume", {"a": 3, "up": 6}),
        ("nested_head", {"body": 8, "head/h": 6}),
        # One kernel sums over left and right, so they go together.
        ("siamese", {"right": 6, "tower/t": 5}),
    ],
)
def test_analyze_family_finds_its_groups(name, groups):
    found = analyze_channels(FAMILIES[name]()).groups
    assert {name: group.channels for name, group in found.items()} == groups


@pytest.mark.parametrize("name", ["mobilenet_v3", "regnet", "efficientnet", "nested_head"])
@pytest.mark.parametrize("kind", [".keras", ".h5", ""])
def test_remove_channels_result_loads_without_custom_objects(name, kind, tmp_path):
    """Pitfall 8: .keras, .h5 and SavedModel, and the same outputs."""
    model = FAMILIES[name]()
    pruned = remove_channels(model, random_plan(model))
    path = str(tmp_path / f"pruned{kind}")
    if kind == ".h5":
        with pytest.warns(UserWarning, match="HDF5"):
            pruned.save(path)
    else:
        pruned.save(path)
    images = nets.batch(model)
    again = keras.models.load_model(path, compile=False)
    np.testing.assert_allclose(again(images), pruned(images), atol=1e-6)


def test_remove_channels_model_with_layers_of_its_own_loads_with_the_same_ones(tmp_path):
    model = FAMILIES["convnext"]()
    pruned = remove_channels(model, random_plan(model))
    pruned.save(tmp_path / "pruned.keras")
    with own_layers(model):
        again = keras.models.load_model(tmp_path / "pruned.keras", compile=False)
    images = nets.batch(model)
    assert np.array_equal(again(images), pruned(images))


def test_remove_channels_adapted_normalization_keeps_its_statistics():
    """Its mean and variance are derived of weights: a copy of the weights alone leaves it at 0 and 1."""
    model = FAMILIES["efficientnet"]()
    standardize = next(layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    standardize.adapt(np.random.default_rng(0).normal(3, 2, (32, 12, 12, 3)))
    plan = random_plan(model, macs=1.0)
    images = nets.batch(model)
    assert plan.kept == {}
    assert np.array_equal(remove_channels(model, plan)(images), model(images))


def test_analyze_allow_inexact_frees_what_a_layer_normalization_froze():
    model = FAMILIES["convnext"]()
    assert "stem/conv" in analyze_channels(model).protected
    analysis = analyze_channels(model, allow_inexact=True)
    assert analysis.groups["stem/conv"].channels == 6
    scores = score_channels(model, analysis, criterion="random")
    plan = select_channels(analysis, scores, Budget(macs=0.5), round_to=1)
    pruned = remove_channels(model, plan, allow_inexact=True)
    assert pruned.count_params() == plan.after.params
    assert pruned.get_layer("scale").projection_dim == len(plan.kept["stem/conv"])

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import CompressionError
from cxr_compress.recipe import PRESETS, Recipe, make_recipe


@given(
    target_macs=st.one_of(st.none(), st.floats(0.1, 1.0), st.integers(2, 10**9)),
    weight_sparsity=st.sampled_from([0.0, 0.25, 0.5]),
    exclude=st.lists(st.text(max_size=5), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_recipe_json_round_trip_is_equal(target_macs, weight_sparsity, exclude, seed):
    recipe = Recipe(target_macs=target_macs, weight_sparsity=weight_sparsity, exclude=tuple(exclude), seed=seed)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_recipe_from_json_unknown_key_is_named():
    values = {**Recipe().to_dict(), "taget_macs": 0.5}
    with pytest.raises(CompressionError, match=r"unknown in a recipe: taget_macs; known are .*target_macs"):
        Recipe.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "epochs": "many"}'])
def test_recipe_from_json_other_text_raises_one_line(text):
    with pytest.raises(CompressionError) as caught:
        Recipe.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "expected epochs to be 1 or more; got 0"),
        ({"weight_sparsity": 1.0}, r"expected weight_sparsity to be in \[0, 1\); got 1.0"),
        ({"sparsity_epochs": 0}, "expected sparsity_epochs to be 1 or more to zero weights; got 0"),
    ],
)
def test_recipe_value_out_of_range_raises(changes, message):
    with pytest.raises(CompressionError, match=message):
        make_recipe("tiny_chexnet", changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "chexnet_m50_w50_int8"),
        ({"target_macs": 0.125, "weight_sparsity": 0.7}, "chexnet_m12.5_w70_int8"),
        ({"target_macs": None, "target_params": 2_000_000}, "chexnet_p2000000_w50_int8"),
        ({"target_macs": 1.0, "weight_sparsity": 0.0, "quant_type": "fp16"}, "chexnet_fp16"),
    ],
)
def test_recipe_name_decodes_what_was_done(changes, name):
    assert make_recipe("chexnet", changes).name == name


def test_recipe_presets_are_valid_recipes():
    for model in PRESETS:
        assert make_recipe(model, {}).model == model

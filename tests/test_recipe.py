from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress import quant_types
from cxr_compress.errors import CompressionError
from cxr_compress.recipe import (
    AUGMENT,
    CRITERIA,
    NORMALIZERS,
    PRESETS,
    QUANT_TYPES,
    REDUCTIONS,
    SCOPES,
    Recipe,
    make_recipe,
)
from cxr_compress.structured import select
from cxr_compress.structured.criteria import base
from cxr_compress.train import AugmentRanges

_VALUES = {
    "target_macs": st.one_of(st.none(), st.floats(0.1, 1.0), st.integers(2, 10**9)),
    "weight_sparsity": st.sampled_from([0.0, 0.25, 0.5]),
    "exclude": st.lists(st.text(max_size=5).map(re.escape), max_size=3).map(tuple),
    "overrides": st.dictionaries(st.sampled_from(["stem", "conv.*", "a|b", "", "x=y"]), st.floats(0, 1)),
    "criterion": st.sampled_from(CRITERIA),
    "sparsity_block": st.tuples(st.integers(1, 8), st.integers(2, 8)),
    "augment": st.dictionaries(st.sampled_from(AUGMENT), st.floats(0, 30)),
    "seed": st.integers(0, 2**31),
}


@given(values=st.fixed_dictionaries(_VALUES))
def test_recipe_json_round_trip_is_equal(values):
    recipe = Recipe(**values)
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    # The last match counts, so their order is part of the choice.
    assert list(again.overrides) == list(values["overrides"])


def test_recipe_choices_are_those_of_the_code_that_makes_them():
    assert set(CRITERIA) == set(base.CRITERIA)
    assert select.SCOPES == SCOPES
    assert set(REDUCTIONS) == set(base.REDUCTIONS)
    assert set(NORMALIZERS) == set(base.NORMALIZERS)
    assert quant_types.QUANT_TYPES == QUANT_TYPES
    assert tuple(field.name for field in fields(AugmentRanges)) == AUGMENT


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
        (
            {"target_bytes": 0.5, "quant_type": "fp16"},
            "expected quant_type to be one of int8, int8_float_io with target",
        ),
        ({"criterion": "best"}, "expected criterion to be one of l1, l2, .*, lasso, random; got 'best'"),
        ({"scope": "layer"}, "expected scope to be one of global, local, sensitivity; got 'layer'"),
        ({"quant_type": "int3"}, "expected quant_type to be one of none, .*, int16x8; got 'int3'"),
        ({"min_channels": 0}, "expected min_channels to be 1 or more; got 0"),
        ({"sensitivity_images": 1}, "expected sensitivity_images to be 2 or more; got 1"),
        ({"reconstruction_images": 0}, "expected reconstruction_images to be 1 or more; got 0"),
        ({"max_removed_fraction": 1.5}, r"expected max_removed_fraction to be in \[0, 1\]; got 1.5"),
        ({"overrides": {"stem": -0.5}}, r"expected the share of override 'stem' to be in \[0, 1\]; got -0.5"),
        ({"overrides": {"stem(": 0.5}}, r"expected a layer pattern to be a regular expression; got 'stem\('"),
        ({"overrides": ["stem"]}, "a value in the recipe has the wrong type"),
        ({"overrides": {"stem": "half"}}, "a value in the recipe has the wrong type"),
        ({"percentile": 40.0}, "expected percentile to be above 50 and up to 100; got 40.0"),
        ({"sparsity_block": [4]}, r"expected sparsity_block to be two whole numbers that make a block.*; got \(4,\)"),
        ({"sparsity_block": [1, 1]}, "expected sparsity_block to be two whole numbers that make a block"),
        ({"sparsity_block": 4}, "a value in the recipe has the wrong type"),
        ({"augment": {"gama": 0.2}}, "expected the names in augment to be of shift, .*, mirror; got 'gama'"),
        ({"augment": {"gamma": -0.2}}, "expected augment gamma to be 0 or a positive number; got -0.2"),
        ({"augment": {"gamma": float("nan")}}, "expected augment gamma to be 0 or a positive number; got nan"),
        ({"augment": 0.2}, "a value in the recipe has the wrong type"),
        ({"weight_decay": -1.0}, "expected weight_decay to be 0 or more; got -1.0"),
        ({"label_smoothing": 1.0}, r"expected label_smoothing to be in \[0, 1\); got 1.0"),
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
        ({"target_bytes": 1_000_000, "weight_sparsity": 0.0}, "chexnet_m50_b1000000_int8"),
        ({"target_macs": None, "target_latency_ms": 7.5, "weight_sparsity": 0.0}, "chexnet_t7.5_int8"),
    ],
)
def test_recipe_name_decodes_what_was_done(changes, name):
    assert make_recipe("chexnet", changes).name == name


def test_recipe_presets_are_valid_recipes():
    for model in PRESETS:
        assert make_recipe(model, {}).model == model

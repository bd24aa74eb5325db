"""A recipe: JSON round trip, recipes of earlier versions, and one clear line for whatever is wrong in it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import CompressionError
from cxr_compress.recipe.fields import all_entries
from cxr_compress.recipe.recipe import PRESETS, Recipe, make_recipe, without_labels

_VALUES = {
    "target_macs": st.one_of(st.none(), st.floats(0.1, 1.0), st.integers(1, 10**9)),
    "weight_sparsity": st.sampled_from([0.0, 0.25, 0.5]),
    "exclude": st.lists(st.text(max_size=5).map(re.escape), max_size=3).map(tuple),
    "overrides": st.dictionaries(st.sampled_from(["stem", "conv.*", "a|b", "", "x=y"]), st.floats(0, 1)),
    "options": st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
    "sparsity_block": st.tuples(st.integers(1, 8), st.integers(2, 8)),
    "augment_shift": st.floats(0, 30),
    "augment_mirror": st.booleans(),
    "qat": st.sampled_from(["auto", "never", "always"]),
    "weight_decay": st.one_of(st.integers(0, 3), st.floats(0, 1)),
    "seed": st.integers(0, 2**31),
}
# Written by version 0.1.0, with values of every kind that are not the defaults.
_FLAT = {
    "format": 1,
    "model": "chexnet",
    "dataset": "nih",
    "input_size": 160,
    "augment": {"shift": 0.08, "gamma": 0.2, "mirror": 1.0},
    "options": {"uncertain": "ones"},
    "target_macs": None,
    "target_bytes": 1000000,
    "removal_steps": 3,
    "overrides": {"stem.*": 0.2},
    "exclude": ["head"],
    "recovery_epochs": 10,
    "weight_sparsity": 0.25,
    "sparsity_block": [1, 8],
    "finetune_epochs": 2,
    "quant_type": "int8_float_io",
    "bias_correction": False,
    "equalize": False,
    "qat": "never",
    "qat_epochs": 2,
    "margin": 0.02,
    "labels": ["a", "b"],
    "threads": 4,
}


@given(values=st.fixed_dictionaries(_VALUES))
def test_recipe_json_round_trip_is_equal(values):
    recipe = Recipe().with_values(**values)
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.to_json() == recipe.to_json()
    # The last match counts, so their order is part of the choice.
    assert list(again.removal.overrides) == list(values["overrides"])
    assert {flag: again.value(flag) for flag in values} == {flag: recipe.value(flag) for flag in values}


def test_recipe_json_is_nested_by_section():
    assert json.loads(Recipe().to_json())["format"] == 2
    text = '{"format": 2, "removal": {"criterion": "l2", "budget": {"macs": 0.25}}, "export": {"quant_type": "fp16"}}'
    recipe = Recipe.from_json(text)
    assert (recipe.removal.criterion, recipe.removal.budget.macs, recipe.export.quant_type) == ("l2", 0.25, "fp16")
    assert recipe.training == Recipe().training


def test_recipe_of_format_1_reads_as_the_same_choices():
    recipe = Recipe.from_dict(_FLAT)
    changes = {key: value for key, value in _FLAT.items() if key not in ("format", "augment", "equalize", "threads")}
    del changes["bias_correction"]
    augment = {"augment_shift": 0.08, "augment_gamma": 0.2, "augment_mirror": True}
    assert recipe == Recipe().with_values(**changes, **augment, num_threads=4)
    assert recipe.name == "chexnet_b1000000_w25_int8_float_io"
    assert recipe.recovery.epochs == 10
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("key", ["equalize", "bias_correction"])
def test_recipe_of_format_1_that_asks_for_what_is_gone_is_refused(key):
    with pytest.raises(CompressionError, match=rf'asks for {key}, which .* no longer does: set "{key}" to false'):
        Recipe.from_dict({**_FLAT, key: True})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 3}, "this version reads recipes of format 1 and 2; got format 3: update cxr-compress"),
        ({}, 'expected a recipe with "format": 2'),
        ([], 'expected a recipe with "format": 2'),
        ({"format": 1, "taget_macs": 0.5}, "unknown in a recipe: taget_macs: did you mean target_macs"),
        ({"format": 1, "augment": {"gama": 0.2}}, "unknown in a recipe: augment_gama: did you mean augment_gamma"),
        ({"format": 1, "augment": 0.2}, "expected augment of the recipe to be a table of name and number; got 0.2"),
        ({"format": 1, "epochs": "many"}, r"expected training.epochs \(--epochs\) to be a whole number; got 'many'"),
        ({"format": 2, "removl": {}}, "unknown section 'removl' in the recipe: did you mean removal"),
        ({"format": 2, "criterion": "l1"}, "unknown section 'criterion' in the recipe: did you mean removal.criterion"),
        ({"format": 2, "xyz": {}}, "unknown section 'xyz' in the recipe; it has model, data, .*import the plug-in"),
        ({"format": 2, "removal": []}, "expected section removal of a recipe to be a table of key and value; got"),
        (
            {"format": 2, "removal": {"criterium": "l1"}},
            "unknown key 'criterium' in section removal of the recipe: did you mean 'criterion'",
        ),
        (
            {"format": 2, "removal": {"removal_steps": 2}},
            "unknown key 'removal_steps' in section removal of the recipe: did you mean 'steps'",
        ),
        (
            {"format": 2, "removal": {"budget": {"mac": 0.5}}},
            "unknown key 'mac' in section removal.budget of the recipe: did you mean 'macs'",
        ),
        (
            {"format": 2, "gate": {"xyz": 0.5}},
            "unknown key 'xyz' in section gate of the recipe; it has max_auroc_drop, margin, max_flips",
        ),
    ],
)
def test_recipe_that_is_none_raises_one_line(values, message):
    with pytest.raises(CompressionError, match=message) as caught:
        Recipe.from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"format": 2, "training": ', "\x80"])
def test_recipe_from_json_of_other_text_raises_one_line(text):
    with pytest.raises(CompressionError, match="expected a recipe as JSON; could not read it") as caught:
        Recipe.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"expected training.epochs \(--epochs\) to be 1 or more; got 0"),
        ({"epochs": 2.5}, r"expected training.epochs \(--epochs\) to be a whole number; got 2.5"),
        ({"epochs": True}, "to be a whole number; got True"),
        ({"reconstruct": 1}, r"expected recovery.reconstruct \(--reconstruct\) to be true or false; got 1"),
        ({"dataset": 3}, r"expected data.dataset \(--dataset\) to be a text; got 3"),
        ({"dataset": "mnist"}, r"expected data.dataset \(--dataset\) to be one of .*kermany, .*; got 'mnist'"),
        ({"target_macs": "half"}, r"expected removal.budget.macs \(--target_macs\) to be a number or null; got 'half'"),
        ({"target_macs": 0}, r"expected removal.budget.macs \(--target_macs\) to be above 0; got 0"),
        ({"learning_rate": float("nan")}, "to be above 0; got nan"),
        ({"weight_sparsity": 1.0}, r"expected sparsity.fraction \(--weight_sparsity\) to be in \[0, 1\); got 1.0"),
        (
            {"target_bytes": 0.5, "quant_type": "fp16"},
            r"expected export.quant_type \(--quant_type\) to be one of int8, int8_float_io with target_bytes",
        ),
        (
            {"scope": "layer"},
            r"expected removal.scope \(--scope\) to be one of global, local, sensitivity, latency; got 'layer'",
        ),
        ({"quant_type": "int3"}, "to be one of none, .*, int16x8; got 'int3'"),
        ({"min_channels": 0}, "to be 1 or more; got 0"),
        ({"sensitivity_images": 1}, "to be 2 or more; got 1"),
        ({"reconstruction_images": 0}, "to be 1 or more; got 0"),
        ({"max_removed_fraction": 1.5}, r"to be in \[0, 1\]; got 1.5"),
        ({"overrides": {"stem": -0.5}}, r"expected removal.overrides \(--overrides\) of 'stem' to be in \[0, 1\]"),
        ({"overrides": {"stem(": 0.5}}, r"to be regular expressions, which 'stem\(' is not"),
        ({"exclude": ["conv("]}, r"removal.exclude \(--exclude\) to be regular expressions, which 'conv\(' is not"),
        ({"overrides": ["stem"]}, r"to be a table of name and number; got \['stem'\]"),
        ({"overrides": {"stem": "half"}}, r"to be a table of name and number; got \{'stem': 'half'\}"),
        ({"labels": "a,b"}, "to be a list of texts; got 'a,b'"),
        ({"percentile": 40.0}, "to be above 50 and up to 100; got 40.0"),
        ({"sparsity_block": [4]}, r"to be two whole numbers; got \[4\]"),
        ({"sparsity_block": [1, 1]}, r"to be a block of more than one weight, as \(1, 4\); got \(1, 1\)"),
        ({"sparsity_block": 4}, "to be two whole numbers; got 4"),
        ({"augment_gamma": -0.2}, r"expected training.augment.gamma \(--augment_gamma\) to be 0 or more; got -0.2"),
        ({"weight_decay": -1.0}, "to be 0 or more; got -1.0"),
        ({"weight_decay": float("inf")}, "to be 0 or more; got inf"),
        ({"label_smoothing": 1.0}, r"to be in \[0, 1\); got 1.0"),
        ({"sparsity_epochs": 0}, r"expected sparsity.epochs \(--sparsity_epochs\) to be 1 or more to zero weights"),
        ({"weight_threshold": 0.1}, "to be 0 beside weight_threshold: give a share or a threshold, not both; got 0.5"),
        ({"sparsity_pattern": "2:4", "weight_sparsity": 0.7}, "to be 0.5 with 2:4; got 0.7"),
        ({"schedule_epochs": 1, "recovery_epochs": 2}, "to be 0, or at least the 2 epochs of recovery"),
        ({"from_scratch": True, "recovery_epochs": 0}, "to be 1 or more with from_scratch"),
        ({"qat": "always", "quant_type": "fp16"}, "to be int8 or int8_float_io with qat=always; got 'fp16'"),
        ({"auto_fallback": 3}, "to be int8_float_io with auto_fallback, which leaves layers in float; got 'int8'"),
        ({"xyz": 1}, "unknown in a recipe: xyz; known are .*weight_threshold"),
    ],
)
def test_recipe_value_that_cannot_be_raises_and_names_section_key_and_flag(changes, message):
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
        ({"weight_sparsity": 0.0, "weight_threshold": 1.0, "threshold_unit": "std"}, "chexnet_m50_h1sd_int8"),
        ({"weight_sparsity": 0.0, "from_scratch": True}, "chexnet_m50_scratch_int8"),
    ],
)
def test_recipe_name_decodes_what_was_done(changes, name):
    assert make_recipe("chexnet", changes).name == name


def test_recipe_presets_are_valid_recipes():
    for model in PRESETS:
        assert make_recipe(model, {}).model.name == model


def test_recipe_help_is_a_sentence_that_reads_alone():
    for entry in all_entries():
        text = entry.option.help
        assert text[0].isupper(), text
        assert text.endswith("."), text
        assert not re.match(r"(Of|The same|That|This|Those|It|Likewise)\b", text), text
        assert "\n" not in text


def test_recipe_without_labels_trains_in_small_steps_unless_told_otherwise():
    def training(**changes):
        recovery = make_recipe("tiny_chexnet", changes).recovery
        return recovery.distill_loss, recovery.batch_norm, recovery.learning_rate

    unlabeled = {"dataset": "images"}
    assert training(**unlabeled) == ("logits", "hold", 3e-5)
    assert training(**unlabeled, recovery_batch_norm="train", recovery_learning_rate=1e-3) == ("logits", "train", 1e-3)
    usual = ("probabilities", "train", 1e-3)
    assert training(**unlabeled, from_scratch=True) == usual, "there is nothing to keep"
    assert training() == usual
    chexnet = make_recipe("chexnet", unlabeled)
    assert (chexnet.recovery.learning_rate, chexnet.sparsity.learning_rate) == (3e-5, 1e-4)
    chosen = Recipe().with_values(**unlabeled, recovery_learning_rate=6e-4)
    assert without_labels(chosen, ()).recovery.learning_rate == 6e-4, "by a recipe's file"

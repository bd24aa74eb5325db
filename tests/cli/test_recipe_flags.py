"""The flags of a recipe: one for each field, with the field's own choices, default and help."""

from __future__ import annotations

import dataclasses
import json

import pytest
from absl import flags

from cxr_compress.cli.app import UsageError
from cxr_compress.cli.recipe_flags import common_flags, define_recipe_flags, given_values, heading, make_recipe_of
from cxr_compress.errors import CompressionError
from cxr_compress.recipe import fields
from cxr_compress.recipe.fields import Section, all_entries, option, register_section
from cxr_compress.recipe.recipe import Recipe


def parsed(*arguments: str, names=None, with_defaults: bool = False) -> flags.FlagValues:
    values = flags.FlagValues()
    define_recipe_flags(values, names, with_defaults=with_defaults)
    if names is None:
        flags.DEFINE_string("recipe", None, "", flag_values=values)
        flags.DEFINE_string("keras_model_file", None, "", flag_values=values)
    values(["cxr_compress", *arguments])
    return values


def test_every_field_has_a_flag_of_its_section_with_help_and_default():
    values = parsed()
    by_module = {name: [flag.name for flag in found] for name, found in values.flags_by_module_dict().items()}
    for entry in all_entries():
        flag = values[entry.flag]
        assert flag.default is None
        assert entry.option.help in flag.help
        assert entry.flag in by_module[heading(entry.path.partition(".")[0])]
    assert "(default: mse)" in values["calibration_method"].help
    assert "kermany|medmnist|nih" in values["dataset"].help
    assert "One of chexnet, densenet169, " in values["model"].help
    assert values["sparsity_block"].help.endswith("(default: 1,4)")


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--target_macs=0.25"], {"target_macs": 0.25}),
        (["--target_macs=1000000"], {"target_macs": 1_000_000}),
        (["--target_params=0.5"], {"target_params": 0.5, "target_macs": None}),
        (["--target_bytes=1.5MB"], {"target_bytes": 1_500_000, "target_macs": None}),
        (["--target_bytes=640kb", "--target_macs=0.3"], {"target_bytes": 640_000, "target_macs": 0.3}),
        (["--target_latency_ms=12.5"], {"target_latency_ms": 12.5, "target_bytes": None}),
        (["--target_macs=none", "--weight_sparsity=0"], {"target_macs": None, "weight_sparsity": 0.0}),
        (["--exclude=conv1.*,g1"], {"exclude": ("conv1.*", "g1")}),
        (["--allow_missing", "--noreconstruct"], {"allow_missing": True, "reconstruct": False}),
        (["--overrides=a=b.*=0.5,head/.*=0"], {"overrides": {"a=b.*": 0.5, "head/.*": 0.0}}),
        (['--overrides="conv{1,2}=0.5"'], {"overrides": {"conv{1,2}": 0.5}}),
        (["--weight_threshold=0.02"], {"weight_threshold": 0.02, "weight_sparsity": 0.0}),
        (["--options=uncertain=ones,flag=a=b"], {"options": {"uncertain": "ones", "flag": "a=b"}}),
        (["--augment_gamma=0.2", "--augment_mirror"], {"augment_gamma": 0.2, "augment_mirror": True}),
        (["--sparsity_block=2,8", "--seed=7"], {"sparsity_block": (2, 8), "seed": 7}),
        (["--labels=a,b", "--preset=unit"], {"labels": ("a", "b"), "preset": "unit"}),
    ],
)
def test_flags_become_the_recipe(arguments, changed):
    recipe = make_recipe_of(parsed("--model=tiny_chexnet", "--dataset=phantom", *arguments))
    for name, value in changed.items():
        assert recipe.value(name) == value
    assert recipe.removal.round_to == 4, "the preset of the model holds where no flag says otherwise"


def test_every_value_of_a_recipe_can_be_given_as_flags(tmp_path):
    recipe = Recipe().with_values(target_bytes=500_000, overrides={"stem": 0.1}, options={"a": "b"}, exclude=["x", "y"])
    arguments = []
    for entry in all_entries():
        value = recipe.value(entry.flag)
        if entry.flag in ("max_flips", "max_logit_distance"):
            continue  # for images without labels, which this data set is not
        if isinstance(value, bool):
            arguments.append(f"--{'' if value else 'no'}{entry.flag}")
        elif isinstance(value, dict):
            arguments.append(f"--{entry.flag}={','.join(f'{name}={number}' for name, number in value.items())}")
        elif isinstance(value, tuple):
            arguments.append(f"--{entry.flag}={','.join(map(str, value))}")
        elif value not in ("", None):
            arguments.append(f"--{entry.flag}={value}")
    assert make_recipe_of(parsed(*arguments)) == recipe


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--target_macs=half"], "expected --target_macs as a fraction such as 0.5 or a whole number, got 'half'"),
        (["--target_bytes=1GB"], "expected --target_bytes as a fraction such as 0.5 or a whole number, got '1GB'"),
        (["--overrides=stem"], "expected --overrides as NAME=NUMBER,..., for example stem.*=0.2; got 'stem'"),
        (["--overrides=stem=half"], "expected --overrides as NAME=NUMBER"),
        (["--sparsity_block=4,wide"], "expected --sparsity_block as whole numbers, for example 1,4; got '4,wide'"),
        (["--options=uncertain"], "expected --options as name=value, got 'uncertain'"),
    ],
)
def test_text_that_a_field_cannot_hold_is_one_line(arguments, line):
    with pytest.raises(UsageError) as caught:
        make_recipe_of(parsed("--model=chexnet", "--dataset=nih", *arguments))
    assert str(caught.value).startswith(line)


def test_recipe_file_is_taken_and_flags_change_it(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"format": 1, "dataset": "nih", "seed": 7, "augment": {"gamma": 0.2, "shift": 0.1}}))
    changed = make_recipe_of(parsed(f"--recipe={path}", "--target_macs=0.3", "--augment_shift=0"))
    assert (changed.data.dataset, changed.run.seed, changed.removal.budget.macs) == ("nih", 7, 0.3)
    assert (changed.training.augment.gamma, changed.training.augment.shift) == (0.2, 0.0)
    with pytest.raises(UsageError, match="expected --recipe to be a file, got 'gone'"):
        make_recipe_of(parsed("--recipe=gone"))


def test_some_flags_with_defaults_hold_them():
    names = ("epochs", "labels", "dataset", "seed", "augment_shift", "augment_mirror")
    values = parsed("--seed=3", names=names, with_defaults=True)
    assert set(names) <= set(values)
    assert "target_macs" not in values
    assert [values[name].value for name in names] == [10, [], "kermany", 3, 0.06, False]
    assert given_values(values) == {"seed": 3}


def test_common_flags_and_headings_are_those_of_the_sections():
    assert common_flags()["removal"] == ["target_macs", "target_bytes"]
    assert heading("removal") == "removal: Removal of filters: how many go, and which"


def test_flags_of_a_registered_section_are_flags_of_the_recipe():
    @dataclasses.dataclass(frozen=True)
    class BlurSection(Section):
        """Blur of images."""

        radius: int = option(0, "Radius of the blur, pixels.", flag="blur_radius")
        recipe: str = option("", "Name of a flag that the command has.", flag="recipe")

    register_section("blur", BlurSection)
    try:
        values = parsed("--blur_radius=3", names=("blur_radius",))
        assert given_values(values) == {"blur_radius": 3}
        assert heading("blur") == "blur: Blur of images"
        taken = flags.FlagValues()
        flags.DEFINE_string("recipe", None, "", flag_values=taken)
        with pytest.raises(CompressionError, match=r"blur.recipe \(--recipe\) of the recipe has the name of another"):
            define_recipe_flags(taken)
    finally:
        del fields.SECTIONS["blur"]

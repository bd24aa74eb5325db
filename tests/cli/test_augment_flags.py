"""The flags of augmentation: their defaults are those of training, and without defaults only what is given counts."""

from __future__ import annotations

import dataclasses

from absl import flags

from cxr_compress.cli.flags import augment_ranges, define_augment_flags
from cxr_compress.train import AugmentRanges


def parsed(*arguments: str, with_defaults: bool) -> flags.FlagValues:
    values = flags.FlagValues()
    define_augment_flags(values, with_defaults=with_defaults)
    values(["command", *arguments])
    return values


def test_augment_flags_have_the_defaults_of_training():
    usual = dataclasses.asdict(AugmentRanges())
    assert augment_ranges(parsed(with_defaults=True)) == usual
    assert augment_ranges(parsed("--augment_gamma=0.2", with_defaults=True)) == {**usual, "gamma": 0.2}


def test_augment_flags_without_defaults_give_what_was_given_and_say_what_is_usual():
    assert augment_ranges(parsed(with_defaults=False)) == {}
    values = parsed("--augment_shift=0", "--noaugment_mirror", with_defaults=False)
    assert augment_ranges(values) == {"shift": 0.0, "mirror": False}
    for name, usual in dataclasses.asdict(AugmentRanges()).items():
        if name != "mirror":
            assert f" {usual:g} unless given." in values[f"augment_{name}"].help

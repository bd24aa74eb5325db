"""Which data set a verb of cxr_data works on."""

from __future__ import annotations

from typing import Any

from absl import flags

from cxr_compress.cli.common import UsageError, reader_options
from cxr_compress.data.dataset import Dataset
from cxr_compress.data.load import DATASETS, load_dataset


def define_dataset(values: flags.FlagValues) -> None:
    """Define the flags that choose a set, the same for every verb."""
    flags.DEFINE_string("dataset", None, f"Which set: {', '.join(DATASETS)}.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Where it lies.", flag_values=values)
    flags.DEFINE_float("dev_fraction", 0.1, "Share of the training patients that is dev.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the choice of patients.", lower_bound=0, flag_values=values)
    text = "Use what is there of a set whose list names more images."
    flags.DEFINE_boolean("allow_missing", False, text, flag_values=values)
    flags.DEFINE_list("options", [], "Of the set's reader, as name=value.", flag_values=values)


def load(values: flags.FlagValues) -> Dataset:
    """The checked set that the flags choose.

    Raises:
        UsageError: A flag is missing or an option has no value.
        DataError: As `load_dataset`.
    """
    return load_dataset(**chosen_set(values), allow_missing=values.allow_missing)


def chosen_set(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that choose a set, as arguments."""
    for flag_name in ("dataset", "data_dir"):
        if not values[flag_name].value:
            raise UsageError(f"--{flag_name} is missing")
    return {
        "name": values.dataset,
        "data_dir": values.data_dir,
        "dev_fraction": values.dev_fraction,
        "seed": values.seed,
        "options": reader_options(values.options),
    }

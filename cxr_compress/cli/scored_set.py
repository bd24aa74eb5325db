"""The set on which commands score models: its flags, which images, how they are divided, and what results say of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cxr_compress.cli.app import Say, UsageError, reader_options
from cxr_compress.data import DATASETS, Dataset, Split, load_dataset
from cxr_compress.data.splits import join_splits
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import GROUPINGS, Match, groups_of
from cxr_compress.metrics import count_comparable_images, count_images

SPLITS = ("test", "dev", "train", "all")
_AUTO = "auto"
_PACKAGES = ("cxr-compress", "numpy", "opencv-python-headless", "ai-edge-litert", "tensorflow", "tf_keras")


def define_set_flags(values: flags.FlagValues) -> None:
    """Define which images are scored and how they are divided."""
    text, number, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    text("dataset", None, f"Kind of the data set: {', '.join(DATASETS)}.", flag_values=values)
    text("data_dir", None, "Where the data set lies; it is only read.", flag_values=values)
    choice("split", "test", SPLITS, "Which images to score; all is train, dev and test.", flag_values=values)
    help_text = f"Report by {', '.join(GROUPINGS)}; {_AUTO}: by all that the set knows; empty: by none."
    flags.DEFINE_list("by", [_AUTO], help_text, flag_values=values)
    help_text = "Resampled sets of patients behind an interval."
    number("bootstrap_samples", 1000, help_text, lower_bound=1, flag_values=values)
    flags.DEFINE_list("options", [], "Options of the data set's reader, as name=value.", flag_values=values)
    flags.DEFINE_float("dev_fraction", 0.1, "Share of the training patients that is dev.", flag_values=values)
    number("seed", 0, "Seed of the choice of dev and of the resampling.", lower_bound=0, flag_values=values)
    help_text = "Go on with a part of the images that the set's own list names."
    flags.DEFINE_boolean("allow_missing", False, help_text, flag_values=values)
    text("cache_dir", None, "Keep decoded images here, for sets larger than the memory.", flag_values=values)


def check_set_flags(values: flags.FlagValues) -> None:
    """Find what is wrong with them before the slow part starts.

    Raises:
        UsageError: says what is expected.
    """
    for name in ("dataset", "data_dir"):
        if not values[name].value:
            raise UsageError(f"expected --{name}, got none")
    if values.dataset not in DATASETS:
        raise UsageError(f"expected a --dataset of {', '.join(DATASETS)}; got {values.dataset!r}")
    if not Path(values.data_dir).exists():
        raise UsageError(f"expected --data_dir to exist, got {values.data_dir!r}")
    unknown = sorted(set(values.by) - {_AUTO, *GROUPINGS})
    if unknown:
        raise UsageError(f"expected --by as some of {', '.join(GROUPINGS)}, or {_AUTO}; got {unknown[0]!r}")


def load_set(values: flags.FlagValues) -> tuple[Dataset, Split, dict[str, tuple[str, ...]]]:
    """The set, the images of it that are scored, and the group of each by each way to divide them.

    Raises:
        CompressionError: as `load_dataset`; labels are soft, or the set does not know a grouping.
    """
    dataset = load_dataset(
        values.dataset,
        values.data_dir,
        dev_fraction=values.dev_fraction,
        seed=values.seed,
        allow_missing=values.allow_missing,
        options=reader_options(values.options),
    )
    split = join_splits(dataset.splits, "all") if values.split == "all" else getattr(dataset, values.split)
    count_images(split.labels)  # refuses soft labels before anything slow
    return dataset, split, _groups(values.by, split, dataset.name)


def _groups(asked: Sequence[str], split: Split, dataset: str) -> dict[str, tuple[str, ...]]:
    """The ways to divide the images: those asked for, or all that divide them."""
    known = groups_of(split)
    if _AUTO in asked:
        # Groups that never hold an image with a finding beside one without it (subtypes of the disease, say) cannot be
        # scored, alone or within.
        return {
            by: names
            for by, names in known.items()
            if len(set(names)) > 1 and np.any(count_comparable_images(split.labels, names))
        }
    lacking = [by for by in asked if by not in known]
    if lacking:
        raise CompressionError(
            f"{dataset} does not say the {lacking[0]} of its {split.name} images (it says: "
            f"{', '.join(known) or 'nothing'}); correct --by"
        )
    return {by: known[by] for by in asked}


def describe_set(values: flags.FlagValues, dataset: Dataset, split: Split) -> dict[str, Any]:
    """What the results say about the images."""
    return {
        "name": dataset.name,
        "split": split.name,
        "images": len(split),
        "patients": len(set(split.patients)),
        "patient_key": dataset.patient_key,
        "findings": list(dataset.findings),
        "attribution": dataset.attribution,
        "synthetic": dataset.synthetic,
        "notes": list(dataset.notes),
        "options": reader_options(values.options),
        "dev_fraction": values.dev_fraction,
        "seed": values.seed,
    }


def say_what_to_know(log: Say, dataset: Dataset, split: Split, match: Match) -> None:
    """What a reader of the numbers has to know, before they come."""
    if split.name in ("train", "all"):
        log(f"note: --split={split.name} holds images that a model trained on {dataset.name} has seen")
    if match.by_position:
        log("note: findings are matched by position, not by name")
    for whose, names in (("the model", match.only_model), ("the data set", match.only_dataset)):
        if names:
            log(f"note: not scored, only {whose} has {', '.join(names)}")
    for note in dataset.notes:
        log(f"note: {note}")
    if dataset.synthetic:
        log("warning: drawn images; the numbers say nothing about patients")


def installed_versions() -> dict[str, str]:
    """What was installed."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed

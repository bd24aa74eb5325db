r"""Decode a data set once, into files that training reads like memory: ``cxr_data cache``.

    cxr_data cache --dataset=kermany --data_dir=chest_xray --cache_dir=cache --size=224,112
    cxr_data cache --dataset=kermany --data_dir=chest_xray --cache_dir=cache --size=224 --verify

One file per split and size, 50 KB an image at 224 px (112,120 images: 5.6 GB). Ctrl-C, a crash or a full disk lose a
few
seconds of work: the same command goes on. Caches that are complete and whose images have not changed are left alone;
--verify then reads every byte of them, and of the images, and compares checksums.
"""

from __future__ import annotations

import time
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError, print_error, reader_options
from cxr_compress.cli.output import write_results
from cxr_compress.cli.progress import Meter
from cxr_compress.data.cache import build_cache, verify_cache
from cxr_compress.data.dataset import Dataset, Split
from cxr_compress.data.readers.base import DATASETS, load_dataset
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.files import check_writable


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


_COLUMNS = ("split", "size", "images", "decoded", "bytes", "seconds", "images_per_second", "sha256")


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this sub-command; those that choose the data set are shared with the others."""
    flags.DEFINE_string("cache_dir", None, "Where the caches go; may be shared by data sets.", flag_values=values)
    flags.DEFINE_list("size", ["224"], "Heights and widths of the images, pixels.", flag_values=values)
    text = "Keep three channels, as for skin; by default as the set is."
    flags.DEFINE_boolean("color", None, text, flag_values=values)
    flags.DEFINE_boolean("verify", False, "Also read and check all of the caches and images.", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Build what is missing, and print a row per split and size.

    Raises:
        CompressionError: A wrong flag, images that cannot be used, no room on the disk, or a damaged cache.
    """
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    for name in ("dataset", "data_dir", "cache_dir"):
        if not getattr(values, name):
            raise UsageError(f"--{name} is missing")
    sizes = [_size(text) for text in values.size]
    if not sizes:
        raise UsageError("expected --size as at least one number of pixels")
    check_writable(values.cache_dir, to_be_made=True)
    dataset = load(values)
    for note in dataset.notes:
        print_error("cxr_data", f"note: {note}")
    color = dataset.color if values.color is None else "rgb" if values.color else "gray"
    specs = [PreprocessSpec(size, size, color=color) for size in sizes]
    meter = Meter("cxr_data")
    try:
        rows = [_build(split, spec, values, meter) for spec in specs for split in dataset.splits if len(split)]
    except KeyboardInterrupt as error:  # or one of its kind, which stays what it is
        error.args = ("what is done is kept; the same command goes on from there",)
        raise
    write_results(
        values.format,
        document={
            "dataset": dataset.name,
            "verified": values.verify,
            "caches": rows,
            "attribution": dataset.attribution,
        },
        headers=_COLUMNS,
        rows=[[row[column] for column in _COLUMNS] for row in rows],
    )
    return EXIT_OK


def _build(split: Split, spec: PreprocessSpec, values: flags.FlagValues, meter: Meter) -> dict[str, Any]:
    what = f"{split.name} at {spec.height}x{spec.width}"
    started = time.perf_counter()
    entry = build_cache(split, spec, values.cache_dir, progress=meter.counter(f"cached {what}", "images"))
    seconds = time.perf_counter() - started
    if values.verify:
        verify_cache(split, spec, values.cache_dir, progress=meter.counter(f"verified {what}", "images"))
    return {
        "split": split.name,
        "size": spec.height,
        "images": entry.images,
        "decoded": entry.decoded,
        "bytes": entry.bytes,
        "seconds": round(seconds, 2),
        "images_per_second": round(entry.decoded / seconds, 1) if entry.decoded else None,
        "sha256": entry.sha256,
        "path": str(entry.path),
    }


def _size(text: str) -> int:
    if not text.strip().isdigit() or not int(text):
        raise UsageError(f"expected --size as numbers of pixels such as 224,112; got {text!r}")
    return int(text)

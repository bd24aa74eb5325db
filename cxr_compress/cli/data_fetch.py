r"""Download a MedMNIST+ archive: ``cxr_data fetch``.

    cxr_data fetch --dataset=pneumoniamnist --size=64 --output_dir=medmnist
    cxr_data fetch --dataset=chestmnist --size=224 --output_dir=medmnist --mirror=https://mirror.example/medmnist

An interrupted download goes on where it ended. The file gets its name when its checksum is the published one; a file
that is there already is checked and left alone. Where no network is, the one line of the error says which file to
bring, and where to put it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError
from cxr_compress.cli.output import write_results
from cxr_compress.cli.progress import Meter
from cxr_compress.data.fetch import ATTRIBUTION, FETCHABLE, SIZES, fetch, medmnist_archive

_COLUMNS = ("file", "bytes", "md5", "seconds")


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this sub-command; --dataset is shared with the others."""
    flags.DEFINE_enum(
        "size", str(SIZES[0]), [str(size) for size in SIZES], "Pixels of the images in the archive.", flag_values=values
    )
    flags.DEFINE_string("output_dir", None, "Where the archive goes.", flag_values=values)
    flags.DEFINE_string(
        "mirror", None, "Address of a folder with a copy of the archive, instead of Zenodo.", flag_values=values
    )


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Download, check, and print what lies where.

    Raises:
        CompressionError: A wrong flag, or the archive cannot be had; one line says what to do.
    """
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    if values.dataset not in FETCHABLE:
        raise UsageError(f"expected --dataset to be one of {', '.join(FETCHABLE)}, got {values.dataset!r}")
    if not values.output_dir:
        raise UsageError("--output_dir is missing: the folder for the archive")
    archive = medmnist_archive(values.dataset, int(values.size))
    started = time.perf_counter()
    count = Meter("cxr_data").counter(f"downloaded {archive.file}", "bytes")
    try:
        path = fetch(archive, values.output_dir, mirror=values.mirror, progress=count)
    except KeyboardInterrupt as error:  # or one of its kind, which stays what it is
        error.args = ("what has arrived is kept; the same command goes on from there",)
        raise
    row: dict[str, Any] = {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "md5": archive.md5,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_results(
        values.format,
        document={**row, "attribution": ATTRIBUTION},
        headers=_COLUMNS,
        rows=[[row[column] for column in _COLUMNS]],
    )
    return EXIT_OK

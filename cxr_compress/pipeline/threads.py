"""The number of threads that TensorFlow computes with: part of what decides the bytes of a run."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.pipeline.store import Log
from cxr_compress.recipe import Recipe


def use_threads(count: int, log: Log) -> int:
    """Let TensorFlow compute with so many threads, within an operation and among them, and give how many it has.

    It takes the number only before it computes for the first time in a process. Where that is past, as in a notebook,
    and it has another one, `progress` is told that the bytes may be others. NumPy's products, which refit layers, get
    as many threads; they too take all cores of a machine otherwise.
    """
    import tensorflow as tf

    _limit_blas(count)
    threading = tf.config.threading
    try:
        threading.set_intra_op_parallelism_threads(count)
        threading.set_inter_op_parallelism_threads(count)
    except RuntimeError:
        had = threading.get_intra_op_parallelism_threads() or _cores()
        if had != count:
            log(
                f"threads: TensorFlow runs already in this process, with {had} threads; the recipe's {count} does not "
                "hold, so that another process gives other bytes"
            )
        return int(had)
    return count


def tell_threads(kept: Path, recipe: Recipe, log: Log) -> None:
    """Say that stages are done again, where the folder's run had another number of threads.

    Args:
        kept: the recipe of the run that the folder holds, if there is one.
        recipe: the one that goes on.
        log: is told.
    """
    try:
        had = Recipe.from_json(kept.read_text(encoding="utf-8")).run.num_threads
    except (OSError, CompressionError):  # a new folder, or half a file that is written again now
        return
    if had != recipe.run.num_threads:
        log(
            f"threads: this folder's run had {had}, this one has {recipe.run.num_threads}, which gives other bytes: "
            f"stages are done again (--num_threads={had} keeps them)"
        )


def _limit_blas(count: int) -> None:
    """Set the threads of the OpenBLAS that NumPy's wheels bring; another BLAS is left as it is."""
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for file in folder.glob("*openblas*"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(str(file))  # the one that is loaded already
            for name in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_"):
                if hasattr(library, name):
                    getattr(library, name)(ctypes.c_int(count))
                    break


def _cores() -> int:
    """Those that this process may use: what TensorFlow takes where no number is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

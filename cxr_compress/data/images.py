"""Decodes a whole split once, to the bytes that training, calibration and scoring all start from."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.dataset import Split
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8
from cxr_compress.errors import DataError

_NAMED = 5  # bad files that an error names; the others are counted
_BATCH = 16  # films per task, and tasks queued per worker: a wave is long enough to keep all cores busy and short
_QUEUED = 8  # enough that progress is smooth and Ctrl-C ends at once instead of after the whole set


def decode_split(
    split: Split,
    spec: PreprocessSpec,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """All films of a split, decoded and resized, in the split's order.

    ``device.preprocess.normalize`` of a row is bit-equal to ``device.preprocess.preprocess`` of its file. What is held
    is the array that is returned (11 KB a film at 112 px), plus one full-size image per worker.

    Args:
        split: Which films.
        spec: Size and colour; the normalisation in it is not applied here.
        workers: Threads; None for one per core. OpenCV decodes outside Python's lock, so threads do scale.
        progress: Called as (films done, films in all) from the calling thread.

    Returns:
        uint8 (n, height, width), or (n, height, width, 3) where ``spec.color`` is "rgb".

    Raises:
        DataError: Films that cannot be used: up to five are named, each with its reason, all are counted.
    """
    shape = (spec.height, spec.width) if spec.color == "gray" else (spec.height, spec.width, 3)
    images = np.empty((len(split), *shape), np.uint8)
    starts = iter(range(0, len(split), _BATCH))

    def decode(start: int) -> list[tuple[int, str]]:
        return _decode_into(images, split.paths, start, spec)

    bad: list[tuple[int, str]] = []
    done = 0
    count = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        while wave := list(islice(starts, _QUEUED * count)):
            for start, failed in zip(wave, pool.map(decode, wave), strict=True):
                bad += failed
                done = min(start + _BATCH, len(split))
                if progress is not None:
                    progress(done, len(split))
    if bad:
        raise DataError(_describe(split, bad))
    return images


def _decode_into(
    images: NDArray[np.uint8], paths: tuple[Path, ...], start: int, spec: PreprocessSpec
) -> list[tuple[int, str]]:
    """Fills one batch of rows; the films that failed, with the reason."""
    failed: list[tuple[int, str]] = []
    for row in range(start, min(start + _BATCH, len(paths))):
        try:
            images[row] = load_uint8(paths[row], spec)
        except DataError as error:
            failed.append((row, str(error)))
    return failed


def _describe(split: Split, bad: list[tuple[int, str]]) -> str:
    """One line for all bad films of a split."""
    named = "; ".join(
        reason if split.paths[row].name in reason else f"{split.paths[row].name}: {reason}"
        for row, reason in bad[:_NAMED]
    )
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"{len(bad)} of the {len(split)} films in {split.name} cannot be used: {named}{more}"

"""Decodes a whole split once, to the bytes that training, calibration and scoring all start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.cache import build_cache, map_cache
from cxr_compress.data.dataset import Split
from cxr_compress.data.decoding import Progress, decode_chunks, film_shape, refuse_bad, warn_of_notes
from cxr_compress.device.preprocess import PreprocessSpec

_CHUNK = 256  # films; here only the unit in which finished work is handed on


def decode_split(
    split: Split,
    spec: PreprocessSpec,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    cache_dir: str | Path | None = None,
) -> NDArray[np.uint8]:
    """All films of a split, decoded and resized, in the split's order.

    ``device.preprocess.normalize`` of a row is bit-equal to ``device.preprocess.preprocess`` of its file, or of its
    array where the split holds pixels. What is held is the array that is returned (11 KB a film at 112 px), plus one
    full-size image per worker. With a cache folder nearly nothing is held: the films are read from disk as they are
    used, and later calls decode nothing; see ``data.cache`` for what that trusts.

    Args:
        split: Which films.
        spec: Size and colour; the normalisation in it is not applied here.
        workers: Threads; None for one per core. OpenCV decodes outside Python's lock, so threads do scale.
        progress: Called as (films done, films in all) from the calling thread.
        cache_dir: Folder of memory-mapped caches; made if missing. None decodes into memory.

    Returns:
        uint8 (n, height, width), or (n, height, width, 3) where ``spec.color`` is "rgb"; a read-only memory map with a
        cache folder.

    Raises:
        DataError: Films that cannot be used: up to five are named, each with its reason, all are counted. With a cache
            folder also as ``build_cache``.
    """
    if cache_dir is not None and len(split):
        return map_cache(build_cache(split, spec, cache_dir, workers=workers, progress=progress))
    images = np.empty((len(split), *film_shape(spec)), np.uint8)
    chunks = [range(start, min(start + _CHUNK, len(split))) for start in range(0, len(split), _CHUNK)]
    bad: list[tuple[int, str]] = []
    notes: list[tuple[int, str]] = []
    for chunk in decode_chunks(split, spec, chunks, into=images, workers=workers, progress=progress):
        bad += chunk.bad
        notes += chunk.notes
    refuse_bad(split, bad)
    warn_of_notes(split, notes)
    return images

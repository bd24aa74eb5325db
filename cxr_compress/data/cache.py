r"""Decoded images on disk: decoded once, then read through a memory map in every epoch of every run.

A cache is one .npy file of fixed-size uint8 rows (`numpy.load` reads it) and a JSON manifest beside it; 112,120
images at 224 px take 5.6 GB. It belongs to one split (order, relative paths and sizes of its images) and one size and
color. Anything in a cache folder may be deleted when nothing uses it: what is missing is made again. Caches of images
that have changed since, and unfinished ones (.partial, .journal), stay until then.

What an opened cache trusts, from cheap to dear:

- always: the manifest, the size of the data file, and that every image has the size and modification time it had. If
  only times differ (the set was copied), the images' contents are compared, which reads them but decodes nothing.
- `verify_cache`: every byte of the cache, and the contents of every image. Only this finds an image that was changed
  without changing its size or time, and a disk that flips bits.

Neither names nor patients are in the manifest: only digests.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.cache_file import (
    FORMAT,
    PREPROCESS_VERSION,
    CachePlan,
    Manifest,
    PartialCache,
    changed_chunks,
    digest_of,
    file_sha256,
    map_rows,
    pixel_fields,
    plan_cache,
    same_contents,
)
from cxr_compress.data.decoding import Progress, decode_chunks, image_shape, source_digests
from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.files import exclusive, make_folder, write_text


@dataclass(frozen=True)
class CacheEntry:
    """A complete cache.

    Attributes:
        path: the .npy file.
        images: rows in it.
        bytes: size of the file.
        sha256: digest of the file.
        decoded: images that this call decoded; 0 if the cache was there already.
    """

    path: Path
    images: int
    bytes: int
    sha256: str
    decoded: int


def build_cache(
    split: Split,
    spec: PreprocessSpec,
    cache_dir: str | Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CacheEntry:
    """Make sure that a split's cache is complete and true; decodes only what is missing.

    Ctrl-C, kill -9 or a full disk cost at most the chunk that was being written, and never a complete cache. Of several
    processes that want the same cache one builds it and the others wait.

    Args:
        split: the images; at least one.
        spec: size and color; its normalization does not matter.
        cache_dir: folder of the cache; made if missing.
        workers: threads; None for one per core.
        progress: called as (images done, images in all).

    Raises:
        DataError: images cannot be used (no cache is made, what was decoded is kept), the split is empty, or the disk
            has no room: says how many bytes are needed and free.
        CompressionError: the folder cannot be written.
    """
    if not len(split):
        raise DataError(f"expected images to cache, the {split.name} split has none")
    plan = plan_cache(split, spec, cache_dir)
    manifest = _read_true(plan, workers)
    if manifest is not None:
        return _entry(plan, manifest, 0)
    folder = make_folder(cache_dir)
    try:
        with exclusive(plan.lock):
            manifest = _read_true(plan, workers)
            return _build(plan, workers, progress) if manifest is None else _entry(plan, manifest, 0)
    except OSError as error:
        raise DataError(
            f"could not write the cache of {split.name} in {folder}: {error.strerror or error}; choose another folder "
            "or put that right, and run the same command again"
        ) from error


def open_cache(split: Split, spec: PreprocessSpec, cache_dir: str | Path) -> NDArray[np.uint8]:
    """A split's complete cache as a read-only memory map, to be used like any array.

    Returns:
        `numpy.memmap`, uint8 (images, height, width), or (images, height, width, 3) where `spec.color` is "rgb".

    Raises:
        DataError: there is no complete cache, or its images have changed.
    """
    plan = plan_cache(split, spec, cache_dir)
    return map_cache(_entry(plan, _require(plan), 0))


def map_cache(entry: CacheEntry) -> NDArray[np.uint8]:
    """The rows of a complete cache as a read-only `numpy.memmap`."""
    images: NDArray[np.uint8] = np.load(entry.path, mmap_mode="r", allow_pickle=False)
    return images


def verify_cache(
    split: Split,
    spec: PreprocessSpec,
    cache_dir: str | Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CacheEntry:
    """Read all of a cache and all of its images, and compare both with what was noted when it was made.

    Args:
        split: the images.
        spec: their size and color.
        cache_dir: folder of the cache.
        workers: threads that read the images; None for one per core.
        progress: called as (images done, images in all) while the images are read.

    Raises:
        DataError: there is no complete cache, a part of it is damaged, or images have other contents than when they
            were decoded.
    """
    plan = plan_cache(split, spec, cache_dir)
    manifest = _require(plan)
    remedy = f"delete {plan.data} and run the same command again"
    rows = map_rows(plan, plan.data)
    for index, record in enumerate(manifest.chunks):
        if rows is None or digest_of(rows, plan.chunks[index]) != record.pixels:
            raise DataError(f"the cache {plan.data} is damaged in {_images(plan, index)}; {remedy}")
    if file_sha256(plan.data) != manifest.sha256:
        raise DataError(f"the cache {plan.data} is damaged before its first image; {remedy}")
    digests = source_digests(split, plan.chunks, workers=workers, progress=progress)
    for index, (sources, record) in enumerate(zip(digests, manifest.chunks, strict=True)):
        if sources != record.sources:
            raise DataError(
                f"{_images(plan, index)} of {split.name} hold something else than when they were cached, though their "
                f"sizes and times are the same; {remedy}"
            )
    return _entry(plan, manifest, 0)


def _read_true(plan: CachePlan, workers: int | None = None) -> Manifest | None:
    """The manifest if the cache is complete and its images are those that were decoded."""
    manifest = plan.read_manifest()
    if manifest is None:
        return None
    changed = changed_chunks(plan, manifest)
    if not changed:
        return manifest
    if not same_contents(plan, manifest, changed, workers):
        return None
    pairs = zip(manifest.chunks, plan.states, strict=True)
    manifest = replace(manifest, chunks=tuple(replace(record, state=state) for record, state in pairs))
    with contextlib.suppress(CompressionError):  # a shared cache that others may only read is as good
        write_text(plan.manifest, manifest.to_json())
    return manifest


def _build(plan: CachePlan, workers: int | None, progress: Progress | None) -> CacheEntry:
    with contextlib.closing(PartialCache(plan)) as partial:
        todo = [index for index in range(len(plan.chunks)) if index not in partial.done]
        missing = [plan.chunks[index] for index in todo]
        decoding = decode_chunks(plan.split, plan.spec, missing, workers=workers, progress=progress, digests=True)
        with contextlib.closing(decoding):
            for index, chunk in zip(todo, decoding, strict=True):
                if not chunk.bad:
                    partial.write(index, chunk.images, chunk.sources)
        return _entry(plan, partial.finish(), sum(map(len, missing)))


def _require(plan: CachePlan) -> Manifest:
    manifest = _read_true(plan)
    if manifest is None:
        raise DataError(
            f"expected a complete cache of {plan.split.name} at {plan.spec.height}x{plan.spec.width} "
            f"({plan.spec.color}) in {plan.data.parent}, found none that fits these images: build it first (cxr_data "
            "cache)"
        )
    return manifest


def _entry(plan: CachePlan, manifest: Manifest, decoded: int) -> CacheEntry:
    return CacheEntry(plan.data, len(plan.split), plan.data_bytes, manifest.sha256, decoded)


def _images(plan: CachePlan, index: int) -> str:
    images = plan.chunks[index]
    return f"images {images.start} to {images.stop - 1}"


_CHUNK = 256  # images that are decoded into memory as one piece of work


def decode_split(
    split: Split,
    spec: PreprocessSpec,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    cache_dir: str | Path | None = None,
) -> NDArray[np.uint8]:
    """All images of a split, decoded and resized, in the split's order.

    `device.preprocess.normalize` of a row is bit-equal to `device.preprocess.preprocess` of its file, or of its
    array where the split holds pixels. What is held is the array that is returned (11 KB an image at 112 px), plus one
    full-size image per worker. With a cache folder nearly nothing is held: the images are read from disk as they are
    used, and later calls decode nothing; see `data.cache` for what that trusts.

    Args:
        split: the images.
        spec: size and color; the normalization in it is not applied here.
        workers: threads; None for one per core. OpenCV decodes outside Python's lock, so threads do scale.
        progress: called as (images done, images in all) from the calling thread.
        cache_dir: folder of memory-mapped caches; made if missing. None decodes into memory.

    Returns:
        uint8 (n, height, width), or (n, height, width, 3) where `spec.color` is "rgb"; a read-only memory map with a
        cache folder.

    Raises:
        DataError: images that cannot be used: up to five are named, each with its reason, all are counted. With a cache
            folder also as `build_cache`.
    """
    if cache_dir is not None and len(split):
        return map_cache(build_cache(split, spec, cache_dir, workers=workers, progress=progress))
    images = np.empty((len(split), *image_shape(spec)), np.uint8)
    chunks = [range(start, min(start + _CHUNK, len(split))) for start in range(0, len(split), _CHUNK)]
    for _ in decode_chunks(split, spec, chunks, into=images, workers=workers, progress=progress):
        pass
    return images


_TEST = "test"


def open_cache_file(path: str | Path, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The decoded images of a cache, as a read-only memory map.

    Its manifest has to lie beside it, as `cxr_data cache` leaves it. Whether the images have changed since cannot be
    seen without them; where the data set is at hand, `open_cache` looks.

    Args:
        path: the .npy file.
        spec: size and color that the images have to have.

    Returns:
        uint8 (images, height, width), or (images, height, width, 3) where `spec.color` is "rgb".

    Raises:
        DataError: no cache, an unfinished or damaged one, of other images than `spec` asks for, or of the test part,
            which nothing but a score may be taken from.
    """
    path = Path(path)
    if path.name.startswith(f"{_TEST}_"):
        raise DataError(f"{path.name} is a cache of the test part, which is for scoring alone: give that of train")
    manifest, images = _read(path)
    if (manifest.format, manifest.preprocess_version) != (FORMAT, PREPROCESS_VERSION):
        raise DataError(f"{path.name} was made by another version of cxr_data: build it again with cxr_data cache")
    if manifest.preprocessing != pixel_fields(spec) or images.shape[1:] != image_shape(spec):
        size, color = (images.shape[1:3], manifest.preprocessing.get("color"))
        raise DataError(
            f"expected images of {spec.height} x {spec.width} ({spec.color}) for this model, {path.name} holds "
            f"{' x '.join(map(str, size))} ({color}): build one with cxr_data cache --input_size={spec.height}"
        )
    return images


def _read(path: Path) -> tuple[Manifest, NDArray[np.uint8]]:
    """Manifest and images, of which the one describes the other."""
    try:
        manifest = Manifest.from_json(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path.name} has no manifest of cxr_data cache beside it ({path.with_suffix('.json').name}): give a cache "
            "that is finished, with both of its files"
        ) from error
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path.name} cannot be read as a cache ({error}): build it again with cxr_data") from error
    if images.dtype != np.uint8 or images.shape != manifest.shape:
        raise DataError(f"{path.name} does not hold what its manifest says: build it again with cxr_data cache")
    return manifest, images

"""Decodes runs of images on all cores, in order, and says which of them cannot be used."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import Prepared, PreprocessSpec, prepare, resize_uint8, to_uint8
from cxr_compress.errors import DataError

Progress = Callable[[int, int], None]
Pixels = NDArray[np.uint8]

DIGEST_BYTES = 16

_NAMED = 5  # bad images that an error names; the others are counted
# Images per task: long beside the cost of a task, short enough that progress is smooth and Ctrl-C ends at once.
_TASK = 8
_WAITING = 3  # tasks queued per worker, so that no core waits while the caller writes what is done


class ImageNoteWarning(UserWarning):
    """Images of a set were not read as their files declare (say, 12 of 16 bits), or are smaller than the model's."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A decoded run of images.

    Attributes:
        rows: rows of the split.
        images: uint8 (images, height, width[, 3]); rows of bad images hold anything.
        bad: (row, reason) of the images that cannot be used.
        notes: (row, note) of the images that a person should know something about.
        small: (row, (height, width)) of the images that have fewer pixels than the model takes, either way.
        sources: digest of what was decoded (file contents, or the split's own pixels); empty unless asked for.
    """

    rows: range
    images: Pixels
    bad: tuple[tuple[int, str], ...]
    notes: tuple[tuple[int, str], ...]
    small: tuple[tuple[int, tuple[int, int]], ...]
    sources: str


def image_shape(spec: PreprocessSpec) -> tuple[int, ...]:
    """(height, width) of a decoded image, or (height, width, 3) where `spec.color` is "rgb"."""
    return (spec.height, spec.width) if spec.color == "gray" else (spec.height, spec.width, 3)


def decode_image(split: Split, row: int, spec: PreprocessSpec) -> Prepared:
    """One image of a split, from its file or from the split's own pixels.

    Raises:
        DataError: the image cannot be used.
    """
    if split.paths:
        return prepare(split.paths[row], spec)
    image = to_uint8(own_pixels(split)[row], spec)
    return Prepared(resize_uint8(image, spec), image)


def decode_chunks(
    split: Split,
    spec: PreprocessSpec,
    chunks: Sequence[range],
    *,
    into: Pixels | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    digests: bool = False,
) -> Generator[Chunk, None, None]:
    """Yield the chunks in order while the workers are already at the next ones; at the end, judge all images.

    Threads, not processes: OpenCV, zlib and hashlib work outside Python's lock. On two cores, threads beside processes
    gave 8,341 and 8,704 images/s on JPEGs of 224 px, 307 and 306 on JPEGs of about 1,300 px, 216 and 225 on PNGs of
    1,024 px, and processes cost start-up, memory and a copy of every image.

    Args:
        split: the images.
        spec: size and color.
        chunks: rows to decode.
        into: array of all images of the split whose rows are filled; new arrays per chunk if None.
        workers: threads; None for one per core.
        progress: called as (images done, images in all), counting images outside `chunks` as done.
        digests: compute `Chunk.sources`; every file is then read twice, once from the system's cache.

    Raises:
        DataError: after the last chunk, if images cannot be used: up to five are named with reasons, all are counted.
    """
    count = workers or os.cpu_count() or 1
    done = len(split) - sum(map(len, chunks))
    pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
    waiting: deque[tuple[range, Pixels, list[Future[_Done]]]] = deque()
    upcoming = deque(chunks)
    bad: list[tuple[int, str]] = []
    notes: list[tuple[int, str]] = []
    small: list[tuple[int, tuple[int, int]]] = []
    try:
        while upcoming or waiting:
            # Two chunks at least: one is being written by the caller while the other is decoded.
            while upcoming and (len(waiting) < 2 or sum(len(t) for *_, t in waiting) < _WAITING * count):  # noqa: PLR2004
                rows = upcoming.popleft()
                images = _rows(into, rows, spec)
                decode = partial(_decode, split, spec, first=rows.start, images=images, digests=digests)
                futures = [pool.submit(decode, rows[at : at + _TASK]) for at in range(0, len(rows), _TASK)]
                waiting.append((rows, images, futures))
            rows, images, futures = waiting.popleft()
            results = []
            for future in futures:
                results.append(future.result())
                done += len(results[-1].rows)
                if progress is not None:
                    progress(done, len(split))
            chunk = _join(rows, images, results, digests=digests)
            bad += chunk.bad
            notes += chunk.notes
            small += chunk.small
            yield chunk
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    _refuse_bad(split, bad)
    _warn_of_notes(split, notes)
    _warn_of_small(split, small, sum(map(len, chunks)), spec)


def source_digests(
    split: Split, chunks: Sequence[range], *, workers: int | None = None, progress: Progress | None = None
) -> list[str]:
    """`Chunk.sources` of each chunk, without decoding anything; unlike any other where a file cannot be read.

    Args:
        split: the images.
        chunks: rows.
        workers: threads; None for one per core.
        progress: called as (images done, images in these chunks).
    """
    digests = []
    done, total = 0, sum(map(len, chunks))
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for rows in chunks:
            digests.append(_combine(pool.map(lambda row: _image_digest(split, row), rows)))
            done += len(rows)
            if progress is not None:
                progress(done, total)
    return digests


def _refuse_bad(split: Split, bad: Sequence[tuple[int, str]]) -> None:
    if not bad:
        return
    named = "; ".join(_name(split, row, reason) for row, reason in bad[:_NAMED])
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    raise DataError(f"{len(bad)} of the {len(split)} images in {split.name} cannot be used: {named}{more}")


def _warn_of_notes(split: Split, notes: Sequence[tuple[int, str]]) -> None:
    if not notes:
        return
    count, (row, note) = len({row for row, _ in notes}), notes[0]
    # By its position: a file name is often a patient's, and warnings end up in logs.
    text = f"{count} of the {len(split)} images in {split.name} need a look, the first is image {row + 1}: it {note}"
    warnings.warn(text, ImageNoteWarning, stacklevel=4)


def _warn_of_small(split: Split, small: Sequence[tuple[int, tuple[int, int]]], read: int, spec: PreprocessSpec) -> None:
    """Enlarged images are blurred: what is small in them is lost, and sharpness may tell where an image comes from."""
    if not small:
        return
    height, width = min((size for _, size in small), key=lambda size: size[0] * size[1])
    text = (
        f"{len(small)} of the {read} images read of {split.name} have fewer pixels than the {spec.height} x "
        f"{spec.width} that the model takes and are enlarged; the smallest has {height} x {width}"
    )
    warnings.warn(text, ImageNoteWarning, stacklevel=4)


@dataclass(frozen=True)
class _Done:
    """The result of one task; its pixels are in the chunk's array already."""

    rows: range
    bad: tuple[tuple[int, str], ...]
    notes: tuple[tuple[int, str], ...]
    small: tuple[tuple[int, tuple[int, int]], ...]
    digests: tuple[bytes, ...]


def _decode(split: Split, spec: PreprocessSpec, rows: range, *, first: int, images: Pixels, digests: bool) -> _Done:
    bad: list[tuple[int, str]] = []
    notes: list[tuple[int, str]] = []
    small: list[tuple[int, tuple[int, int]]] = []
    sources: list[bytes] = []
    for row in rows:
        # Before decoding: should the image change in between, its digest is the old one and the change is noticed.
        if digests:
            sources.append(_image_digest(split, row))
        try:
            prepared = decode_image(split, row, spec)
            images[row - first] = prepared.pixels
            notes += ((row, text) for text in prepared.notes)
            height, width = prepared.image.shape[:2]
            if height < spec.height or width < spec.width:
                small.append((row, (height, width)))
        except DataError as error:
            bad.append((row, str(error)))
    return _Done(rows, tuple(bad), tuple(notes), tuple(small), tuple(sources))


def _join(rows: range, images: Pixels, results: Sequence[_Done], *, digests: bool) -> Chunk:
    bad = tuple(failed for result in results for failed in result.bad)
    notes = tuple(note for result in results for note in result.notes)
    small = tuple(image for result in results for image in result.small)
    sources = _combine(digest for result in results for digest in result.digests) if digests else ""
    return Chunk(rows, images, bad, notes, small, sources)


def _rows(into: Pixels | None, rows: range, spec: PreprocessSpec) -> Pixels:
    if into is None:
        return np.empty((len(rows), *image_shape(spec)), np.uint8)
    return into[rows.start : rows.stop]


def _image_digest(split: Split, row: int) -> bytes:
    if not split.paths:
        return hashlib.blake2b(np.ascontiguousarray(own_pixels(split)[row]).data, digest_size=DIGEST_BYTES).digest()
    try:
        content = Path(split.paths[row]).read_bytes()
    except OSError:
        return b"unreadable"  # shorter than any digest, so it equals none
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _combine(digests: Iterable[bytes]) -> str:
    """One digest of the digests of a chunk's images, in order."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def own_pixels(split: Split) -> Pixels:
    """The array of a split without files.

    Raises:
        DataError: the split has none.
    """
    if split.pixels is None:
        raise DataError(f"expected the {split.name} split to have files or pixels, it has neither")
    return split.pixels


def _name(split: Split, row: int, reason: str) -> str:
    """The reason with the image's file name, or its position in a set of arrays."""
    name = split.paths[row].name if split.paths else f"image {row}"
    return reason if name in reason else f"{name}: {reason}"

"""What a cache of decoded images is called, what it must hold, and by which signs it is still true."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.data.dataset import Split
from cxr_compress.data.decoding import DIGEST_BYTES, image_shape, own_pixels, source_digests
from cxr_compress.device.preprocess import PreprocessSpec

FORMAT = 1
# Count up whenever `device.preprocess.load_uint8` gives other bytes for the same file and spec: old caches then miss.
PREPROCESS_VERSION = 2
CHUNK_BYTES = 32 * 1024 * 1024  # what a crash can cost: 668 images of 224 px, seconds to decode; one fsync each
CHUNK_IMAGES = 1024

# What `normalize` alone reads: models that differ only in these share a cache. A field that is not listed parts them.
_NOT_IN_PIXELS = frozenset({"channels", "mean", "std", "order", "input"})
_NAME_DIGITS = 12


@dataclass(frozen=True)
class ChunkRecord:
    """What is known of a finished chunk: digests only, no name.

    Attributes:
        state: Of the sizes and modification times of its images.
        sources: Of the contents of its images.
        pixels: Of its decoded bytes.
    """

    state: str
    sources: str
    pixels: str


@dataclass(frozen=True)
class Manifest:
    """What stands beside a complete cache; without it a data file counts for nothing.

    Attributes:
        format: Of this file.
        preprocess_version: Of the decoding.
        preprocessing: The fields of the spec that shape the pixels.
        opencv: Whose JPEG decoder it was; another release may round another way.
        shape: Of the array.
        sha256: Of the whole data file.
        chunks: One record per chunk, in order.
    """

    format: int
    preprocess_version: int
    preprocessing: dict[str, Any]
    opencv: str
    shape: tuple[int, ...]
    sha256: str
    chunks: tuple[ChunkRecord, ...]

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read the text of the file.

        Raises:
            ValueError, TypeError, KeyError: It is something else.
        """
        fields = json.loads(text)
        chunks = tuple(ChunkRecord(**record) for record in fields.pop("chunks"))
        return cls(shape=tuple(fields.pop("shape")), chunks=chunks, **fields)


@dataclass(frozen=True, eq=False)
class CachePlan:
    """The cache of one split under one spec in one folder, whether it exists or not.

    Attributes:
        split: Whose images.
        spec: Their size and color.
        chunks: Runs of rows that are written, recorded and checked as one.
        states: One per chunk, of its images as they lie there now.
        data: The complete cache, a .npy file.
        manifest: What makes it complete.
        partial: The data while it is being written.
        journal: Which chunks of it are finished.
        lock: Held by whoever writes.
    """

    split: Split
    spec: PreprocessSpec
    chunks: tuple[range, ...]
    states: tuple[str, ...]
    data: Path
    manifest: Path
    partial: Path
    journal: Path
    lock: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, height, width[, 3])."""
        return len(self.split), *image_shape(self.spec)

    @property
    def header(self) -> bytes:
        """What a .npy file of this shape starts with."""
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
        return buffer.getvalue()

    @property
    def image_bytes(self) -> int:
        """Of one decoded image."""
        return int(np.prod(image_shape(self.spec)))

    @property
    def data_bytes(self) -> int:
        """Of the complete data file."""
        return len(self.header) + len(self.split) * self.image_bytes

    def preprocessing(self) -> dict[str, Any]:
        """The fields of the spec that shape the pixels."""
        return pixel_fields(self.spec)

    def read_manifest(self) -> Manifest | None:
        """The manifest, if it is one of this cache and a data file of the right size lies beside it."""
        try:
            manifest = Manifest.from_json(self.manifest.read_text(encoding="utf-8"))
            size = self.data.stat().st_size
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        expected = (FORMAT, PREPROCESS_VERSION, self.shape, len(self.chunks), self.data_bytes)
        found = (manifest.format, manifest.preprocess_version, manifest.shape, len(manifest.chunks), size)
        return manifest if found == expected else None


def plan_cache(split: Split, spec: PreprocessSpec, cache_dir: str | Path) -> CachePlan:
    """Look at the images (not into them) and say where their cache belongs.

    The name of a complete cache stands for the images' order, relative paths and sizes and for the spec, so an image
    that is replaced makes another cache, and a set that is moved as a whole keeps its own. That of an unfinished one
    leaves
    out the sizes: after a broken image has been repaired, only its chunk is decoded again.
    """
    chunks = _chunks(len(split), int(np.prod(image_shape(spec))))
    names, sizes, states = _file_facts(split, chunks) if split.paths else _array_facts(split, chunks)
    fields = json.dumps([FORMAT, PREPROCESS_VERSION, CHUNK_BYTES, CHUNK_IMAGES, pixel_fields(spec)], sort_keys=True)
    unfinished = _digest([fields, names])
    stem = f"{re.sub(r'[^A-Za-z0-9]', '_', split.name)}_{spec.height}x{spec.width}_{spec.color}_"
    folder = Path(cache_dir)
    complete = stem + _digest([unfinished, sizes])[:_NAME_DIGITS]
    partial = stem + unfinished[:_NAME_DIGITS]
    return CachePlan(
        split,
        spec,
        chunks,
        states,
        data=folder / f"{complete}.npy",
        manifest=folder / f"{complete}.json",
        partial=folder / f"{partial}.partial",
        journal=folder / f"{partial}.journal",
        lock=folder / f".{partial}.lock",
    )


def changed_chunks(plan: CachePlan, manifest: Manifest) -> list[int]:
    """Which chunks have images with another size or time than when they were cached."""
    pairs = zip(plan.states, manifest.chunks, strict=True)
    return [index for index, (state, record) in enumerate(pairs) if state != record.state]


def same_contents(plan: CachePlan, manifest: Manifest, which: Sequence[int], workers: int | None) -> bool:
    """Whether the images of these chunks hold the bytes that were cached; reads the files."""
    chunks = [plan.chunks[index] for index in which]
    found = source_digests(plan.split, chunks, workers=workers)
    return found == [manifest.chunks[index].sources for index in which]


def _chunks(images: int, image_bytes: int) -> tuple[range, ...]:
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // image_bytes))
    return tuple(range(start, min(start + step, images)) for start in range(0, images, step))


def _file_facts(split: Split, chunks: Sequence[range]) -> tuple[str, str, tuple[str, ...]]:
    """Digests of the relative paths and of the sizes, and the state of each chunk."""
    paths = [os.path.abspath(path) for path in split.paths]  # noqa: PTH100 - Path.resolve asks the disk per part
    root = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    facts = [_size_and_time(path) for path in paths]
    names = _digest(path[len(root) :] for path in paths)
    sizes = _digest(str(size) for size, _ in facts)
    states = tuple(_digest(f"{facts[row][0]} {facts[row][1]}" for row in images) for images in chunks)
    return names, sizes, states


def _array_facts(split: Split, chunks: Sequence[range]) -> tuple[str, str, tuple[str, ...]]:
    """The same of a set without files: what it holds stands for size and time."""
    states = source_digests(split, chunks)
    return _digest(["pixels", *map(str, own_pixels(split).shape)]), _digest(states), tuple(states)


def _size_and_time(path: str) -> tuple[int, int]:
    """Bytes and nanoseconds; a missing image has none and is reported when it is to be decoded."""
    try:
        found = os.stat(path)  # noqa: PTH116 - 112,120 of them
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def pixel_fields(spec: PreprocessSpec) -> dict[str, Any]:
    """The fields of a spec that shape the pixels of a cache."""
    return {name: value for name, value in spec.to_dict().items() if name not in _NOT_IN_PIXELS}


def _digest(parts: Iterable[str]) -> str:
    """Of texts in order; their lengths are part of it."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = os.fsencode(part)
        total.update(len(data).to_bytes(4, "big") + data)
    return total.hexdigest()

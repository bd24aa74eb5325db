"""The files of a cache of decoded images: their names, what they must hold, and how they are written.

They are written chunk by chunk, so that a crash costs one chunk and never a complete cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_compress.data.decoding import DIGEST_BYTES, Pixels, image_shape, own_pixels, source_digests
from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.files import write_text

FORMAT = 1
# Count up whenever `device.preprocess.load_uint8` gives other bytes for the same file and spec: old caches then miss.
PREPROCESS_VERSION = 2
CHUNK_BYTES = 32 * 1024 * 1024  # what a crash can cost: 668 images of 224 px, seconds to decode; one fsync each
CHUNK_IMAGES = 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ = 4 * 1024 * 1024

# What `normalize` alone reads: models that differ only in these share a cache. A field that is not listed parts them.
_NOT_IN_PIXELS = frozenset({"channels", "mean", "std", "order", "input"})
_NAME_DIGITS = 12


@dataclass(frozen=True)
class ChunkRecord:
    """The digests of a finished chunk, by which it is recognized; no name of an image is kept.

    Attributes:
        state: digest of the sizes and modification times of its images.
        sources: digest of the contents of its images.
        pixels: digest of its decoded bytes.
    """

    state: str
    sources: str
    pixels: str


@dataclass(frozen=True)
class Manifest:
    """The description beside a complete cache; a data file without one is no cache.

    Attributes:
        format: version of this file.
        preprocess_version: version of the decoding.
        preprocessing: the fields of the spec that shape the pixels.
        opencv: release whose JPEG decoder it was; another one may round another way.
        shape: shape of the array.
        sha256: digest of the whole data file.
        chunks: one record per chunk, in order.
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
            ValueError, TypeError, KeyError: the text is no manifest.
        """
        fields = json.loads(text)
        chunks = tuple(ChunkRecord(**record) for record in fields.pop("chunks"))
        return cls(shape=tuple(fields.pop("shape")), chunks=chunks, **fields)


@dataclass(frozen=True, eq=False)
class CachePlan:
    """The cache of one split under one spec in one folder, whether it exists or not.

    Attributes:
        split: the images.
        spec: their size and color.
        chunks: runs of rows that are written, recorded and checked as one.
        states: one per chunk, of its images as they lie there now.
        data: the complete cache, a .npy file.
        manifest: the file that makes it complete.
        partial: the data while it is being written.
        journal: the file that says which chunks of it are finished.
        lock: the file that is locked by whoever writes.
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
        """The header of a .npy file of this shape."""
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
        return buffer.getvalue()

    @property
    def image_bytes(self) -> int:
        """Size of one decoded image."""
        return int(np.prod(image_shape(self.spec)))

    @property
    def data_bytes(self) -> int:
        """Size of the complete data file."""
        return len(self.header) + len(self.split) * self.image_bytes

    def read_manifest(self) -> Manifest | None:
        """The manifest, if it is one of this cache and a data file of the right size lies beside it."""
        try:
            manifest = Manifest.from_json(self.manifest.read_text(encoding="utf-8"))
            size = self.data.stat().st_size
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        expected = (FORMAT, PREPROCESS_VERSION, self.shape, len(self.chunks), self.data_bytes)
        described = (manifest.format, manifest.preprocess_version, manifest.shape, len(manifest.chunks), size)
        return manifest if described == expected else None


def plan_cache(split: Split, spec: PreprocessSpec, cache_dir: str | Path) -> CachePlan:
    """The cache of a split, from the names, sizes and times of its images; they are not opened.

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


def map_rows(plan: CachePlan, path: Path) -> Pixels | None:
    """The rows of a data file, whatever its header says; None where it is missing or too short."""
    try:
        return np.memmap(path, np.uint8, "r", offset=len(plan.header), shape=plan.shape)
    except (OSError, ValueError):
        return None


def changed_chunks(plan: CachePlan, manifest: Manifest) -> list[int]:
    """The chunks of which an image has another size or time than when it was cached."""
    pairs = zip(plan.states, manifest.chunks, strict=True)
    return [index for index, (state, record) in enumerate(pairs) if state != record.state]


def same_contents(plan: CachePlan, manifest: Manifest, which: Sequence[int], workers: int | None) -> bool:
    """Whether the images of these chunks hold the bytes that were cached; reads the files."""
    chunks = [plan.chunks[index] for index in which]
    digests = source_digests(plan.split, chunks, workers=workers)
    return digests == [manifest.chunks[index].sources for index in which]


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
        status = os.stat(path)  # noqa: PTH116 - 112,120 of them
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def pixel_fields(spec: PreprocessSpec) -> dict[str, Any]:
    """The fields of a spec that shape the pixels of a cache."""
    return {name: value for name, value in spec.to_dict().items() if name not in _NOT_IN_PIXELS}


def _digest(parts: Iterable[str]) -> str:
    """One digest of texts in order; their lengths are part of it."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = os.fsencode(part)
        total.update(len(data).to_bytes(4, "big") + data)
    return total.hexdigest()


class PartialCache:
    """An unfinished data file with its journal, to be closed after use.

    The file has its header and its full length from the start, without taking room yet. Rows are written with ordinary
    writes, never through a memory map: on a full disk those give an error, where a map over a hole in the file would
    kill the process (SIGBUS). A chunk counts as finished when its line is in the journal, and that is written after the
    chunk itself is on the disk.

    Attributes:
        done: the finished chunks, those of earlier runs included.
    """

    def __init__(self, plan: CachePlan) -> None:
        """Begin the file, or go on where an earlier run ended.

        Raises:
            DataError: there is no room for what is missing.
        """
        if not plan.partial.exists() and plan.journal.exists() and plan.data.exists():
            plan.data.replace(plan.partial)  # the last run ended between its last two steps
        self._plan, rows = plan, map_rows(plan, plan.partial)
        self.done = (
            {}
            if rows is None
            else {
                index: record
                for index, record in _read_journal(plan).items()
                if digest_of(rows, plan.chunks[index]) == record.pixels
            }
        )
        if not self.done:
            plan.partial.unlink(missing_ok=True)  # what is useless must not fill the disk
        with self._full_disk_explained():
            # Before hours of work, not after them.
            if shutil.disk_usage(plan.partial.parent).free < self._missing_bytes():
                raise DataError(self._too_full())
            lines = [_heading(plan), *(_line(index, record) for index, record in self.done.items())]
            write_text(plan.journal, "".join(lines))
            if not plan.partial.exists():
                np.lib.format.open_memmap(plan.partial, "w+", np.uint8, plan.shape)
            self._data = plan.partial.open("r+b", buffering=0)

    def close(self) -> None:
        """Close the data file; what is noted in the journal stays for the next run."""
        self._data.close()

    def write(self, index: int, images: Pixels, sources: str) -> None:
        """Put a chunk on the disk and note it.

        Args:
            index: position of the chunk in the plan.
            images: uint8 (images of the chunk, height, width[, 3]).
            sources: digest of what it was decoded from.

        Raises:
            DataError: the disk is full; what is finished stays.
        """
        record = ChunkRecord(self._plan.states[index], sources, digest_of(images))
        with self._full_disk_explained():
            self._data.seek(len(self._plan.header) + self._plan.chunks[index].start * self._plan.image_bytes)
            to_write = images.reshape(-1).data
            while to_write:
                to_write = to_write[self._data.write(to_write) :]
            os.fsync(self._data.fileno())
            self.done[index] = record
            with self._plan.journal.open("ab") as journal:
                journal.write(_line(index, record).encode())
                journal.flush()
                os.fsync(journal.fileno())

    def finish(self) -> Manifest:
        """Make it a complete cache: the data file gets its name, then the manifest appears."""
        plan = self._plan
        with self._full_disk_explained():
            manifest = Manifest(
                format=FORMAT,
                preprocess_version=PREPROCESS_VERSION,
                preprocessing=pixel_fields(plan.spec),
                opencv=cv2.__version__,
                shape=plan.shape,
                sha256=file_sha256(plan.partial),
                chunks=tuple(self.done[index] for index in range(len(plan.chunks))),
            )
            self._data.close()  # Windows renames no open file
            plan.partial.replace(plan.data)
            write_text(plan.manifest, manifest.to_json())
        plan.journal.unlink(missing_ok=True)
        return manifest

    def _missing_bytes(self) -> int:
        plan = self._plan
        images = sum(len(rows) for index, rows in enumerate(plan.chunks) if index not in self.done)
        return images * plan.image_bytes + len(plan.header)

    def _too_full(self) -> str:
        folder = self._plan.partial.parent
        kept = f"; {len(self.done)} of {len(self._plan.chunks)} parts are done and kept" if self.done else ""
        return (
            f"no room for the cache of {self._plan.split.name} in {folder}: it needs {self._missing_bytes():,} more "
            f"bytes, {shutil.disk_usage(folder).free:,} are free{kept}; free some space or choose another folder, and "
            "run the same command again"
        )

    @contextlib.contextmanager
    def _full_disk_explained(self) -> Iterator[None]:
        """Turn the system's word for a full disk, a quota or a file size limit into one that says how much is needed.

        `write_text` wraps the system's error, so its cause is looked at too.
        """
        try:
            yield
        except Exception as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                limit = " (a file may not grow that large here)" if cause.errno == errno.EFBIG else ""
                raise DataError(self._too_full() + limit) from error
            raise


def file_sha256(path: Path) -> str:
    """Digest of a whole file, as `sha256sum` prints it."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ):
            total.update(block)
    return total.hexdigest()


def digest_of(images: Pixels, rows: range | None = None) -> str:
    """Digest of decoded images, or of some rows of them."""
    chosen = images if rows is None else images[rows.start : rows.stop]
    return hashlib.blake2b(chosen.reshape(-1).data, digest_size=DIGEST_BYTES).hexdigest()


def _heading(plan: CachePlan) -> str:
    """First line of a journal: chunks of another decoder are not mixed with ours."""
    return json.dumps({"format": FORMAT, "opencv": cv2.__version__, "shape": list(plan.shape)}) + "\n"


def _read_journal(plan: CachePlan) -> dict[int, ChunkRecord]:
    """The chunks an earlier run noted whose images still look the same; the last line may be torn."""
    try:
        lines = plan.journal.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError):
        return {}
    if not lines or lines[0] != _heading(plan):
        return {}
    records: dict[int, ChunkRecord] = {}
    for line in lines[1:]:
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
            fields = json.loads(line)
            index, record = int(fields.pop("chunk")), ChunkRecord(**fields)
            if record.state == plan.states[index]:
                records[index] = record
    return records


def _line(index: int, record: ChunkRecord) -> str:
    return json.dumps({"chunk": index, **asdict(record)}) + "\n"

"""Writes the data file of a cache chunk by chunk, so that a crash costs one chunk and never a complete cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, cast

import cv2

from cxr_compress.data.cache_plan import FORMAT, PREPROCESS_VERSION, CachePlan, ChunkRecord, Manifest
from cxr_compress.data.decoding import DIGEST_BYTES, Pixels
from cxr_compress.errors import DataError
from cxr_compress.files import write_text

try:
    import fcntl
except ImportError:  # Windows: there two processes must not build the same cache at once
    fcntl = None  # type: ignore[assignment]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ = 4 * 1024 * 1024


class PartialCache:
    """An unfinished data file with its journal; ``open_partial`` gives one.

    Rows are written with ordinary writes, never through a memory map: on a full disk those give an error, where a map
    over a hole in the file would kill the process (SIGBUS). A chunk counts as finished when its line is in the journal,
    and that is written after the chunk itself is on the disk.

    Attributes:
        done: The finished chunks, those of earlier runs included.
    """

    def __init__(self, plan: CachePlan, done: dict[int, ChunkRecord]) -> None:
        """Make room for what is missing; nothing is written yet but the journal."""
        self._plan = plan
        self.done = done
        with self._full_disk_explained():
            # Before hours of work, not after them.
            if shutil.disk_usage(plan.partial.parent).free < self._missing_bytes():
                raise DataError(self._too_full())
            lines = [_heading(plan), *(_line(index, record) for index, record in done.items())]
            write_text(plan.journal, "".join(lines))
            self._data = plan.partial.open("r+b" if plan.partial.exists() else "x+b", buffering=0)

    def close(self) -> None:
        """Close the data file; what is noted in the journal stays for the next run."""
        self._data.close()

    def write(self, index: int, images: Pixels, sources: str) -> None:
        """Put a chunk on the disk and note it.

        Args:
            index: Of the chunk in the plan.
            images: uint8 (images of the chunk, height, width[, 3]).
            sources: Digest of what it was decoded from.

        Raises:
            DataError: The disk is full; what is finished stays.
        """
        content = images.reshape(-1).data
        record = ChunkRecord(self._plan.states[index], sources, _digest_of(content))
        with self._full_disk_explained():
            self._write_at(chunk_offset(self._plan, index), content)
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
            self._write_at(0, plan.header)
            self._data.truncate(plan.data_bytes)
            os.fsync(self._data.fileno())
            manifest = Manifest(
                format=FORMAT,
                preprocess_version=PREPROCESS_VERSION,
                preprocessing=plan.preprocessing(),
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

    def _write_at(self, offset: int, content: bytes | memoryview) -> None:
        self._data.seek(offset)
        left = memoryview(content)
        while left:
            left = left[self._data.write(left) :]

    def _missing_bytes(self) -> int:
        plan = self._plan
        images = sum(len(plan.chunks[index]) for index in range(len(plan.chunks)) if index not in self.done)
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

        ``write_text`` wraps the system's error, so its cause is looked at too.
        """
        try:
            yield
        except Exception as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                limit = " (a file may not grow that large here)" if cause.errno == errno.EFBIG else ""
                raise DataError(self._too_full() + limit) from error
            raise


@contextlib.contextmanager
def open_partial(plan: CachePlan) -> Iterator[PartialCache]:
    """Begin the data file of a cache, or go on where an earlier run ended.

    Raises:
        DataError: There is no room for what is missing.
    """
    if not plan.partial.exists() and plan.journal.exists() and plan.data.exists():
        plan.data.replace(plan.partial)  # the last run ended between its last two steps
    records = _read_journal(plan)
    done = {i: record for i, record in records.items() if read_chunk_digest(plan, plan.partial, i) == record.pixels}
    if not done:
        plan.partial.unlink(missing_ok=True)  # what is useless must not fill the disk
    with contextlib.closing(PartialCache(plan, done)) as partial:
        yield partial


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time in; the others wait. The system lifts the lock of a killed process by itself.

    A file with a process id in it would need a guess whether that process still lives, which fails across containers
    that share a folder. Where the file system knows no locks, nobody waits: two writers of one cache then write the
    same bytes to the same places.
    """
    file = _locked(path)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: Path) -> IO[bytes] | None:
    if fcntl is None:
        return None
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        # Whoever held it has removed the file; a lock on a removed file keeps nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return cast("IO[bytes]", file)
        file.close()


def chunk_offset(plan: CachePlan, index: int) -> int:
    """Where a chunk starts in the data file, bytes."""
    return len(plan.header) + plan.chunks[index].start * plan.image_bytes


def read_chunk_digest(plan: CachePlan, path: Path, index: int) -> str | None:
    """The digest of a chunk as it lies on the disk; None where the file is missing or too short."""
    size = len(plan.chunks[index]) * plan.image_bytes
    try:
        with path.open("rb") as file:
            file.seek(chunk_offset(plan, index))
            content = file.read(size)
    except OSError:
        return None
    return _digest_of(content) if len(content) == size else None


def file_sha256(path: Path) -> str:
    """Of a whole file, as ``sha256sum`` prints it."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ):
            total.update(block)
    return total.hexdigest()


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


def _digest_of(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def _line(index: int, record: ChunkRecord) -> str:
    return json.dumps({"chunk": index, **asdict(record)}) + "\n"

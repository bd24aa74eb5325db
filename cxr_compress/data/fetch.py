"""Downloads MedMNIST+ archives: resumed where they were cut off, checked, and put in place in one step."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cxr_compress
from cxr_compress.data.cache_file import exclusive
from cxr_compress.errors import DataError
from cxr_compress.files import make_folder

Progress = Callable[[int, int], None]

_BLOCK = 256 * 1024
_LONGEST_PAUSE = 60.0
_OK, _PARTIAL, _RANGE_REFUSED = 200, 206, 416
# What a server says when trying again may help: timeout, too many requests, and its own faults.
_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
# What urllib raises on a dead network, a cut connection and nonsense from a server.
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


class DownloadError(DataError):
    """The file could not be had; the caller knows what to do instead."""


class Download:
    """A download that may be cut off at any moment and goes on later.

    The partial file is continued with a Range request. If-Range makes the server send the whole file instead when it
    has changed since; so does a server that knows no ranges, and the partial file starts anew. Where the server gave
    neither an ETag nor a date, only the caller's checksum can tell whether the parts fit.

    Attributes:
        url: Where from.
        path: The partial file.
    """

    def __init__(
        self, url: str, path: Path, *, progress: Progress | None, timeout: float, attempts: int, pause: float
    ) -> None:
        """Nothing is asked of the network yet.

        Raises:
            DataError: The address is not one of http or https.
        """
        if not re.match(r"https?://[^/]", url):
            raise DataError(f"expected an address that starts with http:// or https://, got {url!r}")
        self.url = url
        self.path = path
        self._validator = path.with_name(f"{path.name}.validator")
        self._progress = progress
        self._timeout = timeout
        self._attempts = attempts
        self._pause = pause

    def run(self) -> bool:
        """Fetch what is missing.

        Returns:
            Whether bytes of an earlier run, or of an earlier try, were kept.

        Raises:
            DownloadError: The network or the server does not give it, or the disk has no room.
        """
        failures = 0
        resumed = self._size() > 0
        while True:
            before = self._size()
            try:
                kept, complete = self._try()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _WORTH_A_RETRY:
                    raise DownloadError(self._explain(f"the server says {error.code} {error.reason}")) from error
                failures, reason, wait = failures + 1, f"{error.code} {error.reason}", _asked_pause(error)
            except _NETWORK_ERRORS as error:
                failures, reason, wait = failures + 1, _reason(error), 0.0
            else:
                resumed = resumed and kept
                if complete:
                    return resumed
                failures, reason, wait = failures + 1, "the connection was cut", 0.0
            if self._size() > before:
                failures, resumed = 1, True  # it does get on: only tries that bring nothing count
            if failures >= self._attempts:
                raise DownloadError(self._explain(f"{reason} ({failures} tries)"))
            time.sleep(min(_LONGEST_PAUSE, max(wait, self._pause * 2 ** (failures - 1))))

    def forget(self) -> None:
        """Remove the partial file."""
        self.path.unlink(missing_ok=True)
        self.forget_validator()

    def forget_validator(self) -> None:
        """Remove what was noted for going on."""
        self._validator.unlink(missing_ok=True)

    def _try(self) -> tuple[bool, bool]:
        """One connection: whether the bytes there were kept, and whether the file is complete now."""
        have = self._size()
        try:
            answer = urllib.request.urlopen(self._request(have), timeout=self._timeout)
        except urllib.error.HTTPError as error:
            if error.code != _RANGE_REFUSED:
                raise
            error.close()
            # Nothing is left after what is there: it is complete, or it is more than the file.
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return True, True
            self.forget()
            return False, False
        with answer:
            found = _start_and_total(answer, have)
            if found is None:
                self.forget()  # parts do not work with this server: the next try asks for the whole
                raise http.client.HTTPException("the server sent another part than was asked for")
            start, total = found
            self._note_validator(answer)
            self._check_room(total - start)
            with self.path.open("ab" if start else "wb") as file:
                self._copy(answer, file, start, total)
            return start > 0, not total or self._size() >= total

    def _request(self, have: int) -> urllib.request.Request:
        headers = {"User-Agent": f"cxr-compress/{cxr_compress.__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self._validator.exists():
                headers["If-Range"] = self._validator.read_text(encoding="latin-1")
        return urllib.request.Request(self.url, headers=headers)

    def _note_validator(self, answer: Any) -> None:
        """Keep what tells this edition of the file from another (RFC 9110, 13.1.5: no weak ETag in If-Range)."""
        etag = answer.headers.get("ETag") or ""
        found = etag if etag.startswith('"') else answer.headers.get("Last-Modified") or ""
        if found.strip():
            self._validator.write_text(found.strip(), encoding="latin-1")
        else:
            self.forget_validator()

    def _copy(self, answer: Any, file: IO[bytes], done: int, total: int) -> None:
        while block := answer.read(_BLOCK):
            self._write(file, block, total - done)
            done += len(block)
            if self._progress is not None:
                self._progress(done, total)
        file.flush()
        os.fsync(file.fileno())

    def _write(self, file: IO[bytes], block: bytes, missing: int) -> None:
        try:
            file.write(block)
            file.flush()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DownloadError(self._too_full(missing)) from error
            raise

    def _check_room(self, missing: int) -> None:
        if missing > shutil.disk_usage(self.path.parent).free:
            raise DownloadError(self._too_full(missing))

    def _too_full(self, missing: int) -> str:
        folder = self.path.parent
        return (
            f"no room in {folder}: {missing:,} more bytes are needed, {shutil.disk_usage(folder).free:,} are free; "
            "free some space and run the same command again (it goes on where it ended)"
        )

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _explain(self, reason: str) -> str:
        kept = f" ({self._size():,} bytes are kept)" if self._size() else ""
        return f"could not download {self.url}: {reason}{kept}; check network and proxy and run the same command again"


def _start_and_total(answer: Any, have: int) -> tuple[int, int] | None:
    """At which byte the answer starts, and how long the whole file is (0 where the server does not say).

    None for a part that does not start where ours ends.
    """
    if answer.status == _PARTIAL:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
        if match is None or int(match[1]) != have:
            return None
        return have, int(match[2])
    if answer.status != _OK:
        raise http.client.HTTPException(f"the server says {answer.status} {answer.reason}")
    return 0, int(answer.headers.get("Content-Length") or 0)


def _reason(error: Exception) -> str:
    """What the system said, without Python's words around it."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _asked_pause(error: urllib.error.HTTPError) -> float:
    """Seconds the server asks to wait; 0 where it does not say, or names a date."""
    asked = error.headers.get("Retry-After") or ""
    return float(asked) if asked.isdigit() else 0.0


ATTRIBUTION = (
    'Yang et al.: "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image classification", '
    "Scientific Data 10, 41 (2023), doi:10.5281/zenodo.10519652, CC BY 4.0"
)

# Source: medmnist/info.py of MedMNIST 3.0.2 (github.com/MedMNIST/MedMNIST, commit 3bb56be6),
# INFO[name]["MD5"], ["MD5_64"], ["MD5_128"] and ["MD5_224"]. MD5 is what the publisher gives: it finds damage, it would
# not stop someone who forges a file.
MEDMNIST_MD5 = {
    ("pneumoniamnist", 28): "28209eda62fecd6e6a2d98b1501bb15f",
    ("pneumoniamnist", 64): "8f4eceb4ccffa70c672198ea285246c6",
    ("pneumoniamnist", 128): "05b46931834c231683c68f40c47b2971",
    ("pneumoniamnist", 224): "d6a3c71de1b945ea11211b03746c1fe1",
    ("chestmnist", 28): "02c8a6516a18b556561a56cbdd36c4a8",
    ("chestmnist", 64): "9de6cd0b934ebb5b7426cfba5efbae16",
    ("chestmnist", 128): "db107e5590b27930b62dbaf558aebee3",
    ("chestmnist", 224): "45bd33e6f06c3e8cdb481c74a89152aa",
}
FETCHABLE = tuple(dict.fromkeys(name for name, _ in MEDMNIST_MD5))
SIZES = tuple(dict.fromkeys(size for _, size in MEDMNIST_MD5))

_HOME = "https://zenodo.org/records/10519652/files/{file}?download=1"
_FETCH_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Archive:
    """One file of the publisher.

    Attributes:
        file: Its name, which is also the name on this disk.
        url: Its official address.
        md5: Of its content, hexadecimal.
    """

    file: str
    url: str
    md5: str


def medmnist_archive(name: str, size: int) -> Archive:
    """Which file holds a set at a size.

    Raises:
        DataError: Another set or size than the published ones known here.
    """
    if name not in FETCHABLE:
        raise DataError(f"expected a data set of {', '.join(FETCHABLE)} to download, got {name!r}")
    if size not in SIZES:
        raise DataError(f"expected a size of {', '.join(map(str, SIZES))} pixels for {name}, got {size}")
    file = f"{name}.npz" if size == SIZES[0] else f"{name}_{size}.npz"
    return Archive(file, _HOME.format(file=file), MEDMNIST_MD5[name, size])


def fetch(
    archive: Archive,
    output_dir: str | Path,
    *,
    mirror: str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    attempts: int = 4,
    pause: float = 1.0,
) -> Path:
    """Download an archive, unless it is there; an interrupted download goes on where it ended.

    Args:
        archive: Which one.
        output_dir: Where to; made if missing.
        mirror: Address of a folder that holds a copy of the file, instead of the official one.
        progress: Called as (bytes done, bytes in all; 0 where the server does not say).
        timeout: Seconds without a byte after which a connection counts as dead.
        attempts: Tries in a row that bring nothing, before giving up; at least 1.
        pause: Seconds before the second try; doubled for each further one.

    Returns:
        The complete file, with the publisher's checksum.

    Raises:
        DataError: No network, refused, not there, no room on the disk, or another content than published; says how to
            get the file by hand.
    """
    target = make_folder(output_dir) / archive.file
    url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.file}"
    download = Download(
        url,
        target.with_name(f"{archive.file}.part"),
        progress=progress,
        timeout=timeout,
        attempts=attempts,
        pause=pause,
    )
    try:
        with exclusive(target.with_name(f".{archive.file}.lock")):
            if target.exists():
                return _refuse_other(target, archive)
            _complete(download, archive)
            download.path.replace(target)
    except DownloadError as error:
        raise DataError(
            f"{error}; or download {archive.url} by hand on another machine (MD5 {archive.md5}) and put it as {target}"
        ) from error
    except OSError as error:
        raise DataError(
            f"could not write {target}: {error.strerror or error}; put that right and run the same command again"
        ) from error
    return target


def file_md5(path: Path) -> str:
    """Of a whole file, hexadecimal."""
    total = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_FETCH_BLOCK):
            total.update(block)
    return total.hexdigest()


def _refuse_other(target: Path, archive: Archive) -> Path:
    """A file that is there already is used if it is the published one, and never overwritten."""
    found = file_md5(target)
    if found != archive.md5:
        raise DataError(
            f"expected {target} to have the published MD5 {archive.md5}, got {found}: it is damaged or another file; "
            "move it away and run the same command again"
        )
    return target


def _complete(download: Download, archive: Archive) -> None:
    """Leave the whole, checked file at ``download.path``."""
    resumed = download.run()
    found = file_md5(download.path)
    if found != archive.md5 and resumed:
        # The first part may stem from another edition of the file, or from a crash in mid-write.
        download.forget()
        download.run()
        found = file_md5(download.path)
    if found != archive.md5:
        download.forget()
        raise DownloadError(
            f"expected the published MD5 {archive.md5} of {archive.file}, got {found} from {download.url}: it was "
            "damaged on the way, or that server has another file (removed); try again, or another --mirror"
        )
    download.forget_validator()

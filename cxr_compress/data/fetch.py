"""Downloads MedMNIST+ archives with pooch: resumed where they were cut off, checked, and put in place in one step."""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cxr_compress
from cxr_compress.errors import DataError
from cxr_compress.files import exclusive, make_folder

Progress = Callable[[int, int], None]

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
_BLOCK = 20_000  # bytes that a cut connection can cost
_LONGEST_PAUSE = 60.0
_OK, _PARTIAL, _RANGE_REFUSED = 200, 206, 416
# What a server says when trying again may help: timeout, too many requests, and its own faults.
_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True)
class Archive:
    """One file of the publisher.

    Attributes:
        file: its name, which is also the name on this disk.
        url: its official address.
        md5: checksum of its content, hexadecimal.
    """

    file: str
    url: str
    md5: str


def medmnist_archive(name: str, size: int) -> Archive:
    """The file that holds a set at a size.

    Raises:
        DataError: another set or size than the published ones known here.
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
        archive: the file to download.
        output_dir: folder for it; made if missing.
        mirror: address of a folder that holds a copy of the file, instead of the official one.
        progress: called as (bytes done, bytes in all; 0 where the server does not say).
        timeout: seconds without a byte after which a connection counts as dead.
        attempts: tries in a row that bring nothing, before giving up; at least 1.
        pause: seconds before the second try; doubled for each further one.

    Returns:
        The complete file, with the publisher's checksum.

    Raises:
        DataError: no network, refused, not there, no room on the disk, or another content than published; says how to
            get the file by hand.
    """
    url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.file}"
    if not re.match(r"https?://[^/]", url):
        raise DataError(f"expected an address that starts with http:// or https://, got {url!r}")
    target = make_folder(output_dir) / archive.file
    download = _Download(url, target.with_name(f"{archive.file}.part"), progress, timeout)
    try:
        with exclusive(target.with_name(f".{archive.file}.lock")):
            if target.exists():
                return _refuse_other(target, archive)
            _complete(download, archive, attempts, pause)
            download.path.replace(target)
    except _DownloadError as error:
        raise DataError(
            f"{error}; or download {archive.url} by hand on another machine (MD5 {archive.md5}) and put it as {target}"
        ) from error
    except OSError as error:
        raise DataError(
            f"could not write {target}: {error.strerror or error}; put that right and run the same command again"
        ) from error
    return target


def _refuse_other(target: Path, archive: Archive) -> Path:
    """A file that is there already is used if it is the published one, and never overwritten."""
    md5 = _file_md5(target)
    if md5 != archive.md5:
        raise DataError(
            f"expected {target} to have the published MD5 {archive.md5}, got {md5}: it is damaged or another file; "
            "move it away and run the same command again"
        )
    return target


def _complete(download: _Download, archive: Archive, attempts: int, pause: float) -> None:
    """Leave the whole, checked file at `download.path`."""
    download.run(attempts, pause)
    md5 = _file_md5(download.path)
    if md5 != archive.md5 and download.resumed:
        # The first part may stem from another edition of the file, or from a crash in mid-write.
        download.path.unlink()
        download.run(attempts, pause)
        md5 = _file_md5(download.path)
    if md5 != archive.md5:
        download.path.unlink()
        raise _DownloadError(
            f"expected the published MD5 {archive.md5} of {archive.file}, got {md5} from {download.url}: it was "
            "damaged on the way, or that server has another file (removed); try again, or another --mirror"
        )


def _file_md5(path: Path) -> str:
    return str(_pooch().file_hash(str(path), alg="md5"))


def _pooch() -> Any:
    """The library that downloads; nothing but this command needs it."""
    try:
        import pooch
    except ImportError as error:
        raise DataError("downloads need the package pooch: pip install pooch") from error
    return pooch


class _DownloadError(DataError):
    """The file could not be had; the caller knows what to do instead."""


class _Download:
    """A download that may be cut off at any moment and goes on later; it is also the progress bar that pooch calls.

    The partial file is continued with a Range request; where the server knows no ranges, it starts anew. Whether parts
    of two tries fit together is for the caller's checksum to say.

    Attributes:
        url: address of the file.
        path: the partial file.
        resumed: whether bytes of an earlier run, or of an earlier try, were kept.
        total: bytes that pooch expects of one answer.
    """

    def __init__(self, url: str, path: Path, progress: Progress | None, timeout: float) -> None:
        self.url, self.path = url, path
        self.resumed, self.total = False, 0
        self._progress, self._timeout = progress, timeout
        self._whole = 0  # bytes of the file; 0 where the server does not say

    def run(self, attempts: int, pause: float) -> None:
        """Fetch what is missing.

        Raises:
            _DownloadError: the network or the server does not give it, or the disk has no room.
        """
        failures = 0
        self.resumed = self._size() > 0
        while True:
            before = self._size()
            trouble = self._try()
            if trouble is None:
                return
            reason, wait = trouble
            failures += 1
            if self._size() > before:
                failures, self.resumed = 1, True  # it does get on: only tries that bring nothing count
            if failures >= attempts:
                raise _DownloadError(self._explain(f"{reason} ({failures} tries)"))
            time.sleep(min(_LONGEST_PAUSE, max(wait, pause * 2 ** (failures - 1))))

    def update(self, count: int) -> None:
        """Report progress: pooch calls this after each block."""
        if self._progress is not None:
            self._progress(self._size(), self._whole)

    def reset(self) -> None:
        """Do nothing: pooch calls this at the end, before it reports all at once."""

    close = reset

    def _try(self) -> tuple[str, float] | None:
        """One connection; None where the file is complete now, else what is wrong and how long the server says to wait.

        Raises:
            _DownloadError: another try would not help.
        """
        pooch = _pooch()
        from requests import HTTPError, RequestException  # which pooch brings

        have, answers = self._size(), []
        headers = {"User-Agent": f"cxr-compress/{cxr_compress.__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            with self.path.open("ab") as file:

                def begin(answer: Any, **_: Any) -> None:
                    answers.append(answer)
                    self._begin(answer, file, have)

                options = {"timeout": self._timeout, "headers": headers, "hooks": {"response": begin}}
                pooch.HTTPDownloader(progressbar=self, chunk_size=_BLOCK, **options)(self.url, file, None)
        except HTTPError as error:
            return self._refused(error.response, have)
        except RequestException as error:
            return _reason(error), 0.0
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _DownloadError(self._too_full()) from error
            raise
        finally:
            for answer in answers:
                answer.close()
            if not self._size():
                self.path.unlink(missing_ok=True)
        return None if self._size() >= self._whole else ("the connection was cut", 0.0)

    def _begin(self, answer: Any, file: IO[bytes], have: int) -> None:
        """Look at the head of an answer before pooch writes its content behind what is there."""
        if answer.status_code not in (_OK, _PARTIAL):
            return
        if answer.status_code == _OK:
            file.truncate(0)
            self.resumed, self._whole = False, int(answer.headers.get("Content-Length") or 0)
        else:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
            if match is None or int(match[1]) != have:
                from requests import RequestException

                file.truncate(0)  # parts do not work with this server: the next try asks for the whole
                raise RequestException("the server sent another part than was asked for")
            self._whole = int(match[2])
        if self._whole - self._size() > shutil.disk_usage(self.path.parent).free:
            raise _DownloadError(self._too_full())

    def _refused(self, answer: Any, have: int) -> tuple[str, float] | None:
        """The meaning of an answer without content, in the form of `_try`."""
        code = answer.status_code
        if code == _RANGE_REFUSED:
            # Nothing is left after what is there: it is complete, or it is more than the file.
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return None
            self.path.unlink()
            return "the server refused to go on", 0.0
        if code not in _WORTH_A_RETRY:
            raise _DownloadError(self._explain(f"the server says {code} {answer.reason}"))
        wait = answer.headers.get("Retry-After") or ""
        return f"{code} {answer.reason}", float(wait) if wait.isdigit() else 0.0

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _too_full(self) -> str:
        folder, missing = self.path.parent, self._whole - self._size()
        return (
            f"no room in {folder}: {missing:,} more bytes are needed, {shutil.disk_usage(folder).free:,} are free; "
            "free some space and run the same command again (it goes on where it ended)"
        )

    def _explain(self, reason: str) -> str:
        kept = f" ({self._size():,} bytes are kept)" if self._size() else ""
        return f"could not download {self.url}: {reason}{kept}; check network and proxy and run the same command again"


def _reason(error: Exception) -> str:
    """The system's own message, without the words that libraries put around it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    from requests.exceptions import ChunkedEncodingError

    return "the connection was cut" if isinstance(error, ChunkedEncodingError) else str(error) or type(error).__name__

"""Downloads MedMNIST+ archives: resumed where they were cut off, checked, and put in place in one step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cxr_compress.data.cache_file import exclusive
from cxr_compress.data.download import Download, DownloadError, Progress
from cxr_compress.device.atomic import make_folder
from cxr_compress.errors import DataError

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
_BLOCK = 1024 * 1024


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
        while block := file.read(_BLOCK):
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

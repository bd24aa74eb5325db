"""Files and folders: written so that a reader sees old content or new, never half, and looked at before they are read.

A pipe or a device in place of a file would keep a reader waiting for ever, and a file of another format would load
TensorFlow only to be refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from cxr_compress.errors import CompressionError, ModelFileError

try:
    import fcntl
except ImportError:  # Windows: there two processes must not write the same file at once
    fcntl = None  # type: ignore[assignment]

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of your quota and run the same command again",
    errno.ENOENT: "create its folder first",
    errno.EACCES: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.EISDIR: "a folder has that name; choose another one",
}

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Put `data` under `path` in one step: a temporary file in the same folder, synced, then renamed over `path`.

    A power cut, a full disk or Ctrl-C leaves what was there before; a link under that name is replaced, not the file
    that it leads to. Costs one fsync (milliseconds on flash).

    Raises:
        CompressionError: the file could not be written; says why and what to do. No temporary file is left.
    """
    path = Path(path)
    if (kind := special_kind(path)) and not path.is_dir():
        # Renamed over, a device such as /dev/null would be gone for every program of the machine.
        raise CompressionError(f"could not write {path}: it is {kind}; choose the name of a file")
    # Not tempfile.mkstemp: its files are private (mode 0600), and a delivered model should follow the user's umask.
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the folder and run the same command again")
        raise CompressionError(f"could not write {path}: {error.strerror or error}; {remedy}") from error


def special_kind(path: str | Path) -> str:
    """What stands under a path, in words; "" for a file, and where there is nothing."""
    try:
        return _kind(Path(path).stat().st_mode)
    except OSError:
        return ""


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")


def check_writable(folder: str | Path, *, to_be_made: bool = False) -> None:
    """Find out before the slow part whether files can be made in a folder, by making one.

    Args:
        folder: where files will go.
        to_be_made: a folder that is missing will be made; what is checked is then the one above it that is there.

    Raises:
        CompressionError: it is no folder, or nothing can be written there; says why.
    """
    folder = Path(folder)
    while to_be_made and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() and folder.exists():
        raise CompressionError(f"{folder} is {special_kind(folder) or 'a file'}, expected a folder")
    if not folder.is_dir():
        raise CompressionError(f"the folder {folder} does not exist: create it first")
    trial = folder / f".tmp-{secrets.token_hex(6)}"
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise CompressionError(
            f"nothing can be written into {folder}: {error.strerror or error}; choose a folder you may write to"
        ) from error


def make_folder(path: str | Path) -> Path:
    """Create a folder and those above it, unless they are there; give it back.

    Raises:
        CompressionError: it cannot be created; says why and what to do.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompressionError(
            f"could not create the folder {path}: {error.strerror or error}; choose one you may write to"
        ) from error
    return path


def write_text(path: str | Path, text: str) -> None:
    """Put `text` under `path` as UTF-8 with the line ends it has, in one step as `write_bytes` does.

    Raises:
        CompressionError: as `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time in; the others wait. The system lifts the lock of a killed process by itself.

    A file with a process id in it would need a guess whether that process still lives, which fails across containers
    that share a folder. Where the file system knows no locks, nobody waits.
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


_LOOKED_AT = 8192
_GIB = 1 << 30
_KERAS, _HDF5 = ".keras", (".h5", ".hdf5")
_HDF5_START = b"\x89HDF\r\n\x1a\n"
# A block of the user's own may stand in front of an HDF5 file; its size is one of these.
_HDF5_PLACES = (0, 512, 1024, 2048, 4096)
# Twice the largest network of keras.applications, with its optimizer.
_LARGEST_KERAS = 4 * _GIB
_LARGEST_WEIGHTS = 2 * _GIB


def first_bytes(path: str | Path, largest: int) -> bytes:
    """The first 8 kB of a regular file; of another kind, which could keep a reader waiting forever, none are read.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        ModelFileError: it is a pipe, socket or device, empty, or too large; the message starts with the path.
        OSError: it is missing, a folder, or cannot be read.
    """
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind := _kind(status.st_mode):
        raise ModelFileError(f"{path}: is {kind}, expected a file on a disk: copy what it gives into a file first")
    if not status.st_size:
        raise ModelFileError(f"{path}: is empty; copy or convert it again")
    with Path(path).open("rb") as file:
        start = file.read(_LOOKED_AT)
    if status.st_size > largest:
        raise ModelFileError(
            f"{path}: has {status.st_size:,} bytes, no model here has more than {largest:,}; check the path"
        )
    return start


def check_keras_file(path: str | Path) -> None:
    """Look at a Keras model file before TensorFlow, which reads it, is loaded; what is inside is not looked at.

    Raises:
        ModelFileError: missing, no regular file, empty, too large, or not what its ending (.keras, .h5, .hdf5) says.
    """
    path = Path(path)
    try:
        start = first_bytes(path, _LARGEST_KERAS)
    except IsADirectoryError as error:
        raise ModelFileError(f"expected a Keras file, got the folder {path}: give the file in it") from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise ModelFileError(f"the model file {path} {why}: check the path") from error
    ending = path.suffix.lower()
    if ending == _KERAS and not start.startswith(b"PK"):
        raise ModelFileError(
            f"{path.name} is no complete .keras file (it does not start as a ZIP archive): copy or export it again"
        )
    if ending in _HDF5 and not _is_hdf5(start):
        raise ModelFileError(
            f"{path.name} is no complete HDF5 file (it does not start as one): copy or export it again"
        )


def check_weights_file(path: str | Path) -> None:
    """Look at a file of weights of any framework before what reads it is loaded; its name does not count.

    Raises:
        ModelFileError: no regular file, empty, too large, or it starts as no format of weights does.
        OSError: missing or not readable.
    """
    start = first_bytes(path, _LARGEST_WEIGHTS)
    # ZIP (.npz, torch, wheels), a pickle (old torch), HDF5, safetensors, tar (torch 0.1, whose reader says more).
    if start.startswith((b"PK", b"\x80")) or _is_hdf5(start) or start[8:9] == b"{" or start[257:262] == b"ustar":
        return
    raise ModelFileError(
        f"{Path(path).name}: it is none of torch's formats, no .safetensors, .npz or .h5, or it is cut short: copy it "
        "again"
    )


def _is_hdf5(start: bytes) -> bool:
    return any(start.startswith(_HDF5_START, place) for place in _HDF5_PLACES)

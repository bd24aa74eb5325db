"""Write a file so that a reader sees the old content or the new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from cxr_compress.errors import CompressionError

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

    A power cut, a full disk or Ctrl-C leaves what was there before. Costs one fsync (milliseconds on flash).

    A link under that name is replaced, not the file that it leads to.

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
    """What stands under a path if that is no file, in words; "" for a file, and for nothing."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    return next((told for is_kind, told in _KINDS if is_kind(mode)), "no file")


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

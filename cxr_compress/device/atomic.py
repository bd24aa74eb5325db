"""Write a file so that a reader sees the old content or the new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
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


def write_bytes(path: str | Path, data: bytes) -> None:
    """Put `data` under `path` in one step: a temporary file in the same folder, synced, then renamed over `path`.

    A power cut, a full disk or Ctrl-C leaves what was there before. Costs one fsync (milliseconds on flash).

    Raises:
        CompressionError: the file could not be written; says why and what to do. No temporary file is left.
    """
    path = Path(path)
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

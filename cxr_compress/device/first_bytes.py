"""What a file is, told from its kind, size and first bytes before anything reads it whole."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cxr_compress.errors import ModelFileError

_LOOKED_AT = 8192
_GIB = 1 << 30
_KERAS, _HDF5 = ".keras", (".h5", ".hdf5")
_HDF5_START = b"\x89HDF\r\n\x1a\n"
# A block of the user's own may stand in front of an HDF5 file; its size is one of these.
_HDF5_PLACES = (0, 512, 1024, 2048, 4096)
# Twice the largest network of keras.applications, with its optimizer.
_LARGEST_KERAS = 4 * _GIB
_LARGEST_WEIGHTS = 2 * _GIB
_KINDS = (
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "")
    if kind:
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

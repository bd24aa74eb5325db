"""NumPy archives read member by member, so that a header cannot claim memory that its bytes do not fill."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection

import numpy as np

from cxr_compress.errors import ModelFileError

LARGEST_TOTAL = 1 << 29  # bytes of all arrays: five times the largest network here
_MEMBER = ".npy"


def read_npz(content: bytes, *, besides: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Read an archive of plain arrays; nothing is unpickled.

    Args:
        content: of the whole file.
        besides: entries that are no arrays and may be there; they are passed over.

    Returns:
        Arrays by name.

    Raises:
        ModelFileError: it is damaged, holds objects or something that is no array, or unpacks to more than 512 MiB.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename not in besides]
        if sum(entry.file_size for entry in entries) > LARGEST_TOTAL:
            raise ModelFileError("it unpacks to more than 512 MiB, which no network here needs: it is refused")
        if not all(entry.filename.endswith(_MEMBER) for entry in entries):
            raise ModelFileError("it holds something that is no .npy array: export it with numpy.savez")
        return {entry.filename.removesuffix(_MEMBER): _array(archive.read(entry)) for entry in entries}


def _array(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ModelFileError("it holds an array of another .npy version than 1 and 2: export it with numpy.savez")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject or dtype.fields:
        raise ModelFileError("it holds Python objects, which are not unpickled: save plain arrays")
    rest = memoryview(content)[stream.tell() :]
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        raise ModelFileError("the shape of an array does not fit its bytes: the file is damaged")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")

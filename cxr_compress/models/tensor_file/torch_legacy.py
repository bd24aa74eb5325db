"""The stream that PyTorch wrote until 1.5: five pickles, then the numbers of each storage, one after the other."""

from __future__ import annotations

import io
import struct
from typing import Any

from cxr_compress.errors import ModelFileError
from cxr_compress.models.tensor_file.pickle_machine import PickleMachine
from cxr_compress.models.tensor_file.tensors import DTYPES
from cxr_compress.models.tensor_file.torch_names import admit, construct, storage_of
from cxr_compress.models.tensor_file.values import Storage

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
# How the number of the first pickle begins in every protocol that torch.save takes: PROTO, LONG1, ten bytes.
STARTS = tuple(bytes((0x80, protocol, 0x8A, 10)) + MAGIC.to_bytes(10, "little") for protocol in (2, 3))
FRAMED = tuple(bytes((0x80, protocol)) for protocol in (4, 5))
_COUNT = struct.Struct("<q")


def is_torch_legacy(content: bytes) -> bool:
    """Tell whether a file begins as this format does."""
    return content.startswith(STARTS) or (content.startswith(FRAMED) and MAGIC.to_bytes(10, "little") in content[:40])


def read_torch_legacy(content: bytes) -> tuple[Any, dict[str, memoryview]]:
    """Read a file that `torch.save` wrote as a stream.

    Args:
        content: of the whole file.

    Returns:
        What its pickle describes, and the bytes of each storage that the pickle names.

    Raises:
        ModelFileError: it is damaged, cut short, or asks to run code.
    """
    storages: dict[str, Storage] = {}

    def persistent(reference: Any) -> Any:
        value = storage_of(reference)
        if isinstance(value, Storage):
            known = storages.setdefault(value.key, value)
            if (known.dtype, known.count) != (value.dtype, value.count):
                raise ModelFileError("a storage has two types or lengths: the file is damaged")
        return value

    stream = io.BytesIO(content)
    machine = PickleMachine(construct, persistent, admit)
    _check_head(machine, stream)
    described = machine.load(stream)
    keys = machine.load(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise ModelFileError("its list of storages is not that of its tensors: the file is damaged")
    blobs = {}
    position = stream.tell()
    for key in keys:
        blobs[key], position = _blob(content, position, storages[key])
    return described, blobs


def _check_head(machine: PickleMachine, stream: io.BytesIO) -> None:
    """Read magic number, protocol and what the writing machine said about itself."""
    magic, protocol, system = (machine.load(stream) for _ in range(3))
    if magic != MAGIC or protocol != PROTOCOL:
        raise ModelFileError(f"expected a stream of PyTorch's protocol {PROTOCOL}, got another one: export it again")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ModelFileError("it was written on a big-endian machine: export it on another one")


def _blob(content: bytes, position: int, storage: Storage) -> tuple[memoryview, int]:
    """Give the bytes of the storage at a position, and the position behind it."""
    begin = position + _COUNT.size
    end = begin + storage.count * DTYPES[storage.dtype].itemsize
    if end > len(content):
        raise ModelFileError("it ends in the middle of its numbers: copy it again")
    if _COUNT.unpack_from(content, position)[0] != storage.count:
        raise ModelFileError("a storage has another length than its tensors say: the file is damaged")
    return memoryview(content)[begin:end], end

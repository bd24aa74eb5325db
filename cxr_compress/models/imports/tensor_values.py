"""What a pickle is read into: plain containers, numbers, texts, and records that do nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cxr_compress.errors import ModelFileError


class GlobalName(NamedTuple):
    """A class or function that a pickle names. It stays a name: nothing is looked up, imported or called."""

    module: str
    name: str

    @property
    def full(self) -> str:
        """The name as Python code would spell it, on one line."""
        return f"{self.module}.{self.name}"[:200]


@dataclass(eq=False)
class Placeholder:
    """Stands for an object of a class that this package does not know, such as a module of torchxrayvision.

    Attributes:
        of: its class.
        state: what the object would have been filled with: for modules a dict of attributes.
    """

    of: GlobalName
    state: Any = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of numbers that lies elsewhere in the file, or a part of one.

    Attributes:
        key: under which the file keeps it.
        dtype: name in `tensors.DTYPES`, or "bytes" for storages that leave it to the tensor.
        count: numbers of the whole run.
        start: of the part, in numbers.
        length: of the part, in numbers.
    """

    key: str
    dtype: str
    count: int
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A tensor as it is described: a storage seen through offset, size and stride (in numbers)."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_LARGEST_COUNT = 1 << 40  # beyond any file; keeps products of sizes in a range where they cannot slow anything down


def as_count(value: Any, what: str) -> int:
    """Give a whole number from 0 to _LARGEST_COUNT.

    Raises:
        ModelFileError: it is something else.
    """
    if type(value) is not int or not 0 <= value <= _LARGEST_COUNT:
        raise ModelFileError(f"expected {what} as a whole number, got something else: the file is damaged")
    return value


def as_counts(values: Any, what: str) -> tuple[int, ...]:
    """Give a short tuple of whole numbers, such as a shape.

    Raises:
        ModelFileError: it is something else.
    """
    if not isinstance(values, tuple | list) or len(values) > 16:  # noqa: PLR2004 - weights have at most four axes
        raise ModelFileError(f"expected {what} as a few whole numbers, got something else: the file is damaged")
    return tuple(as_count(value, what) for value in values)


# Little-endian, as every writer in use stores them. bfloat16, which NumPy lacks, is read as its 16 bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("u1"),
    "bytes": np.dtype("u1"),
}


def _storage_bytes(storage: Storage) -> int:
    """How many bytes the whole run of numbers takes."""
    return storage.count * DTYPES[storage.dtype].itemsize


def tensor_array(record: TensorRecord, blobs: Mapping[str, memoryview]) -> np.ndarray:
    """Show a tensor as a read-only array; only bfloat16 is copied.

    Args:
        record: the description.
        blobs: bytes of each storage, of exactly the size that the storage says.

    Raises:
        ModelFileError: unknown numbers, or the tensor reaches beyond its storage or overlaps itself.
    """
    dtype = DTYPES.get(record.dtype)
    blob = blobs.get(record.storage.key)
    if dtype is None or blob is None:
        raise ModelFileError(
            "a tensor has numbers of an unknown type or none at all: the file is damaged or unsupported"
        )
    if len(blob) != _storage_bytes(record.storage):
        raise ModelFileError("a storage has fewer or more bytes than the tensors say: the file is damaged")
    step = DTYPES[record.storage.dtype].itemsize
    part = blob[record.storage.start * step : (record.storage.start + record.storage.length) * step]
    _check_extent(record, len(part) // dtype.itemsize)
    numbers = np.frombuffer(part, dtype, count=len(part) // dtype.itemsize)[record.offset :]
    strides = tuple(stride * dtype.itemsize for stride in record.stride)
    if math.prod(record.size) == 0:
        return np.zeros(record.size, np.float32)
    array = np.lib.stride_tricks.as_strided(numbers, record.size, strides, writeable=False)
    return from_bfloat16(array) if record.dtype == "bfloat16" else array


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Give the float32 numbers whose upper halves these uint16 are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _check_extent(record: TensorRecord, available: int) -> None:
    """Require every number inside the storage, and none seen twice: an expanded tensor can claim any memory."""
    if math.prod(record.size) > available:
        raise ModelFileError("a tensor has more numbers than its storage: the file is damaged")
    axes = sorted((stride, size) for stride, size in zip(record.stride, record.size, strict=True) if size > 1)
    reach = 1  # numbers from the first to the last of what the axes so far span
    for stride, size in axes:
        if stride < reach:
            raise ModelFileError("the strides of a tensor overlap: export its .contiguous() copy")
        reach += stride * (size - 1)
    if record.offset + reach > available and math.prod(record.size) > 0:
        raise ModelFileError("a tensor reaches beyond its storage: the file is damaged")

"""What a pickle is read into: plain containers, numbers, texts, and records that do nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


LARGEST_COUNT = 1 << 40  # beyond any file; keeps products of sizes in a range where they cannot slow anything down


def as_count(value: Any, what: str) -> int:
    """Give a whole number from 0 to LARGEST_COUNT.

    Raises:
        ModelFileError: it is something else.
    """
    if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
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

"""A machine of our own for pickles of weights: it builds plain containers and records, and cannot run anything.

A pickle is a program, and Python's Unpickler runs it: it imports the modules and calls the functions that the file
names, and even with a closed `find_class` it lets an opcode fill the extension registry's cache or claim memory for a
memo of 4 billion places. Here `pickletools.genops` only splits the bytes into opcodes, and the handlers below know
lists, dicts, tuples, scalars and names. There is no path from a name in a file to an object of Python: what a name may
stand for is decided by the caller's `construct`, which gives records. Dict keys are scalars, because hashing a nested
tuple can take exponential time or all of the C stack. A record of a tensor becomes an array (`tensor_array`) once its
shape, strides and bytes are checked against one another.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Mapping
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


MOST_OPCODES = 3_000_000  # the module tree of a DenseNet201 takes 100,000
_NEWEST_PROTOCOL = 5
_SCALARS = (str, int, float, bytes, bool, type(None))


class PickleMachine:
    """Read one pickle from a stream and stop right behind it.

    Args:
        construct: gets a name, arguments and whether a class is made an instance of (True) or anything is called
            (False); gives the value, or raises ModelFileError.
        persistent: gets what the file refers to outside of the pickle (a storage); gives the value.
        admit: gets every name that the pickle mentions; raises ModelFileError for one that has no place in weights.
    """

    def __init__(
        self,
        construct: Callable[[GlobalName, tuple[Any, ...], bool], Any],
        persistent: Callable[[Any], Any],
        admit: Callable[[GlobalName], None],
    ) -> None:
        self._construct = construct
        self._persistent = persistent
        self._admit = admit
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self._memo: dict[int, Any] = {}

    def load(self, stream: io.BytesIO) -> Any:
        """Give the value of the pickle that begins at the stream's position.

        Raises:
            ModelFileError: it is damaged, or asks for anything but data.
        """
        self._stack, self._below, self._memo = [], [], {}
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count > MOST_OPCODES:
                    raise ModelFileError("its pickle is far longer than that of any network")
                self._step(opcode.name, argument)
            return self._pop()
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ModelFileError("its pickle is damaged or cut short: copy or export the file again") from error

    def _step(self, name: str, argument: Any) -> None:
        """Run one opcode."""
        if name in _PUSHES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _IGNORED:
            raise ModelFileError(
                f"its pickle uses the opcode {name}, which files of weights do not need: it is refused"
            )

    def _pop(self) -> Any:
        return self._stack.pop()

    def _top(self) -> Any:
        return self._stack[-1]

    def _protocol(self, version: int) -> None:
        if version > _NEWEST_PROTOCOL:
            raise ModelFileError(f"its pickle is of protocol {version}, newer than {_NEWEST_PROTOCOL}")

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self, _: Any = None) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _drop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._top())

    def _tuple(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _short_tuple(self, length: int) -> None:
        if len(self._stack) < length:
            raise IndexError(length)
        items = tuple(self._stack[-length:])
        del self._stack[-length:]
        self._stack.append(items)

    def _list(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        mapping: dict[Any, Any] = {}
        _put_items(mapping, items)
        self._stack.append(mapping)

    def _append(self, _: Any) -> None:
        item = self._pop()
        _extend(self._top(), [item])

    def _appends(self, _: Any) -> None:
        items = self._pop_mark()
        _extend(self._top(), items)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        _put_items(self._top(), [key, value])

    def _set_items(self, _: Any) -> None:
        items = self._pop_mark()
        _put_items(self._top(), items)

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._push_name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError(type(name))
        named = GlobalName(module, name)
        self._admit(named)
        self._stack.append(named)

    def _reduce(self, _: Any) -> None:
        arguments, called = self._pop(), self._pop()
        self._stack.append(self._constructed(called, arguments, new=False))

    def _new(self, _: Any) -> None:
        arguments, called = self._pop(), self._pop()
        self._stack.append(self._constructed(called, arguments, new=True))

    def _new_with_keywords(self, _: Any) -> None:
        self._pop()
        self._new(None)

    def _constructed(self, called: Any, arguments: Any, *, new: bool) -> Any:
        if not isinstance(called, GlobalName) or not isinstance(arguments, tuple):
            raise ModelFileError("its pickle calls something that is no plain class: it is refused and was not run")
        return self._construct(called, arguments, new)

    def _build(self, _: Any) -> None:
        """Keep the state of a placeholder; containers and tensors have nothing to add."""
        state = self._pop()
        target = self._top()
        if isinstance(target, Placeholder):
            target.state = state

    def _persistent_id(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise TypeError(type(target))


def _put_items(target: Any, items: list[Any]) -> None:
    """Put keys and values, in turns, into a dict; a placeholder of a dict-like class stays empty."""
    if isinstance(target, Placeholder):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise TypeError(type(target))
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_checked_key(key)] = value


def _checked_key(key: Any) -> Any:
    parts = key if type(key) is tuple else (key,)
    if not all(type(part) in _SCALARS or isinstance(part, GlobalName | Placeholder) for part in parts):
        raise ModelFileError("its pickle has a dict whose keys are no names or numbers: it is refused")
    return key


_PUSHES = frozenset([
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
])  # fmt: skip
_IGNORED = frozenset(("FRAME", "STOP"))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # of which only the content matters
}
_HANDLERS: dict[str, Callable[[PickleMachine, Any], Any]] = {
    "PROTO": PickleMachine._protocol,
    "MARK": PickleMachine._mark,
    "POP": PickleMachine._drop,
    "POP_MARK": PickleMachine._pop_mark,
    "DUP": PickleMachine._duplicate,
    "TUPLE": PickleMachine._tuple,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
    "LIST": PickleMachine._list,
    "FROZENSET": PickleMachine._list,
    "DICT": PickleMachine._dict,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "ADDITEMS": PickleMachine._appends,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "PUT": PickleMachine._put,
    "BINPUT": PickleMachine._put,
    "LONG_BINPUT": PickleMachine._put,
    "MEMOIZE": PickleMachine._memoize,
    "GET": PickleMachine._get,
    "BINGET": PickleMachine._get,
    "LONG_BINGET": PickleMachine._get,
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._reduce,
    "NEWOBJ": PickleMachine._new,
    "NEWOBJ_EX": PickleMachine._new_with_keywords,
    "BUILD": PickleMachine._build,
    "BINPERSID": PickleMachine._persistent_id,
}

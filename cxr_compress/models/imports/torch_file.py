"""The zip format of PyTorch 1.6 and later: data.pkl describes, data/KEY holds the numbers."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any

from cxr_compress.errors import ModelFileError
from cxr_compress.models.imports.pickle_machine import (
    DTYPES,
    GlobalName,
    PickleMachine,
    Placeholder,
    Storage,
    TensorRecord,
    as_count,
    as_counts,
)

# Names of PyTorch's storage classes (and of old tensor classes) -> dtype.
_CLASS_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "Untyped": "bytes",
}
_DTYPE_NAMES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32"}
# Modules of the standard library whose classes checkpoints carry along; their objects become placeholders.
_HARMLESS = frozenset(("argparse", "collections", "copyreg", "datetime", "enum", "pathlib", "typing"))
_BUILTINS = frozenset(("set", "frozenset", "list", "dict", "object", "bytearray", "complex", "slice", "range"))
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_PYTHON_2_LIBRARY = frozenset(("commands", "cPickle", "popen2", "urllib2", "StringIO", "__builtins__"))
# Only functions of these packages may be "called" with the result of a placeholder: old modules carry some.
_CALLABLE_ROOTS = frozenset(("torch", "torchvision", "torchxrayvision", "numpy"))


def admit(name: GlobalName) -> None:
    """Let pass what checkpoints mention, and refuse every other part of Python's standard library.

    Nothing would run even if it passed; but a file that names `os.system` is an attack and not a network, and its owner
    should learn that.

    Raises:
        ModelFileError: the name has no place in a file of weights.
    """
    module = _PYTHON_2.get(name.module, name.module)
    root = module.partition(".")[0]
    if module == "builtins":
        harmless = name.name in _BUILTINS
    elif root in sys.stdlib_module_names or root in _PYTHON_2_LIBRARY:
        harmless = root in _HARMLESS or name.full == "_codecs.encode"
    else:
        harmless = True
    if not harmless:
        raise _refused(name)


def _refused(name: GlobalName) -> ModelFileError:
    shown = name.full.encode("unicode_escape").decode()
    return ModelFileError(
        f"it asks to run {shown}, which no network needs: the file is refused, and nothing of it was run; get it from "
        "another place"
    )


def construct(name: GlobalName, arguments: tuple[Any, ...], new: bool) -> Any:
    """Give the record or container that a class or function of the pickle stands for.

    Args:
        name: of the class or function.
        arguments: that it would get.
        new: an instance of a class is made; otherwise anything may be called.

    Raises:
        ModelFileError: a function that is not known, or arguments that do not fit.
    """
    name = GlobalName(_PYTHON_2.get(name.module, name.module), name.name)
    maker = _MAKERS.get(name.full)
    if maker is not None:
        return maker(arguments)
    if _is_old_tensor(name, arguments):
        return _tensor(arguments[:4])
    if new or name.module.partition(".")[0] in _CALLABLE_ROOTS | _HARMLESS:
        return Placeholder(name)
    raise _refused(name)


def _storage_of(reference: Any) -> Any:
    """Give the Storage that a persistent id of torch's zip and legacy formats describes.

    Raises:
        ModelFileError: it is none.
    """
    if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":  # noqa: PLR2004 - legacy
        return reference[1]  # a class together with its source code, which is left alone
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise ModelFileError("it refers to something that is no storage of numbers: it is refused")
    _, kind, key, _, count, *view = reference
    if not isinstance(kind, GlobalName) or not isinstance(key, str):
        raise ModelFileError("a storage has no type or no key: the file is damaged")
    dtype = _CLASS_DTYPES.get(kind.name.removesuffix("Storage"))
    if dtype is None or kind.module.partition(".")[0] != "torch":
        raise ModelFileError(f"it holds numbers of the type {_plain(kind.name)}, which networks here do not have")
    count = as_count(count, "the length of a storage")
    start, length = _view(view[0] if view else None, count)
    return Storage(key, dtype, count, start, length)


def _view(view: Any, count: int) -> tuple[int, int]:
    """Give start and length of the part of a storage that the legacy format may name."""
    if view is None:
        return 0, count
    if not isinstance(view, tuple) or len(view) != 3:  # noqa: PLR2004 - key, offset, length
        raise ModelFileError("a part of a storage is not described: the file is damaged")
    start, length = as_count(view[1], "the offset of a view"), as_count(view[2], "the length of a view")
    if start + length > count:
        raise ModelFileError("a part of a storage reaches beyond its end: the file is damaged")
    return start, length


def _plain(text: str) -> str:
    return text[:60].encode("unicode_escape").decode()


def _is_old_tensor(name: GlobalName, arguments: tuple[Any, ...]) -> bool:
    """Tell whether this is a tensor as PyTorch 0.1 wrote it: torch.FloatTensor(storage, offset, size, stride)."""
    return (
        name.module in ("torch", "torch.cuda")
        and name.name.endswith("Tensor")
        and len(arguments) >= 4  # noqa: PLR2004 - the four above
        and isinstance(arguments[0], Storage)
    )


def _tensor(arguments: tuple[Any, ...], dtype: str | None = None) -> TensorRecord:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):  # noqa: PLR2004 - storage, offset, size, stride
        raise ModelFileError("a tensor has no storage, offset, size and stride: the file is damaged")
    storage, offset, size, stride = arguments[:4]
    sizes, strides = as_counts(size, "the size of a tensor"), as_counts(stride, "the stride of a tensor")
    if len(sizes) != len(strides):
        raise ModelFileError("a tensor has more sizes than strides or fewer: the file is damaged")
    return TensorRecord(storage, dtype or storage.dtype, as_count(offset, "the offset of a tensor"), sizes, strides)


def _tensor_v3(arguments: tuple[Any, ...]) -> TensorRecord:
    dtype = arguments[6] if len(arguments) > 6 else None  # noqa: PLR2004 - the seventh names the dtype
    if not isinstance(dtype, GlobalName) or dtype.module != "torch":
        raise ModelFileError("a tensor has no dtype: the file is damaged")
    return _tensor(arguments, _DTYPE_NAMES.get(dtype.name, dtype.name))


def _first(arguments: tuple[Any, ...]) -> Any:
    """Give the tensor that a parameter or variable wraps; without one it is an object like any other."""
    return arguments[0] if arguments else Placeholder(GlobalName("torch.nn.parameter", "Parameter"))


def _subclass(arguments: tuple[Any, ...]) -> Any:
    """Give the tensor inside a subclass of Tensor: (function, class, arguments, state)."""
    if len(arguments) < 3 or not isinstance(arguments[0], GlobalName) or not isinstance(arguments[2], tuple):  # noqa: PLR2004
        raise ModelFileError("a tensor of a class of its own is not described: the file is damaged")
    if arguments[0].full not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
        raise _refused(arguments[0])  # not construct(): a chain of subclasses would nest without end
    return construct(arguments[0], arguments[2], False)


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Python 3 fills an empty one afterwards; Python 2 passes a list of [key, value]."""
    if not arguments:
        return {}
    pairs, mapping = arguments[0], {}
    if not isinstance(pairs, list):
        raise ModelFileError("a dict of the pickle is made of no list: the file is damaged")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):  # noqa: PLR2004
            raise ModelFileError("a dict of the pickle has other keys than names: the file is damaged")
        mapping[pair[0]] = pair[1]
    pairs.clear()  # a pickle that made a million dicts of one list would otherwise fill the memory
    return mapping


def _items(arguments: tuple[Any, ...]) -> Any:
    """Give the content of a set as the list it was made of: nobody asks a set, and its items need not be hashed."""
    return arguments[0] if arguments and isinstance(arguments[0], list | tuple) else []


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    return as_counts(arguments[0] if arguments else (), "a size")


def _reconstructed(arguments: tuple[Any, ...]) -> Placeholder:
    if not arguments or not isinstance(arguments[0], GlobalName):
        raise ModelFileError("an object of the pickle has no class: the file is damaged")
    return Placeholder(arguments[0])


_MAKERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda _: {},
    "collections.Counter": lambda _: {},
    "builtins.dict": lambda _: {},
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "builtins.list": _items,
    "_codecs.encode": lambda _: Placeholder(GlobalName("builtins", "bytes")),  # random states and the like
    "copyreg._reconstructor": _reconstructed,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.nn.parameter.Parameter": _first,
    "torch.autograd.variable.Variable": _first,
}


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
            value = _storage_of(reference)
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


MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
# How the number of the first pickle begins in every protocol that torch.save takes: PROTO, LONG1, ten bytes.
_STARTS = tuple(bytes((0x80, protocol, 0x8A, 10)) + MAGIC.to_bytes(10, "little") for protocol in (2, 3))
_FRAMED = tuple(bytes((0x80, protocol)) for protocol in (4, 5))
_COUNT = struct.Struct("<q")


def is_torch_legacy(content: bytes) -> bool:
    """Tell whether a file begins as this format does."""
    return content.startswith(_STARTS) or (content.startswith(_FRAMED) and MAGIC.to_bytes(10, "little") in content[:40])


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
        value = _storage_of(reference)
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

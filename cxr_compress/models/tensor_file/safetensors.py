"""The .safetensors format: the length of a JSON header, the header, and the numbers.

Source: the format section of the safetensors README (huggingface/safetensors): 8 bytes little-endian length, JSON of
name -> dtype, shape, data_offsets from the end of the header, "__metadata__" with texts; the parts leave no hole.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.models.tensor_file.tensors import DTYPES, from_bfloat16
from cxr_compress.models.tensor_file.values import as_counts

LONGEST_HEADER = 100_000_000  # the limit of the format's own reader
_LENGTH = struct.Struct("<Q")
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def read_safetensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file of tensors.

    Args:
        content: of the whole file.

    Returns:
        Read-only arrays by name, and the texts of its metadata.

    Raises:
        ModelFileError: it is damaged, or its parts overlap, leave holes or do not fit their shapes.
    """
    header, body = _header(content)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ModelFileError("its metadata are no texts: the file is damaged")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    _check_cover([(begin, end) for _, _, begin, end in entries.values()], len(body))
    arrays = {}
    for name, (dtype, shape, begin, end) in entries.items():
        array = np.frombuffer(body[begin:end], DTYPES[dtype]).reshape(shape)
        arrays[name] = from_bfloat16(array) if dtype == "bfloat16" else array
    return arrays, metadata


def _header(content: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(content) < _LENGTH.size:
        raise ModelFileError("it is too short for a header: copy it again")
    length = _LENGTH.unpack_from(content)[0]
    if length > LONGEST_HEADER or length > len(content) - _LENGTH.size:
        raise ModelFileError("its header claims more bytes than the file has: copy it again")
    end = _LENGTH.size + length
    try:
        header = json.loads(content[_LENGTH.size : end], object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise ModelFileError("its header is no JSON: the file is damaged") from error
    if not isinstance(header, dict):
        raise ModelFileError("its header is no JSON object: the file is damaged")
    return header, memoryview(content)[end:]


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ModelFileError("a name stands twice in its header: the file is damaged")
    return dict(pairs)


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Check what the header says about one tensor: dtype, shape, begin and end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError("a tensor of its header has other keys than dtype, shape, data_offsets: it is damaged")
    dtype = _NAMES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ModelFileError("a tensor has numbers of a type that networks here do not have: export it as F32 or F16")
    shape, offsets = as_counts(entry["shape"], "a shape"), as_counts(entry["data_offsets"], "offsets")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:  # noqa: PLR2004
        raise ModelFileError("the shape of a tensor does not fit its bytes: the file is damaged")
    return dtype, shape, offsets[0], offsets[1]


def _check_cover(parts: list[tuple[int, int]], size: int) -> None:
    """Require that the parts fill the body from its first to its last byte, one after the other."""
    reached = 0
    for begin, end in sorted(parts):
        if begin != reached:
            raise ModelFileError("its tensors overlap or leave a hole: the file is damaged")
        reached = end
    if reached != size:
        raise ModelFileError("its tensors end before or after the file does: copy it again")

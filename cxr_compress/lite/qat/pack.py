"""A smaller flatbuffer of the same content: equal vectors are stored once."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np

from cxr_compress.lite.graph.flatbuffer import FILE_IDENTIFIER, to_object


def share_vectors(content: bytes) -> bytes:
    """Store every distinct vector of a flatbuffer once; what reads it sees no difference.

    A kernel with a scale per channel carries a zero point of eight bytes for each, all of them zero, and so does its
    bias: with 62 depthwise layers in a DenseNet121 that is 0.6 of 8.3 MB. The format lets tables point to one vector.
    """
    builder = _SharingBuilder(len(content))
    builder.Finish(to_object(content).Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """Remembers where it has put which numbers."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._places: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, values: np.ndarray) -> Any:  # noqa: N802 - the name that the generated schema calls
        """The place of a vector of these numbers, a new one only where there is none."""
        key = (values.dtype.str, values.tobytes())
        if key not in self._places:
            self._places[key] = super().CreateNumpyVector(values)
        return self._places[key]

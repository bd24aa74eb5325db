"""What zeros are worth in bytes: on the disk nothing, in a compressed download something."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from cxr_compress.errors import CompressionError

ZEROS_ALONE = (
    "Zeros alone make neither a smaller .tflite nor a faster DenseNet: the file stores every zero and the kernels "
    "multiply by it. Only a deflated copy (a zip, a compressed download) is smaller; removing filters and int8 shrink "
    "the file itself."
)


@dataclass(frozen=True)
class SizeStatement:
    """The three sizes of one model file.

    Attributes:
        raw_bytes: As it lies on the disk and in the device's memory.
        deflated_bytes: After DEFLATE at its highest level, as in a zip.
        nonzero_bytes: Without the zeros among its kernels, and without any index that says where they were: what no
            sparse format can get below.
        weights: Among the kernels that weight pruning touches.
        zeros: Among those.
    """

    raw_bytes: int
    deflated_bytes: int
    nonzero_bytes: int
    weights: int
    zeros: int

    @property
    def zero_fraction(self) -> float:
        """Zeros per weight, in [0, 1]."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def sentence(self) -> str:
        """The sizes in words, with what zeros do not do."""
        return (
            f"{self.raw_bytes:,} bytes on disk, {self.deflated_bytes:,} deflated, {self.nonzero_bytes:,} without its "
            f"zeros; {self.zero_fraction:.1%} of {self.weights:,} kernel weights are zero. {ZEROS_ALONE}"
        )


def size_statement(content: bytes, *, weights: int, zeros: int, bytes_per_weight: int) -> SizeStatement:
    """Measure a model file.

    Args:
        content: The whole .tflite.
        weights: Of the prunable kernels, as counted in this very file.
        zeros: Among them; in int8 the codes that mean 0.
        bytes_per_weight: 4 in a float32 file, 2 in fp16, 1 in every quantised one.

    Raises:
        CompressionError: The numbers cannot be of this file.
    """
    if not 0 <= zeros <= weights or bytes_per_weight < 1 or weights * bytes_per_weight > len(content):
        raise CompressionError(
            f"{zeros} zeros among {weights} weights of {bytes_per_weight} bytes cannot be in a file of {len(content)} "
            "bytes: count them in this file"
        )
    return SizeStatement(
        raw_bytes=len(content),
        deflated_bytes=len(zlib.compress(content, 9)),
        nonzero_bytes=len(content) - zeros * bytes_per_weight,
        weights=weights,
        zeros=zeros,
    )

"""Between float numbers and the integer codes of a TFLite tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import ModelFileError


def quantise(values: np.ndarray, scale: float, zero_point: int, dtype: np.dtype[Any] | type) -> np.ndarray:
    """Give the nearest codes of float values; what lies outside the range of codes is clipped to its ends.

    Halves round to even, computed in float32, as TFLite's own QUANTIZE operator sees float32 inputs.

    Args:
        values: float32, any shape, finite.
        scale: value of one step, above 0.
        zero_point: the code of 0.0.
        dtype: an integer type.

    Source: TFLite 8-bit quantisation specification, real = (code - zero_point) * scale.
    """
    limits = np.iinfo(dtype)
    codes = np.rint(values / np.float32(scale)) + np.float32(zero_point)
    return np.clip(codes, limits.min, limits.max).astype(dtype)


def dequantise(codes: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Give the float32 values that integer codes stand for: (code - zero_point) * scale."""
    return (codes.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * np.float32(scale)


@dataclass(frozen=True)
class TensorFormat:
    """How one input or output tensor of a model stores its numbers.

    Attributes:
        index: the tensor's number in the interpreter.
        dtype: float32, int8, uint8 or int16.
        scale: value of one step; None for float32, 1.0 for pixels.
        zero_point: the code of 0.0; 0 for float32.
    """

    index: int
    dtype: np.dtype[Any]
    scale: float | None
    zero_point: int

    @classmethod
    def from_details(cls, details: dict[str, Any]) -> TensorFormat:
        """Read one entry of an interpreter's get_input_details() or get_output_details().

        A uint8 tensor without a scale holds pixels of 0 to 255, which a CAST behind it takes as numbers.

        Raises:
            ModelFileError: a dtype that has no meaning here, or an integer tensor without one scale.
        """
        dtype, index = np.dtype(details["dtype"]), int(details["index"])
        if dtype == np.float32:
            return cls(index, dtype, None, 0)
        if dtype not in (np.int8, np.uint8, np.int16):
            raise ModelFileError(f"expected float32, int8, uint8 or int16 input and output, got {dtype}")
        scales = details["quantization_parameters"]["scales"]
        points = details["quantization_parameters"]["zero_points"]
        if dtype == np.uint8 and len(scales) == 0:
            return cls(index, dtype, 1.0, 0)
        if len(scales) != 1 or not scales[0] > 0:
            raise ModelFileError(f"expected one quantisation scale above 0 for an {dtype} tensor, got {list(scales)}")
        return cls(index, dtype, float(scales[0]), int(points[0]))

    @property
    def takes_pixels(self) -> bool:
        """True where the codes are the pixels themselves: uint8, one a step, from 0."""
        return self.dtype == np.uint8 and self.scale == 1.0 and self.zero_point == 0

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Turn float32 values, or uint8 pixels, into what the tensor stores."""
        if self.scale is None:
            return values
        if self.takes_pixels and values.dtype == np.uint8:
            return values
        return quantise(values, self.scale, self.zero_point, self.dtype)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Turn what the tensor stores into float32 values."""
        if self.scale is None:
            return stored
        return dequantise(stored, self.scale, self.zero_point)

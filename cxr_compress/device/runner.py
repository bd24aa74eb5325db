"""One loaded model, run image by image: what classifying, scoring and comparing share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.errors import ModelFileError


def quantize(values: np.ndarray, scale: float, zero_point: int, dtype: np.dtype[Any] | type) -> np.ndarray:
    """Give the nearest codes of float values; what lies outside the range of codes is clipped to its ends.

    Halves round to even, computed in float32, as TFLite's own QUANTIZE operator sees float32 inputs.

    Args:
        values: float32, any shape, finite.
        scale: value of one step, above 0.
        zero_point: the code of 0.0.
        dtype: an integer type.

    Source: TFLite 8-bit quantization specification, real = (code - zero_point) * scale.
    """
    limits = np.iinfo(dtype)
    codes = np.rint(values / np.float32(scale)) + np.float32(zero_point)
    return np.clip(codes, limits.min, limits.max).astype(dtype)


def dequantize(codes: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
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
            raise ModelFileError(f"expected one quantization scale above 0 for an {dtype} tensor, got {list(scales)}")
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
        return quantize(values, self.scale, self.zero_point, self.dtype)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Turn what the tensor stores into float32 values."""
        if self.scale is None:
            return stored
        return dequantize(stored, self.scale, self.zero_point)


# What files call the class activation map, their second output where they have one.
CAM_NAME = "cam"
_FLAT_RANK, _MAP_RANK = 2, 4


class Runner:
    """Runs a flatbuffer on float images, or uint8 pixels where it takes those, whatever types its tensors have.

    One interpreter is built and reused: cheap to call, not safe to share between threads.

    Attributes:
        input: how the input stores its numbers.
        output: how the output does.
        input_shape: with the batch axis, which is 1.
        output_shape: with the batch axis.
        cam: how a second output, the class activation map, does; None in files without.
        cam_shape: (1, height, width, findings); () without.
        runtime: which TFLite runtime runs it, for instance "ai-edge-litert 2.3.0".
    """

    def __init__(
        self,
        content: bytes,
        *,
        num_threads: int = 1,
        runtime: str = "auto",
        delegate: str | None = None,
        xnnpack: bool = True,
    ) -> None:
        """Load a flatbuffer; arguments as `load_interpreter`.

        Raises:
            ModelFileError: it has several inputs, outputs beside logits and a map, or types that have no meaning here.
            RuntimeUnavailableError: no TFLite runtime here can run it.
        """
        loaded = load_interpreter(content, num_threads=num_threads, runtime=runtime, delegate=delegate, xnnpack=xnnpack)
        self._interpreter, self.runtime = loaded.interpreter, loaded.runtime
        taken = _only(loaded.interpreter.get_input_details(), "input")
        output, cam = _outputs(loaded.interpreter.get_output_details())
        self.input, self.output = TensorFormat.from_details(taken), TensorFormat.from_details(output)
        self.input_shape = tuple(int(size) for size in taken["shape"])
        self.output_shape = tuple(int(size) for size in output["shape"])
        self.cam = TensorFormat.from_details(cam) if cam else None
        self.cam_shape = tuple(int(size) for size in cam["shape"]) if cam else ()

    def stored(self, batch: np.ndarray) -> np.ndarray:
        """Run images (n, ...) one by one; give (n, ...) as the output stores them, codes or floats."""
        out = np.empty((len(batch), *self.output_shape[1:]), self.output.dtype)
        for index, image in enumerate(batch):
            self._invoke(image)
            out[index] = self._interpreter.get_tensor(self.output.index)[0]
        return out

    def both(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Run one image (...): float32 values of the output without the batch axis, and the map or None likewise."""
        self._invoke(image)
        output = self.output.decode(self._interpreter.get_tensor(self.output.index)[0])
        if self.cam is None:
            return output, None
        return output, self.cam.decode(self._interpreter.get_tensor(self.cam.index)[0])

    def _invoke(self, image: np.ndarray) -> None:
        self._interpreter.set_tensor(self.input.index, self.input.encode(image[np.newaxis]))
        self._interpreter.invoke()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Run images (n, ...), float32 or uint8 pixels, one by one; give the float32 values (n, ...) of the output."""
        return self.output.decode(self.stored(batch))


def _outputs(details: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The details of the output, and of the class activation map or None.

    Files name them; a graph on its way to a file has not got its names yet, so it is the shapes that tell.
    """
    if len(details) == len(("output", "map")):
        first, second = sorted(details, key=lambda one: len(one["shape"]))
        ranks = (len(first["shape"]), len(second["shape"]))
        if ranks == (_FLAT_RANK, _MAP_RANK) and first["shape"][-1] == second["shape"][-1]:
            return first, second
    return _only(details, "output"), None


def _only(details: list[dict[str, Any]], role: str) -> dict[str, Any]:
    if len(details) != 1:
        raise ModelFileError(f"expected a model with one {role}, got {len(details)}; convert it again")
    return details[0]

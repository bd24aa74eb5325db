"""One loaded model, run image by image: what classifying, scoring and comparing share."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.device.quantisation import TensorFormat
from cxr_compress.errors import ModelFileError

# What files call the class activation map, their second output where they have one.
CAM_NAME = "cam"
_FLAT_RANK, _MAP_RANK = 2, 4


class Runner:
    """Runs a flatbuffer on float images, or on uint8 pixels where it takes those, whatever its ends store.

    One interpreter is built and reused: cheap to call, not safe to share between threads.

    Attributes:
        input: how the input stores its numbers.
        output: how the output does.
        input_shape: with the batch axis, which is 1.
        output_shape: likewise.
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
        given, beside = _ends(loaded.interpreter.get_output_details())
        self.input, self.output = TensorFormat.from_details(taken), TensorFormat.from_details(given)
        self.input_shape = tuple(int(size) for size in taken["shape"])
        self.output_shape = tuple(int(size) for size in given["shape"])
        self.cam = TensorFormat.from_details(beside) if beside else None
        self.cam_shape = tuple(int(size) for size in beside["shape"]) if beside else ()

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


def _ends(details: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
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

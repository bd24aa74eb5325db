"""One loaded model with one input and one output, run image by image: what classifying, scoring and comparing share."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.device.quantisation import TensorFormat
from cxr_compress.errors import ModelFileError


class Runner:
    """Runs a flatbuffer on float images, or on uint8 pixels where it takes those, whatever its ends store.

    One interpreter is built and reused: cheap to call, not safe to share between threads.

    Attributes:
        input: how the input stores its numbers.
        output: how the output does.
        input_shape: with the batch axis, which is 1.
        output_shape: likewise.
        runtime: which TFLite runtime runs it, for instance "ai-edge-litert 2.3.0".
    """

    def __init__(self, content: bytes, *, num_threads: int = 1, runtime: str = "auto") -> None:
        """Load a flatbuffer.

        Raises:
            ModelFileError: it has several inputs or outputs, or types that have no meaning here.
            RuntimeUnavailableError: no TFLite runtime here can run it.
        """
        loaded = load_interpreter(content, num_threads=num_threads, runtime=runtime)
        self._interpreter, self.runtime = loaded.interpreter, loaded.runtime
        taken = _only(loaded.interpreter.get_input_details(), "input")
        given = _only(loaded.interpreter.get_output_details(), "output")
        self.input, self.output = TensorFormat.from_details(taken), TensorFormat.from_details(given)
        self.input_shape = tuple(int(size) for size in taken["shape"])
        self.output_shape = tuple(int(size) for size in given["shape"])

    def stored(self, batch: np.ndarray) -> np.ndarray:
        """Run images (n, ...) one by one; give (n, ...) as the output stores them, codes or floats."""
        out = np.empty((len(batch), *self.output_shape[1:]), self.output.dtype)
        for index, image in enumerate(batch):
            self._interpreter.set_tensor(self.input.index, self.input.encode(image[np.newaxis]))
            self._interpreter.invoke()
            out[index] = self._interpreter.get_tensor(self.output.index)[0]
        return out

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Run images (n, ...), float32 or uint8 pixels, one by one; give the float32 values (n, ...) of the output."""
        return self.output.decode(self.stored(batch))


def _only(details: list[dict[str, Any]], role: str) -> dict[str, Any]:
    if len(details) != 1:
        raise ModelFileError(f"expected a model with one {role}, got {len(details)}; convert it again")
    return details[0]

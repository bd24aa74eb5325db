"""Activation ranges for post-training int8: run the float graph on calibration images, note minimum and maximum.

Why not the converter's own calibrator: it runs one thread of the unoptimised kernels (about 0.26 s an image for
DenseNet121 at 224 px, against 0.05 s here on two threads), and it reads an operator's inputs after the operator ran.
Where MUL or ADD wrote its result over its input, the input may be given the result's range: in a DenseNet121 of random
weights six tensors are, and scales come out up to 22 % too wide; in one trained on X-rays it made no difference.
Source: tensorflow issue 127842 (open in September 2026).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import read_graphs, schema, to_bytes, to_object
from cxr_compress.lite.graph.observe import Observer, float_activations

Ranges = dict[int, tuple[float, float]]
_REPORT_EVERY = 32


def measure_ranges(
    content: bytes, images: np.ndarray, *, num_threads: int = 1, progress: Callable[[str], None] | None = None
) -> Ranges:
    """Smallest and largest value of every float activation over the images.

    The number of threads does not change the result. All activations are held at once: 160 MB for DenseNet121 at
    224 px.

    Args:
        content: float flatbuffer of batch 1.
        images: float32 (images, height, width, channels).
        num_threads: for the interpreter.
        progress: is told how far it is.

    Returns:
        Tensor index -> (minimum, maximum).

    Raises:
        CompressionError: an activation is NaN or infinite.
    """
    tensors = float_activations(content)
    observer = Observer(content, tensors, num_threads=num_threads)
    low, high = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    for number, image in enumerate(images, 1):
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        # One view at a time, gone before the next run.
        low = np.minimum(low, [observer.view(index).min() for index in tensors])
        high = np.maximum(high, [observer.view(index).max() for index in tensors])
        if progress is not None and number % _REPORT_EVERY == 0 and number < len(images):
            progress(f"calibrated on {number} of {len(images)} images")
    bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
    if bad.size:
        name = read_graphs(content)[0].tensors[tensors[int(bad[0])]].name
        raise CompressionError(
            f"activation {name!r} is NaN or infinite on the calibration images: check the weights and the preprocessing"
        )
    return {index: (float(lo), float(hi)) for index, lo, hi in zip(tensors, low, high, strict=True)}


def write_ranges(content: bytes, ranges: Ranges) -> bytes:
    """The same flatbuffer with `ranges` in its tensors, as the quantiser reads them."""
    model, fb = to_object(content), schema()
    for index, (low, high) in ranges.items():
        quantization = fb.QuantizationParametersT()
        quantization.min = np.array([low], dtype=np.float32)
        quantization.max = np.array([high], dtype=np.float32)
        model.subgraphs[0].tensors[index].quantization = quantization
    return to_bytes(model)

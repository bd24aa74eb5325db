"""Takes back the shift that int8 brings into the mean of each output channel, by way of the biases.

Rounded weights do not err evenly: summed over hundreds of inputs that are all positive after a ReLU, an output channel
ends up too high or too low on every image. That shift is known from the calibration images, and an int32 bias can hold
its opposite, at no cost in size (4 bytes a filter where a bias was shared) or time.

1. The mean of every convolution's and dense layer's input over the images, in the float graph.
2. In the order they run, for each of them in the int8 graph: the mean result on the inputs *that the corrected layers
   before it give*, less the mean result of the float graph, both before any activation, is subtracted from the bias.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D (the empirical form); Finkelstein et al. 2019,
arXiv:1906.03193.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from cxr_compress.device.runner import TensorFormat
from cxr_compress.lite.graph.flatbuffer import Graph, graphs_of, schema, to_bytes, to_object
from cxr_compress.lite.graph.run import Observer, SegmentRunner, segments_of
from cxr_compress.lite.int8.kernels import BIAS, INPUT, Kernel, read_kernel
from cxr_compress.lite.int8.layer_snr import match_operators
from cxr_compress.lite.int8.tap_means import Floats

_INT32 = np.iinfo(np.int32)
_REPORT_EVERY = 32


def correct_bias(
    float_content: bytes,
    int8_content: bytes,
    images: np.ndarray,
    *,
    num_threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> bytes:
    """The same int8 flatbuffer with other biases; layers that were left in float keep theirs.

    Takes about as long as running both files once on the images. Holds the int8 activations of all images that are
    still needed at once: up to 2 MB an image for DenseNet121 at 224 px.

    Args:
        float_content: the float graph that was quantized.
        int8_content: what `quantize` made of it.
        images: (images, height, width, channels): float32, or whole numbers for a graph of pixels.
        num_threads: for the interpreters; it does not change the result.
        progress: is told how far it is.

    Raises:
        CompressionError: the files are not of one network.
    """
    float_model, model = to_object(float_content), to_object(int8_content)
    exact, graph = graphs_of(float_model)[0], graphs_of(model)[0]
    pairs: dict[int, tuple[Kernel, Kernel]] = {}
    for float_operator, int8_operator in match_operators(exact, graph):
        ours, theirs = read_kernel(float_model, exact, float_operator), read_kernel(model, graph, int8_operator)
        if ours is not None and theirs is not None and _is_integer(graph, theirs):
            pairs[int8_operator.index] = (ours, theirs)
    means = _mean_inputs(float_content, [kernel for kernel, _ in pairs.values()], images, num_threads)
    start = {graph.inputs[0]: _stored(graph, images)}
    runner = SegmentRunner(graph, start, num_threads=num_threads)
    for number, operators in enumerate(segments_of(graph, list(pairs)), 1):
        if operators.start in pairs:
            ours, theirs = pairs[operators.start]
            wanted = ours.mean(means[ours.operator.inputs[INPUT]])
            got = theirs.mean(_mean_stored(graph, theirs, runner))
            _shift_bias(model, graph, theirs, wanted - got)
        runner.run(model, operators)
        if progress is not None and number % _REPORT_EVERY == 0 and number < len(pairs):
            progress(f"corrected {number} of {len(pairs)} biases")
    return to_bytes(model)


def _is_integer(graph: Graph, kernel: Kernel) -> bool:
    tensors = [graph.tensors[kernel.operator.inputs[place]] for place in (INPUT, BIAS)]
    return tensors[1].dtype == "int32" and bool(tensors[0].scale) and bool(tensors[1].scale)


def _mean_inputs(content: bytes, kernels: list[Kernel], images: np.ndarray, num_threads: int) -> dict[int, Floats]:
    """Mean over the images of what each kernel reads in the float graph, without the batch axis."""
    wanted = sorted({kernel.operator.inputs[INPUT] for kernel in kernels})
    observer = Observer(content, wanted, num_threads=num_threads)
    sums: dict[int, Floats] = {}
    for image in images:
        observer.feed(observer.inputs[0], image[np.newaxis].astype(np.float32, copy=False))
        observer.invoke()
        for index in wanted:
            values = observer.view(index)[0].astype(np.float64)
            sums[index] = sums[index] + values if index in sums else values
    return {index: total / len(images) for index, total in sums.items()}


def _stored(graph: Graph, images: np.ndarray) -> np.ndarray:
    """The images as the int8 graph's input stores them."""
    tensor = graph.tensors[graph.inputs[0]]
    if tensor.dtype == "uint8":
        return images.astype(np.uint8)
    if not tensor.scale:
        return images.astype(np.float32, copy=False)
    form = TensorFormat(tensor.index, np.dtype(tensor.dtype), tensor.scale[0], tensor.zero_point[0])
    return form.encode(images.astype(np.float32, copy=False))


def _mean_stored(graph: Graph, kernel: Kernel, runner: SegmentRunner) -> Floats:
    """Mean over the images of what a kernel reads in the int8 graph, in real values."""
    tensor = graph.tensors[kernel.operator.inputs[INPUT]]
    codes = runner[tensor.index]
    return (codes.sum(axis=0, dtype=np.int64) / len(codes) - tensor.zero_point[0]) * tensor.scale[0]


def _shift_bias(model: Any, graph: Graph, kernel: Kernel, shift: Floats) -> None:
    """Add a shift in real values to an int32 bias, in a tensor and a buffer of its own."""
    tensor = graph.tensors[kernel.operator.inputs[BIAS]]
    if tensor.values is None:
        raise AssertionError(f"the bias {tensor.name} is no constant")
    steps = np.rint(shift / np.asarray(tensor.scale))
    codes = np.clip(tensor.values.astype(np.float64) + steps, _INT32.min, _INT32.max).astype(np.int32)
    subgraph = model.subgraphs[0]
    operator = subgraph.operators[kernel.operator.index]
    shared = sum(int(index) == tensor.index for op in subgraph.operators for index in op.inputs) > 1
    if shared:
        subgraph.tensors.append(copy.copy(subgraph.tensors[tensor.index]))
        operator.inputs[BIAS] = len(subgraph.tensors) - 1
    own = subgraph.tensors[int(operator.inputs[BIAS])]
    if shared or sum(one.buffer == own.buffer for one in subgraph.tensors) > 1:
        model.buffers.append(schema().BufferT())
        own.buffer = len(model.buffers) - 1
    model.buffers[own.buffer].data = np.frombuffer(codes.tobytes(), np.uint8)

"""Splits the bytes of one int8 file by what they are spent on, so that thinner files are priced without making them.

Why one file is enough: a kernel costs its elements, a filter its bias and the scales and zero points of both, a norm
channel its two constants. Operators, names and tensor tables depend on the wiring, which thinning leaves as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from cxr_compress.device.cost_table import FileBytes
from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import Graph, Tensor, read_graphs

# One float32 scale and one int64 zero point. Source: schema.fbs, table QuantizationParameters.
_BYTES_PER_SCALE = 12
_KERNEL_RANK = 2
_BIAS_PLACE = 2
_NORM_KINDS = ("MUL", "ADD", "SUB", "DIV")
_INTEGER = ("int8", "uint8", "int16")


def measure_file_bytes(
    content: bytes, *, kernels: int, filters: int, norm_channels: int, metadata_bytes: int = 0
) -> FileBytes:
    """What the int8 file of an uncut model costs per kernel element, filter and norm channel.

    Args:
        content: the file, with or without its appended metadata.
        kernels: elements of the model's kernels.
        filters: filters of its convolutions and dense layers.
        norm_channels: channels of the normalisations that stay in the graph.
        metadata_bytes: what will be appended to `content`, where it is bare.

    Returns:
        Rates that give back the size of this very file for these counts.

    Raises:
        CompressionError: the file holds no int8 kernel.
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
    """
    kernel_bytes = filter_bytes = norm_bytes = 0
    for graph in read_graphs(content):
        kernel, bias, norm = _constants(graph)
        kernel_bytes += _buffer_bytes(kernel)
        filter_bytes += _buffer_bytes(bias)
        filter_bytes += sum(_BYTES_PER_SCALE * len(t.scale) for t in (*kernel, *bias) if len(t.scale) > 1)
        norm_bytes += _buffer_bytes(norm)
    if not kernel_bytes:
        raise CompressionError("expected an int8 .tflite to split the bytes of, got one without int8 kernels")
    parts = ((kernel_bytes, kernels), (filter_bytes, filters), (norm_bytes, norm_channels))
    kernel_rate, filter_rate, norm_rate = (spent / count if count else 0.0 for spent, count in parts)
    known = sum(spent for spent, count in parts if count)
    return FileBytes(kernel_rate, filter_rate, norm_rate, float(len(content) - known + metadata_bytes))


def _constants(graph: Graph) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The constants of a graph that grow with its channels: kernels, biases, and those of normalisations."""
    kernels: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}
    norms: dict[int, Tensor] = {}
    for operator in graph.operators:
        for place, index in enumerate(operator.inputs):
            if index < 0 or graph.tensors[index].values is None:
                continue
            tensor = graph.tensors[index]
            if operator.kind in _NORM_KINDS:
                norms[index] = tensor
            elif tensor.dtype in _INTEGER and len(tensor.shape) >= _KERNEL_RANK:
                kernels[index] = tensor
            elif place >= _BIAS_PLACE and tensor.dtype == "int32" and tensor.scale:
                biases[index] = tensor
    return list(kernels.values()), list(biases.values()), list(norms.values())


def _buffer_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values; a buffer that tensors share counts once."""
    return sum({tensor.buffer: tensor.values.nbytes for tensor in tensors if tensor.values is not None}.values())

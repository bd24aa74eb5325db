"""A hash of what a .tflite computes: equal for equal networks, however their files are laid out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from cxr_compress.device.cost_table import FileBytes
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.lite.graph.flatbuffer import Graph, Tensor, read_graphs, to_object

# Part of what is hashed, so that a later way to write a network down cannot pass for this one.
_SCHEME = "cxr_compress canonical 1"
_ABSENT = -1


def canonical_hash(content: bytes) -> str:
    """The sha256 (hexadecimal) over weights, operators, shapes, quantization, wiring and signatures of a .tflite.

    What changes no output is left out: names of tensors, metadata, the order and padding of buffers, tensors that no
    operator uses, recorded value ranges, and fields at their defaults (so that a newer schema gives the same hash).
    Two files of one hash compute the same; other files may do so too, for instance with operators in another order.

    Args:
        content: the flatbuffer, with or without an archive behind it.

    Raises:
        ModelFileError: no .tflite flatbuffer, a damaged one, or one whose weights lie outside it.
    """
    return hash_model(to_object(content))


def hash_model(model: Any) -> str:
    """As `canonical_hash`, of a ``ModelT``."""
    try:
        parts = [_Subgraph(model, subgraph) for subgraph in model.subgraphs]
        signatures = [_signature(one, parts) for one in model.signatureDefs or ()]
        document: dict[str, Any] = {"scheme": _SCHEME, "graphs": [part.describe() for part in parts]}
        document["signatures"] = sorted(signatures, key=lambda one: str(one["key"]))
    except (IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelFileError("the .tflite contradicts itself (an index points nowhere): convert it again") from error
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class _Subgraph:
    """One subgraph with its tensors numbered in the order in which inputs, operators and outputs name them."""

    def __init__(self, model: Any, subgraph: Any) -> None:
        self._model, self._subgraph = model, subgraph
        self._numbers: dict[int, int] = {}
        used = [*_items(subgraph.inputs)]
        for operator in subgraph.operators:
            used += [*_items(operator.inputs), *_items(operator.outputs), *_items(operator.intermediates)]
        for index in [*used, *_items(subgraph.outputs)]:
            if int(index) != _ABSENT:
                self._numbers.setdefault(int(index), len(self._numbers))

    def number(self, index: int) -> int:
        """The number of a tensor; -1 for one that an operator leaves out."""
        return self._numbers.setdefault(int(index), len(self._numbers)) if int(index) != _ABSENT else _ABSENT

    def describe(self) -> dict[str, Any]:
        """The subgraph as JSON-ready values."""
        ends = {name: self._places(getattr(self._subgraph, name)) for name in ("inputs", "outputs")}
        operators = [self._operator(operator) for operator in self._subgraph.operators]
        tensors = [self._tensor(self._subgraph.tensors[index]) for index in self._numbers]
        return {**ends, "operators": operators, "tensors": tensors}

    def _places(self, indices: Any) -> list[int]:
        return [self.number(index) for index in _items(indices)]

    def _operator(self, operator: Any) -> dict[str, Any]:
        code = self._model.operatorCodes[operator.opcodeIndex]
        ends = {name: self._places(getattr(operator, name)) for name in ("inputs", "outputs", "intermediates")}
        options = ("builtinOptions", "builtinOptions2", "customOptions", "mutatingVariableInputs")
        return {
            # Files older than schema 3a keep the kind in the 8-bit field that was later called deprecated.
            "kind": max(int(code.builtinCode), int(code.deprecatedBuiltinCode)),
            "custom": _plain(code.customCode),
            "version": int(code.version),
            **ends,
            **{name: _plain(getattr(operator, name, None)) for name in options},
        }

    def _tensor(self, tensor: Any) -> dict[str, Any]:
        buffer = self._model.buffers[tensor.buffer]
        if getattr(buffer, "offset", 0) > 1:
            raise ModelFileError("the .tflite keeps weights behind its flatbuffer, which is not supported here")
        data = _items(buffer.data)
        described = {
            name: _plain(getattr(tensor, name, None))
            for name in ("shape", "shapeSignature", "type", "isVariable", "sparsity", "variantTensors")
        }
        constant = hashlib.sha256(np.asarray(data, np.uint8).tobytes()).hexdigest() if len(data) else None
        return {**described, "quantization": _quantization(tensor.quantization), "constant": constant}


def _quantization(parameters: Any) -> Any:
    """Scales, zero points and what else decides a value; not the range that they were chosen for."""
    if parameters is None:
        return None
    described = {
        name: _plain(getattr(parameters, name, None))
        for name in ("scale", "zeroPoint", "quantizedDimension", "details")
    }
    return described if any(value is not None for value in described.values()) else None


def _signature(signature: Any, parts: list[_Subgraph]) -> dict[str, Any]:
    part = parts[int(signature.subgraphIndex)]
    ends = {
        name: sorted([_plain(end.name), part.number(end.tensorIndex)] for end in _items(getattr(signature, name)))
        for name in ("inputs", "outputs")
    }
    return {"key": _plain(signature.signatureKey), "graph": int(signature.subgraphIndex), **ends}


def _plain(value: Any) -> Any:
    """A value of the schema as JSON-ready; None for whatever is at its default."""
    if isinstance(value, bytes | str):
        value = value.decode("latin-1") if isinstance(value, bytes) else value
    elif isinstance(value, np.ndarray):
        value = [repr(float(item)) for item in value] if value.dtype.kind == "f" else value.tolist()
    elif isinstance(value, list | tuple):
        value = [_plain(item) for item in value]
    elif isinstance(value, float):
        value = repr(value) if value else None
    elif hasattr(value, "__dict__"):
        value = _fields(value)
    elif value is not None:
        value = int(value)
    return value if value not in (None, "", 0, [], {}) else None


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a table that differ from those of an empty one."""
    empty = vars(type(value)())
    fields = {name: (_plain(item), _plain(empty.get(name))) for name, item in vars(value).items()}
    return {name: item for name, (item, default) in fields.items() if item != default}


def _items(values: Any) -> Any:
    return () if values is None else values


# One float32 scale and one int64 zero point. Source: schema.fbs, table QuantizationParameters.
_BYTES_PER_SCALE = 12
_KERNEL_RANK = 2
_BIAS_PLACE = 2
_NORM_KINDS = ("MUL", "ADD", "SUB", "DIV")
_INTEGER = ("int8", "uint8", "int16")


def measure_file_bytes(
    content: bytes, *, kernels: int, filters: int, norm_channels: int, metadata_bytes: int = 0
) -> FileBytes:
    """What the int8 file of an original model costs per kernel element, filter and norm channel.

    Args:
        content: the file, with or without its appended metadata.
        kernels: elements of the model's kernels.
        filters: filters of its convolutions and dense layers.
        norm_channels: channels of the normalizations that stay in the graph.
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
    """The constants of a graph that grow with its channels: kernels, biases, and those of normalizations."""
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

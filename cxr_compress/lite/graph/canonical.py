"""A hash of what a .tflite computes: equal for equal networks, however their files are laid out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.lite.graph.flatbuffer import to_object

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
    """As `canonical_hash`, of a `ModelT`."""
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

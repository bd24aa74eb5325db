"""A .tflite flatbuffer as plain data: what its tensors, operators and constants are.

The schema comes from ai_edge_litert, not from TensorFlow: it is the same generated file, but it imports in 0.15 s where
TensorFlow takes 5 s, so that a model can be inspected on a machine that never trains.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.device import runner
from cxr_compress.errors import ModelFileError, RuntimeUnavailableError

FILE_IDENTIFIER = b"TFL3"
SIGNATURE_KEY = "serving_default"
INPUT_NAME = "image"
OUTPUT_NAME = "logits"
CAM_NAME = runner.CAM_NAME

_NUMPY_DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
# What the generated reader raises when an offset or a length in the bytes points nowhere.
_BROKEN = (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError, AssertionError)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph.

    Attributes:
        index: place in the graph's tensor list; what the interpreters call the tensor index.
        name: as the converter wrote it; fused layers join their names with ";".
        shape: () for a scalar.
        dtype: numpy's name ("float32", "int8", ...) where numpy has the type.
        scale: () where not quantized, one value, or one per channel along `channel_axis`.
        zero_point: as long as `scale`.
        channel_axis: axis of a per-channel scale; 0 where there is one scale.
        dynamic: True where a dimension is known only when the model runs.
        buffer: number of the buffer that holds the values; tensors may share one.
        values: the constant, or None for what is computed.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    channel_axis: int
    dynamic: bool
    buffer: int
    values: np.ndarray | None

    @property
    def is_float(self) -> bool:
        """True for float16, float32 and float64."""
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def is_integer(self) -> bool:
        """Its values are the codes of a quantized tensor."""
        return self.dtype in ("int8", "uint8", "int16")


@dataclass(frozen=True)
class Operator:
    """One operator: its kind ("CONV_2D", or the name of a custom one), its version and its tensors (-1: left out)."""

    index: int
    kind: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """One subgraph: tensors by index, operators in the order they run, and the tensors it takes and returns."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def producers(self) -> dict[int, Operator]:
        """The operator that computes each tensor; constants and inputs of the graph are not in it."""
        return {tensor: operator for operator in self.operators for tensor in operator.outputs}

    def present(self, indices: tuple[int, ...]) -> list[Tensor]:
        """The tensors behind `indices`, without those an operator leaves out."""
        return [self.tensors[index] for index in indices if index >= 0]

    def at_border(self, operator: Operator) -> bool:
        """True for the QUANTIZE right behind an input and the DEQUANTIZE right before an output of the graph."""
        if operator.kind == "QUANTIZE":
            return operator.inputs[0] in self.inputs
        return operator.kind == "DEQUANTIZE" and operator.outputs[0] in self.outputs

    def activations(self) -> list[Tensor]:
        """Every tensor that some operator reads or writes and that is no constant, by index."""
        touched = {tensor for operator in self.operators for tensor in operator.inputs + operator.outputs}
        return [self.tensors[index] for index in sorted(touched) if index >= 0 and self.tensors[index].values is None]


def operator_code(model: Any, kind: str, version: int = 1) -> int:
    """The place of an operator's kind and version among the codes of a `ModelT`, registered where it is not."""
    number = getattr(schema().BuiltinOperator, kind)
    for place, code in enumerate(model.operatorCodes):
        if (_builtin(code), code.version) == (number, version):
            return place
    code = schema().OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = number
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def drop_unused_codes(model: Any) -> None:
    """Take the kinds of operators out of a `ModelT` that no longer occur: a runtime without them would refuse it."""
    operators = [operator for subgraph in model.subgraphs for operator in subgraph.operators]
    used = sorted({int(operator.opcodeIndex) for operator in operators})
    for operator in operators:
        operator.opcodeIndex = used.index(int(operator.opcodeIndex))
    model.operatorCodes = [model.operatorCodes[place] for place in used]


def _builtin(code: Any) -> int:
    """The number of an operator's kind; files older than schema 3a keep it in the field that is deprecated now."""
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def schema() -> Any:
    """The generated TFLite schema.

    Raises:
        RuntimeUnavailableError: ai-edge-litert, which carries it, is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise RuntimeUnavailableError(
            "reading the operators of a .tflite needs the TFLite schema of ai-edge-litert, which is not installed: "
            "pip install 'cxr-compress[litert]'"
        ) from error
    return schema_py_generated


def to_object(content: bytes) -> Any:
    """The flatbuffer as the schema's mutable `ModelT`.

    Raises:
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
    """
    if content[4:8] != FILE_IDENTIFIER:
        raise ModelFileError(
            f"expected a .tflite flatbuffer ({FILE_IDENTIFIER!r} at bytes 4 to 8), got {bytes(content[4:8])!r}: "
            "give a file that cxr_convert or tflite_convert wrote"
        )
    fb = schema()
    try:
        return fb.ModelT.InitFromObj(fb.Model.GetRootAs(content, 0))
    except _BROKEN as error:
        raise ModelFileError(
            f"the .tflite flatbuffer of {len(content)} bytes is damaged or cut off: copy or convert it again"
        ) from error


def to_bytes(model: Any) -> bytes:
    """Pack a `ModelT`; the same object gives the same bytes."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def read_graphs(content: bytes) -> tuple[Graph, ...]:
    """The subgraphs of a flatbuffer; the first one is the model, others are bodies of IF or WHILE.

    Raises:
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
    """
    return graphs_of(to_object(content))


def graphs_of(model: Any) -> tuple[Graph, ...]:
    """The subgraphs of a `ModelT` as plain data; constants are views of its buffers."""
    fb = schema()
    kinds = {code: name for name, code in vars(fb.BuiltinOperator).items() if not name.startswith("_")}
    dtypes = {code: name.lower() for name, code in vars(fb.TensorType).items() if not name.startswith("_")}
    try:
        return tuple(_graph(model, subgraph, kinds, dtypes) for subgraph in model.subgraphs)
    except _BROKEN as error:
        raise ModelFileError("the .tflite contradicts itself (an index points nowhere): convert it again") from error


def name_signature(content: bytes) -> bytes:
    """The same model with named ends: signature "serving_default", "image" in, "logits" and perhaps "cam" out.

    A frozen function reaches the converter without a signature, so its ends would be called "image" and "Identity".
    """
    model, fb = to_object(content), schema()
    subgraph = model.subgraphs[0]
    # Logits come first: `freeze` saw to that.
    made = dict(zip((OUTPUT_NAME, CAM_NAME), map(int, subgraph.outputs), strict=False))
    for name, index in {INPUT_NAME: int(subgraph.inputs[0]), **made}.items():
        subgraph.tensors[index].name = name.encode()
    signature = fb.SignatureDefT()
    signature.signatureKey = SIGNATURE_KEY.encode()
    signature.subgraphIndex = 0
    signature.inputs = [_end(fb, INPUT_NAME, int(subgraph.inputs[0]))]
    signature.outputs = [_end(fb, name, index) for name, index in made.items()]
    model.signatureDefs = [signature]
    return to_bytes(model)


def _end(fb: Any, name: str, index: int) -> Any:
    end = fb.TensorMapT()
    end.name, end.tensorIndex = name.encode(), index
    return end


def _graph(model: Any, subgraph: Any, kinds: dict[int, str], dtypes: dict[int, str]) -> Graph:
    return Graph(
        tensors=tuple(_tensor(model, i, t, dtypes) for i, t in enumerate(subgraph.tensors)),
        operators=tuple(_operator(model, i, op, kinds) for i, op in enumerate(subgraph.operators)),
        inputs=_indices(subgraph.inputs),
        outputs=_indices(subgraph.outputs),
    )


def _tensor(model: Any, index: int, tensor: Any, dtypes: dict[int, str]) -> Tensor:
    shape = _indices(tensor.shape)
    quantization = tensor.quantization
    dtype = dtypes[tensor.type]
    return Tensor(
        index=index,
        name=_text(tensor.name),
        shape=shape,
        dtype=dtype,
        scale=() if quantization is None else tuple(float(s) for s in _items(quantization.scale)),
        zero_point=() if quantization is None else _indices(quantization.zeroPoint),
        channel_axis=0 if quantization is None else int(quantization.quantizedDimension),
        dynamic=any(size < 0 for size in _indices(tensor.shapeSignature)),
        buffer=int(tensor.buffer),
        values=_values(model.buffers[tensor.buffer].data, dtype, shape),
    )


def _values(data: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if data is None or len(data) == 0:
        return None
    raw = np.asarray(data, dtype=np.uint8)
    # Types that numpy lacks (int4, strings) stay raw bytes: still a constant, only not one to compute with.
    return raw.view(dtype).reshape(shape) if dtype in _NUMPY_DTYPES else raw


def _operator(model: Any, index: int, operator: Any, kinds: dict[int, str]) -> Operator:
    code = model.operatorCodes[operator.opcodeIndex]
    number = _builtin(code)
    return Operator(
        index=index,
        kind=_text(code.customCode) if code.customCode else kinds[number],
        version=int(code.version),
        inputs=_indices(operator.inputs),
        outputs=_indices(operator.outputs),
    )


def _items(values: Any) -> Any:
    return () if values is None else values


def _indices(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in _items(values))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else (value or "")

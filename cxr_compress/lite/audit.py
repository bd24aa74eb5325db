"""Reads what a .tflite really holds: operators, dtypes, float islands, weight bytes, zeros, and its two ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.lite.flatbuffer import Graph, Operator, Tensor, read_graphs
from cxr_compress.lite.zeros import SparsityCount, count_zeros

_FENCES = ("QUANTIZE", "DEQUANTIZE")
_INTEGER = ("int8", "uint8", "int16")


@dataclass(frozen=True)
class OpCount:
    """How often one version of an operator occurs; the version decides which runtimes can run it."""

    kind: str
    version: int
    count: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: real value = scale * (code - zero_point); both are None where it is float or scaled per channel."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class FloatOp:
    """An operator that touches float values: where it runs, what it is, and the float tensor."""

    index: int
    kind: str
    tensor: str


@dataclass(frozen=True)
class Audit:
    """What is inside a .tflite.

    Attributes:
        file_bytes: size of the flatbuffer.
        weight_bytes: bytes of all constants; a buffer that tensors share counts once.
        ops: operators with counts and versions, most frequent first.
        tensors: every tensor of the model, constants included.
        dtypes: number of tensors per dtype.
        inputs: what the model takes.
        outputs: what the model gives.
        float_ops: operators that touch float values, the QUANTIZE and DEQUANTIZE at the model's ends left out.
        dynamic_tensors: tensors with a dimension that is known only when the model runs.
        sparsity: zeros among the kernels.
        has_integer_activations: some value between operators is int8, uint8 or int16.
    """

    file_bytes: int
    weight_bytes: int
    ops: tuple[OpCount, ...]
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    dtypes: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    float_ops: tuple[FloatOp, ...]
    dynamic_tensors: tuple[str, ...]
    sparsity: SparsityCount
    has_integer_activations: bool

    @property
    def float_islands(self) -> tuple[FloatOp, ...]:
        """Float operators of a model that otherwise computes in integers; () for a float model, where all are float."""
        return self.float_ops if self.has_integer_activations else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the tensors stay out (they are hundreds), their counts per dtype are in."""
        fields = asdict(self)
        del fields["tensors"], fields["float_ops"]
        fields["float_islands"] = [asdict(op) for op in self.float_islands]
        fields["sparsity"]["fraction"] = self.sparsity.fraction
        return fields

    def to_text(self) -> str:
        """A few lines to read; the same model gives the same text."""
        lines = [f"{self.file_bytes} bytes, {self.weight_bytes} of them weights"]
        lines += [f"input   {_describe(tensor)}" for tensor in self.inputs]
        lines += [f"output  {_describe(tensor)}" for tensor in self.outputs]
        lines += [f"op      {op.count:4d} {op.kind} v{op.version}" for op in self.ops]
        lines += [f"dtype   {count:4d} {dtype}" for dtype, count in self.dtypes.items()]
        lines += [f"float   {op.kind} (operator {op.index}) on {op.tensor}" for op in self.float_islands]
        lines += [f"dynamic {name}" for name in self.dynamic_tensors]
        zeros = self.sparsity
        lines += [f"zeros   {zeros.zeros} of {zeros.weights} kernel weights ({zeros.fraction:.2%})"]
        reasons = Counter(zeros.excluded.values())
        lines += [f"left out of the zeros: {count} x {reason}" for reason, count in sorted(reasons.items())]
        return "\n".join(lines)


def audit(content: bytes) -> Audit:
    """Read a flatbuffer; no TensorFlow is loaded and nothing is run.

    Raises:
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
        RuntimeUnavailableError: ai-edge-litert, whose schema this reads with, is not installed.
    """
    graphs = read_graphs(content)
    main = graphs[0]
    tensors = [tensor for graph in graphs for tensor in graph.tensors]
    return Audit(
        file_bytes=len(content),
        weight_bytes=_weight_bytes(tensors),
        ops=_op_counts(graphs),
        tensors=tuple(_info(tensor) for tensor in tensors),
        dtypes=dict(sorted(Counter(tensor.dtype for tensor in tensors).items())),
        inputs=tuple(_info(tensor) for tensor in main.present(main.inputs)),
        outputs=tuple(_info(tensor) for tensor in main.present(main.outputs)),
        float_ops=tuple(op for graph in graphs for op in _float_ops(graph)),
        dynamic_tensors=tuple(tensor.name for tensor in tensors if tensor.dynamic),
        sparsity=count_zeros(main),
        has_integer_activations=any(
            tensor.dtype in _INTEGER and tensor.index not in _cast_inputs(graph)
            for graph in graphs
            for tensor in graph.activations()
        ),
    )


def require_integer(
    found: Audit, *, float_io: bool = False, pixels: bool = False, allowed: Collection[str] = ()
) -> None:
    """Check that a model computes in int8 from end to end.

    Args:
        found: the audit of the model.
        float_io: the ends are float32, with one QUANTIZE and one DEQUANTIZE, as in "int8_float_io".
        pixels: the input is uint8, with one QUANTIZE.
        allowed: names of results whose operators may compute in float, with a fence around them.

    Raises:
        CompressionError: another operator computes in float, or an end has the wrong dtype; it names
            operator and tensor.
    """
    # The converter fences a float operator with DEQUANTIZE and QUANTIZE; the one inside is the cause.
    causes = [op for op in found.float_ops if op.kind not in _FENCES and op.tensor not in allowed]
    if not (causes or allowed):
        causes = list(found.float_ops)
    if causes:
        first, more = causes[0], len(causes) - 1
        raise CompressionError(
            f"expected int8 operators only, but {first.kind} (operator {first.index}) computes float tensor "
            f"{first.tensor!r}{f', and {more} more' if more else ''}: replace that layer by one with an int8 kernel, "
            "or export fp16 or dynamic"
        )
    end = "float32" if float_io else "int8"
    for tensor, wanted in [(given, "uint8" if pixels else end) for given in found.inputs] + [
        (given, end) for given in found.outputs
    ]:
        if tensor.dtype != wanted:
            raise CompressionError(f"expected {wanted} at the ends of the model, got {tensor.dtype} at {tensor.name!r}")


def _float_ops(graph: Graph) -> list[FloatOp]:
    found = []
    for operator in graph.operators:
        floats = [tensor for tensor in graph.present(operator.inputs + operator.outputs) if tensor.is_float]
        if floats and not _is_border(graph, operator):
            # The result names the place best: it is what a user finds in a viewer.
            results = [tensor for tensor in graph.present(operator.outputs) if tensor.is_float]
            found.append(FloatOp(operator.index, operator.kind, (results or floats)[0].name))
    return found


def _is_border(graph: Graph, operator: Operator) -> bool:
    """True for the QUANTIZE right behind a float input and the DEQUANTIZE right before a float output."""
    if operator.kind == "QUANTIZE":
        return operator.inputs[0] in graph.inputs
    return operator.kind == "DEQUANTIZE" and operator.outputs[0] in graph.outputs


def _cast_inputs(graph: Graph) -> set[int]:
    """Inputs that a CAST turns into floats at once: pixels of a float model, which is none of integers for that."""
    casts = {operator.inputs[0] for operator in graph.operators if operator.kind == "CAST"}
    return casts & set(graph.inputs)


def _weight_bytes(tensors: Sequence[Tensor]) -> int:
    buffers = {tensor.buffer: tensor.values.nbytes for tensor in tensors if tensor.values is not None}
    return sum(buffers.values())


def _op_counts(graphs: Sequence[Graph]) -> tuple[OpCount, ...]:
    counts = Counter((op.kind, op.version) for graph in graphs for op in graph.operators)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(OpCount(kind, version, count) for (kind, version), count in ordered)


def _info(tensor: Tensor) -> TensorInfo:
    single = len(tensor.scale) == 1
    return TensorInfo(
        name=tensor.name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        scale=tensor.scale[0] if single else None,
        zero_point=tensor.zero_point[0] if single and tensor.zero_point else None,
    )


def _describe(tensor: TensorInfo) -> str:
    shape = " x ".join(str(size) for size in tensor.shape)
    quantised = "" if tensor.scale is None else f", scale {tensor.scale:.6g}, zero point {tensor.zero_point}"
    return f"{tensor.name}: {shape} {tensor.dtype}{quantised}"

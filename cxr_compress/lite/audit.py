"""Reads what a .tflite really holds: operators and who can run them, dtypes, float islands, scales and zeros."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.constants import KernelScales, SparsityCount, count_scales, count_zeros
from cxr_compress.lite.graph.flatbuffer import Graph, Tensor, read_graphs
from cxr_compress.lite.graph.op_versions import TARGETS, TooNew, find_too_new, runtimes_of
from cxr_compress.lite.inputs_outputs import INT8, InputOutput

_FENCES = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class OpCount:
    """How often one version of an operator occurs; the version decides which runtimes can run it."""

    kind: str
    version: int
    count: int

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Those of `op_versions.TARGETS` that have this version."""
        return runtimes_of(self.kind, self.version)


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
        float_ops: operators that touch float values, the QUANTIZE and DEQUANTIZE at its input and output left out.
        dynamic_tensors: tensors with a dimension that is known only when the model runs.
        sparsity: zeros among the kernels.
        has_integer_activations: some value between operators is int8, uint8 or int16.
        kernel_scales: how many integer kernels have a scale for each filter.
        too_new: operators that a runtime has not, or not in the file's version; () where every runtime can load it.
        output_codes: how many different answers each finding gave on the images of a parity check; () where none was
            made, since that needs running the file.
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
    kernel_scales: KernelScales
    too_new: tuple[TooNew, ...]
    output_codes: tuple[int, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Those of `op_versions.TARGETS` that have every operator of the file in its version."""
        lacking = {one.target for one in self.too_new}
        return tuple(target for target in TARGETS if target not in lacking)

    @property
    def float_islands(self) -> tuple[FloatOp, ...]:
        """Float operators of a model that otherwise computes in integers; () for a float model, where all are float."""
        return self.float_ops if self.has_integer_activations else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the tensors stay out (they are hundreds), their counts per dtype are in."""
        fields = asdict(self)
        del fields["tensors"], fields["float_ops"]
        fields["ops"] = [{**asdict(op), "runtimes": op.runtimes} for op in self.ops]
        fields["runtimes"] = self.runtimes
        fields["float_islands"] = [asdict(op) for op in self.float_islands]
        fields["sparsity"]["fraction"] = self.sparsity.fraction
        return fields

    def to_text(self) -> str:
        """A few lines to read; the same model gives the same text."""
        lines = [f"{self.file_bytes} bytes, {self.weight_bytes} of them weights"]
        lines += [f"input   {_describe(tensor)}" for tensor in self.inputs]
        lines += [f"output  {_describe(tensor)}" for tensor in self.outputs]
        lines += [f"op      {op.count:4d} {op.kind} v{op.version}" for op in self.ops]
        lines += [f"runs on {', '.join(self.runtimes) or 'no runtime known here'}"]
        lines += [f"too new {one.to_text()}" for one in self.too_new]
        lines += [f"dtype   {count:4d} {dtype}" for dtype, count in self.dtypes.items()]
        lines += [f"float   {op.kind} (operator {op.index}) on {op.tensor}" for op in self.float_islands]
        lines += [f"dynamic {name}" for name in self.dynamic_tensors]
        scales, zeros = self.kernel_scales, self.sparsity
        lines += [f"scales  {scales.to_text()}"] if scales.per_channel or scales.per_tensor else []
        lines += [f"answers {_counts(self.output_codes)} a finding"] if self.output_codes else []
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
            tensor.is_integer and tensor.index not in _cast_inputs(graph)
            for graph in graphs
            for tensor in graph.activations()
        ),
        kernel_scales=count_scales(graphs),
        too_new=find_too_new(graphs),
    )


def require_integer(audited: Audit, *, input_output: InputOutput = INT8, allowed: Collection[str] = ()) -> None:
    """Check that a model computes in integers from end to end.

    Args:
        audited: the audit of the model.
        input_output: what it has to take and give; a QUANTIZE or DEQUANTIZE there is no arithmetic.
        allowed: names of results whose operators may compute in float, with a fence around them.

    Raises:
        CompressionError: another operator computes in float, or input or output has the wrong dtype; it names
            operator and tensor.
    """
    # The converter fences a float operator with DEQUANTIZE and QUANTIZE; the one inside is the cause.
    causes = [op for op in audited.float_ops if op.kind not in _FENCES and op.tensor not in allowed]
    if not (causes or allowed):
        causes = list(audited.float_ops)
    if causes:
        first, more = causes[0], len(causes) - 1
        raise CompressionError(
            f"expected {input_output.arithmetic} operators only, but {first.kind} (operator {first.index}) computes "
            f"float tensor {first.tensor!r}{f', and {more} more' if more else ''}: replace that layer by one with an "
            f"{input_output.arithmetic} kernel, or export fp16 or dynamic"
        )
    wanted = [("input", tensor, input_output.input) for tensor in audited.inputs]
    wanted += [("output", tensor, input_output.output) for tensor in audited.outputs]
    for role, tensor, dtype in wanted:
        if tensor.dtype != dtype:
            raise CompressionError(f"expected an {role} of {dtype}, got {tensor.dtype} at {tensor.name!r}")


def _counts(codes: Sequence[int]) -> str:
    low, high = min(codes), max(codes)
    return f"{low} different" if low == high else f"{low} to {high} different"


def _float_ops(graph: Graph) -> list[FloatOp]:
    found = []
    for operator in graph.operators:
        floats = [tensor for tensor in graph.present(operator.inputs + operator.outputs) if tensor.is_float]
        if floats and not graph.at_border(operator):
            # The result names the place best: it is what a user finds in a viewer.
            results = [tensor for tensor in graph.present(operator.outputs) if tensor.is_float]
            found.append(FloatOp(operator.index, operator.kind, (results or floats)[0].name))
    return found


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
    quantized = "" if tensor.scale is None else f", scale {tensor.scale:.6g}, zero point {tensor.zero_point}"
    return f"{tensor.name}: {shape} {tensor.dtype}{quantized}"

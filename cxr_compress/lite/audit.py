"""Reads what a .tflite really holds: operators and which runtimes load them, dtypes, float islands, scales, zeros."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.constants import KernelScales, SparsityCount, count_scales, count_zeros
from cxr_compress.lite.graph.flatbuffer import Graph, Tensor, read_graphs
from cxr_compress.lite.graph.names import layer_of
from cxr_compress.lite.inputs_outputs import INT8, InputOutput

LITERT, TFLITE_2_14 = "litert", "tflite-runtime-2.14"
# The highest version of each operator was asked of the runtimes themselves, in November 2026: files that declare one
# operator in one version, 1 to 24, were given to the interpreters of ai-edge-litert 2.3.0 and tflite-runtime 2.14.0,
# which refuse what they have not registered (BuiltinOpResolver, core/kernels/register.cc). The tests ask them again. A
# version says that there is a kernel, not that it takes every dtype: that is seen when a file runs.
TARGETS = (LITERT, TFLITE_2_14)

_ONLY_VERSION_1 = """
ADD_N ASSIGN_VARIABLE ATAN2 BITCAST BITWISE_XOR BROADCAST_ARGS BUCKETIZE CALL_ONCE CEIL COMPLEX_ABS CONV_3D
CONV_3D_TRANSPOSE CUMSUM DENSIFY ELU EMBEDDING_LOOKUP_SPARSE EXPAND_DIMS FLOOR HARD_SWISH HASHTABLE
HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_LOOKUP HASHTABLE_SIZE IF IMAG L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION
LOGICAL_AND LOGICAL_NOT LOGICAL_OR LSH_PROJECTION MATRIX_DIAG MATRIX_SET_DIAG MULTINOMIAL NEG
NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 ONE_HOT POW PRELU RANDOM_STANDARD_NORMAL RANDOM_UNIFORM RANK
READ_VARIABLE REAL REDUCE_ALL REDUCE_ANY RELU_0_TO_1 RELU_N1_TO_1 RESHAPE REVERSE_SEQUENCE RFFT2D RIGHT_SHIFT
ROUND SCATTER_ND SEGMENT_SUM SHAPE SKIP_GRAM SQUARE UNIQUE UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN
UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE WHILE ZEROS_LIKE
"""
# Operator, highest version of LiteRT 2.3, highest version of tflite-runtime 2.14 (0: it has no such operator).
_HIGHEST = """
ABS 5 5, ADD 6 5, ARG_MAX 3 3, ARG_MIN 3 3, AVERAGE_POOL_2D 3 3, BATCH_MATMUL 4 4, BATCH_TO_SPACE_ND 4 4,
BIDIRECTIONAL_SEQUENCE_LSTM 3 3, BIDIRECTIONAL_SEQUENCE_RNN 3 3, BROADCAST_TO 4 3, CAST 9 5, CONCATENATION 7 4,
CONV_2D 8 7, COS 2 1, DEPTHWISE_CONV_2D 7 7, DEPTH_TO_SPACE 2 2, DEQUANTIZE 9 5, DILATE 1 0, DIV 2 2,
DYNAMIC_UPDATE_SLICE 6 1, EMBEDDING_LOOKUP 5 3, EQUAL 5 4, EXP 2 2, FAKE_QUANT 2 2, FILL 5 4, FLOOR_DIV 3 3,
FLOOR_MOD 2 2, FULLY_CONNECTED 14 10, GATHER 8 6, GATHER_ND 6 4, GELU 3 2, GREATER 2 2, GREATER_EQUAL 3 3,
L2_NORMALIZATION 2 2, LEAKY_RELU 2 2, LESS 3 3, LESS_EQUAL 2 2, LOG 2 1, LOGISTIC 3 3, LOG_SOFTMAX 2 2,
LSTM 4 4, MAXIMUM 4 4, MAX_POOL_2D 3 3, MEAN 3 3, MINIMUM 4 4, MIRROR_PAD 3 3, MUL 8 7, NOT_EQUAL 4 3,
PACK 5 4, PAD 6 4, PADV2 6 4, QUANTIZE 6 3, RANGE 2 2, REDUCE_MAX 3 3, REDUCE_MIN 3 3, REDUCE_PROD 2 2,
REDUCE_WINDOW 1 0, RELU 3 3, RELU6 3 3, RESIZE_BILINEAR 4 4, RESIZE_NEAREST_NEIGHBOR 4 4, REVERSE_V2 4 3,
RNN 3 3, RSQRT 3 2, SELECT 4 4, SELECT_V2 2 2, SIGN 2 2, SIN 2 1, SLICE 8 6, SOFTMAX 4 3,
SPACE_TO_BATCH_ND 4 4, SPACE_TO_DEPTH 2 2, SPARSE_TO_DENSE 3 3, SPLIT 5 4, SPLIT_V 3 2, SQRT 2 1,
SQUARED_DIFFERENCE 2 2, SQUEEZE 2 2, STABLEHLO_ADD 1 0, STABLEHLO_AND 1 0, STABLEHLO_CASE 1 0,
STABLEHLO_COMPOSITE 1 0, STABLEHLO_GATHER 1 0, STABLEHLO_MAXIMUM 1 0, STABLEHLO_MINIMUM 1 0,
STABLEHLO_MULTIPLY 1 0, STABLEHLO_PAD 1 0, STABLEHLO_REDUCE_WINDOW 1 0, STABLEHLO_RNG_BIT_GENERATOR 1 0,
STABLEHLO_SCATTER 1 0, STABLEHLO_SHIFT_LEFT 1 0, STRIDED_SLICE 8 8, SUB 5 5, SUM 2 2, SVDF 4 4, TANH 3 3,
TILE 3 3, TOPK_V2 3 3, TRANSPOSE 9 6, TRANSPOSE_CONV 5 4, UNIDIRECTIONAL_SEQUENCE_LSTM 4 4,
UNIDIRECTIONAL_SEQUENCE_RNN 3 3, UNPACK 6 4, WHERE 2 2
"""
_LOWEST = {"BROADCAST_TO": 2}


def _read_tables() -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = dict.fromkeys(_ONLY_VERSION_1.split(), (1, 1))
    for entry in _HIGHEST.split(","):
        kind, *versions = entry.split()
        table[kind] = tuple(int(version) for version in versions)
    return table


_TABLE = _read_tables()


@dataclass(frozen=True)
class TooNew:
    """An operator that a runtime has not, or not in this version.

    Attributes:
        target: one of TARGETS.
        kind: "FULLY_CONNECTED", ...
        version: the file's.
        highest: the runtime's; 0 where it has no such operator.
        layer: where it occurs first.
    """

    target: str
    kind: str
    version: int
    highest: int
    layer: str

    def to_text(self) -> str:
        """What is wrong, in half a sentence."""
        known = f"knows versions up to {self.highest}" if self.highest else "has no such operator"
        return f"{self.kind} version {self.version} (layer {self.layer}), {self.target} {known}"


def highest_version(kind: str, target: str) -> int:
    """The highest version of an operator that a runtime has; 0 where it has none, as for all custom ones."""
    return _TABLE.get(kind, (0,) * len(TARGETS))[TARGETS.index(target)]


def runtimes_of(kind: str, version: int) -> tuple[str, ...]:
    """The runtimes, of TARGETS, that have this version of an operator."""
    lowest = _LOWEST.get(kind, 1)
    return tuple(target for target in TARGETS if lowest <= version <= highest_version(kind, target))


def find_too_new(graphs: Sequence[Graph]) -> tuple[TooNew, ...]:
    """What keeps the runtimes from loading a file: each operator and version once, with the first layer it is in."""
    found: dict[tuple[str, str, int], TooNew] = {}
    for graph in graphs:
        for operator in graph.operators:
            having = runtimes_of(operator.kind, operator.version)
            for target in TARGETS:
                key = (target, operator.kind, operator.version)
                if target not in having and key not in found:
                    found[key] = TooNew(*key, highest_version(operator.kind, target), layer_of(graph, operator))
    return tuple(found.values())


def require_target(too_new: Sequence[TooNew], target: str | None) -> None:
    """Check that a runtime can load a file.

    Args:
        too_new: `Audit.too_new`.
        target: one of TARGETS; None asks for nothing.

    Raises:
        CompressionError: names operator, version and layer.
    """
    against = [one for one in too_new if one.target == target]
    if against:
        more = f", and {len(against) - 1} more" if len(against) > 1 else ""
        raise CompressionError(
            f"not for {target}: the file has {against[0].to_text()}{more}: replace that layer, choose another quant "
            "type, or another target_runtime"
        )


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

"""Which version of an operator which TFLite runtime knows: a file above that does not even load there.

The numbers were asked of the runtimes themselves, in November 2026: files that declare one operator in one version, 1
to 24, were given to the interpreters of ai-edge-litert 2.3.0 and tflite-runtime 2.14.0, which refuse what they have not
registered. tests/lite/graph/test_op_versions.py asks them again. A version says that there is a kernel, not that it
takes every dtype: that is seen when a file runs.

Source: the runtimes; their lists are BuiltinOpResolver in tensorflow/lite/core/kernels/register.cc (v2.14) and
tflite/core/kernels/register.cc (LiteRT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import Graph
from cxr_compress.lite.graph.names import layer_of

LITERT, TFLITE_2_14 = "litert", "tflite-runtime-2.14"
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

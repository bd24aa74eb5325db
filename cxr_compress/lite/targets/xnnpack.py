"""Which operators of a model XNNPACK, the fast engine of TensorFlow Lite on processors, takes over, and why not.

What it leaves runs on TensorFlow Lite's own kernels, and cuts the model into parts between which values are copied.

Sources: the README of TensorFlow Lite's XNNPACK delegate (operators and their limits) and what LiteRT 2.3 itself takes,
asked operator by operator (tests/lite/targets/test_xnnpack.py); where the two differ, the runtime is followed.
That holds for LiteRT 2.x on x86-64 and ARM64; tflite-runtime 2.14 takes fewer 8-bit operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cxr_compress.lite.graph.flatbuffer import Tensor
from cxr_compress.lite.graph.names import Node, read_nodes

_BOTH = "float32 and 8 bits"
_FLOAT = "float32 only"
# fmt: off
_KINDS = {
    **dict.fromkeys((
        "ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE", "FULLY_CONNECTED",
        "LEAKY_RELU", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "PAD", "QUANTIZE", "REDUCE_MAX", "RESHAPE",
        "RESIZE_BILINEAR", "SPACE_TO_DEPTH", "SPLIT", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE",
        "TRANSPOSE_CONV",
    ), _BOTH),
    **dict.fromkeys((
        "ABS", "AVERAGE_POOL_2D", "CEIL", "DIV", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LOG", "MAXIMUM",
        "MINIMUM", "NEG", "PRELU", "ROUND", "RSQRT", "SIN", "SOFTMAX", "SQRT", "SQUARE", "SQUARED_DIFFERENCE",
    ), _FLOAT),
}
# fmt: on
_EIGHT_BITS = ("int8", "uint8")
_ACTIVATIONS = (0, 1, 2, 3)  # none, ReLU, ReLU from -1 to 1, ReLU6 in the schema
_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
# An 8-bit sum or product is computed by shifts: the ratio of the scales has to lie in these ranges.
_SUM_RATIO = (2.0**-10, 2.0**8)
_PRODUCT_RATIO = (2.0**-16, 2.0**8)


@dataclass(frozen=True)
class NodeVerdict:
    """One operator and whether XNNPACK takes it; `reason` says why not, "" where it does."""

    index: int
    kind: str
    version: int
    layer: str
    taken: bool
    reason: str


@dataclass(frozen=True)
class XnnpackReport:
    """What XNNPACK makes of a model.

    Attributes:
        ops: every operator, in the order they run.
        parts: runs of operators that XNNPACK takes as one, counted in the order they run; one is best.
    """

    ops: tuple[NodeVerdict, ...] = field(repr=False)
    parts: int

    @property
    def taken(self) -> int:
        """Operators that XNNPACK runs."""
        return sum(op.taken for op in self.ops)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"taken": self.taken, "left": len(self.ops) - self.taken, **asdict(self)}

    def to_text(self) -> str:
        """The lines above the list of operators."""
        lines = [f"xnnpack    {self.taken} of {len(self.ops)} operators, in {self.parts} part(s)"]
        reasons: dict[tuple[str, str], int] = {}
        for op in self.ops:
            if not op.taken:
                reasons[op.kind, op.reason] = reasons.get((op.kind, op.reason), 0) + 1
        lines += [f"left       {count} x {kind}: {reason}" for (kind, reason), count in reasons.items()]
        return "\n".join(lines)


def xnnpack_report(content: bytes) -> XnnpackReport:
    """Say of every operator whether XNNPACK takes it; nothing is run.

    Raises:
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
        RuntimeUnavailableError: ai-edge-litert, whose schema this reads with, is not installed.
    """
    _, nodes = read_nodes(content)
    reasons = {node.index: _why_not(node) for node in nodes}
    readers: dict[int, list[int]] = {}
    for node in nodes:
        for tensor in node.inputs:
            if tensor is not None:
                readers.setdefault(tensor.index, []).append(node.index)
    for node in nodes:
        # float16 weights are unpacked together with the operator that reads them, or not at all.
        if node.kind == "DEQUANTIZE" and node.constants and not reasons[node.index]:
            left = [reader for reader in readers.get(node.outputs[0].index, []) if reasons[reader]]
            reasons[node.index] = "what reads it is not taken" if left else ""
    ops = tuple(
        NodeVerdict(node.index, node.kind, node.version, node.layer, not reasons[node.index], reasons[node.index])
        for node in nodes
    )
    starts = sum(op.taken and (number == 0 or not ops[number - 1].taken) for number, op in enumerate(ops))
    return XnnpackReport(ops, starts)


def _why_not(node: Node) -> str:
    known = _KINDS.get(node.kind)
    if known is None:
        return "XNNPACK has no such operator"
    return _dtypes(node, known) or _shapes(node) or _options(node) or _CHECKS.get(node.kind, _nothing)(node)


def _nothing(_: Node) -> str:
    return ""


def _dtypes(node: Node, known: str) -> str:
    if node.kind in ("QUANTIZE", "DEQUANTIZE"):
        return _border(node)
    allowed = ("float32",) if known == _FLOAT else ("float32", *_EIGHT_BITS)
    for tensor in node.activations:
        if tensor.dtype not in allowed:
            return f"it computes in {tensor.dtype}; XNNPACK has it for {known}"
    return ""


def _border(node: Node) -> str:
    """QUANTIZE and DEQUANTIZE between float32 and 8 bits; of float16, constants alone."""
    data = node.inputs[0]
    if data is None:
        return "its input is left out"
    known = ("float32", *_EIGHT_BITS) if data.values is None else ("float16", "float32", *_EIGHT_BITS)
    return "" if data.dtype in known else f"it converts from {data.dtype}"


def _shapes(node: Node) -> str:
    open_sizes = next((t for t in node.tensors if t.dynamic or any(size < 0 for size in t.shape)), None)
    return "" if open_sizes is None else f"{open_sizes.name} has a size that is known only when the model runs"


def _options(node: Node) -> str:
    if node.option("fusedActivationFunction") not in _ACTIVATIONS:
        return "its fused activation is neither ReLU nor ReLU6 nor ReLU from -1 to 1"
    if node.kind in _KERNELS and node.kind != "FULLY_CONNECTED" and not _has_bias(node):
        return "it has no bias"
    return ""


def _has_bias(node: Node) -> bool:
    place = 3 if node.kind == "TRANSPOSE_CONV" else 2
    return len(node.inputs) > place and node.inputs[place] is not None


def _is_eight_bits(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype in _EIGHT_BITS


def _sum(node: Node) -> str:
    if not _is_eight_bits(node.outputs[0]):
        return ""
    for tensor in node.inputs:
        if tensor is not None and not _within(tensor.scale[0] / node.outputs[0].scale[0], _SUM_RATIO):
            ratio = tensor.scale[0] / node.outputs[0].scale[0]
            return f"the scale of {tensor.name} is {ratio:.3g} times the output's, beyond 1/1024 to 256"
    return ""


def _product(node: Node) -> str:
    if not _is_eight_bits(node.outputs[0]):
        return ""
    factor = float(np.prod([tensor.scale[0] for tensor in node.inputs if tensor is not None]))
    ratio = factor / node.outputs[0].scale[0]
    if _within(ratio, _PRODUCT_RATIO):
        return ""
    return f"its scales are {ratio:.3g} times the output's, beyond 1/65536 to 256"


def _within(value: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= value < ends[1]


def _pool(node: Node) -> str:
    size = node.option("filterHeight", 2), node.option("filterWidth", 2)
    steps = node.option("strideH", 1), node.option("strideW", 1)
    return "it skips without looking: 1x1 pooling with a stride" if size == (1, 1) and steps != (1, 1) else ""


def _constant_second(node: Node) -> str:
    return "its second input is computed: it has to be a constant" if node.constant(1) is None else ""


def _reshape(node: Node) -> str:
    computed = len(node.inputs) > 1 and node.inputs[1] is not None and node.constant(1) is None
    return "its shape is computed: it has to be a constant" if computed else ""


def _strided_slice(node: Node) -> str:
    strides = node.constant(3)
    return "its strides are not all 1" if strides is None or np.any(strides != 1) else ""


def _softmax(node: Node) -> str:
    return "" if node.option("beta", 1.0) == 1.0 else "its beta is not 1"


def _depthwise(node: Node) -> str:
    kernel, data = node.inputs[1], node.inputs[0]
    mixed = data is not None and data.is_float and _is_eight_bits(kernel)
    return "its kernel is in 8 bits and its input in float32; XNNPACK has it for equal types" if mixed else ""


_CHECKS: dict[str, Callable[[Node], str]] = {
    **dict.fromkeys(("ADD", "SUB"), _sum),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), _pool),
    **dict.fromkeys(("MEAN", "PAD", "REDUCE_MAX", "RESIZE_BILINEAR", "SUM", "TRANSPOSE"), _constant_second),
    "DEPTHWISE_CONV_2D": _depthwise,
    "MUL": _product,
    "RESHAPE": _reshape,
    "SOFTMAX": _softmax,
    "STRIDED_SLICE": _strided_slice,
}

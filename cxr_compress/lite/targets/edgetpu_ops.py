"""What the Edge TPU can compute: its operations, each with its documented limits.

Sources: "TensorFlow models on the Edge TPU", section "Supported operations" (coral.ai/docs/edgetpu/models-intro), for
the runtime 14 that compiler 16, the last one, writes for; the same list with the same limits is kept by Axis for its
cameras with this chip (developer.axis.com, ARTPEC-7, "Supported ops"). Versions: the compiler of 2021 holds TensorFlow
Lite's own reader and refuses a file with an operator that is newer. CONV_2D version 6 is one
(google-coral/edgetpu issue 631); the other bounds are those of TensorFlow Lite's register.cc of 2022, so what is above
them is too new for certain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cxr_compress.lite.graph.flatbuffer import Tensor
from cxr_compress.lite.graph.names import NO_ACTIVATION, Node

_EIGHT_BITS = ("int8", "uint8")
_SOFTMAX_ELEMENTS = 16_000
_INNER = 3  # dimensions that may have more than one element
_BATCH = 0
_ZERO_PADDING = 2  # inputs of a concatenation with a constant
_CHANNEL_MULTIPLE = 4

Check = Callable[[Node], str]

# fmt: off
_NEWEST = {
    "ADD": 4, "AVERAGE_POOL_2D": 3, "CONCATENATION": 3, "CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "EXPAND_DIMS": 1,
    "FULLY_CONNECTED": 9, "L2_NORMALIZATION": 2, "LOGISTIC": 3, "LSTM": 4, "MAXIMUM": 4, "MAX_POOL_2D": 3, "MEAN": 3,
    "MINIMUM": 4, "MUL": 5, "PACK": 3, "PAD": 4, "PRELU": 1, "QUANTIZE": 3, "REDUCE_MAX": 3, "REDUCE_MIN": 3, "RELU": 3,
    "RELU6": 3, "RELU_N1_TO_1": 1, "RESHAPE": 1, "RESIZE_BILINEAR": 4, "RESIZE_NEAREST_NEIGHBOR": 4, "RSQRT": 2,
    "SLICE": 5, "SOFTMAX": 3, "SPACE_TO_DEPTH": 2, "SPLIT": 4, "SQUARED_DIFFERENCE": 2, "SQUEEZE": 2,
    "STRIDED_SLICE": 6, "SUB": 5, "SUM": 2, "TANH": 3, "TRANSPOSE": 5, "TRANSPOSE_CONV": 3,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 3,
}
# fmt: on


def why_not(node: Node) -> str:
    """Why the Edge TPU cannot run an operator, in a clause; "" where it can."""
    if node.kind not in OPERATIONS:
        return "the Edge TPU has no such operation"
    if is_too_new(node):
        return f"version {node.version} is newer than the compiler, which knows {_NEWEST[node.kind]} at most"
    for check in (_tensors, OPERATIONS[node.kind]):
        reason = check(node)
        if reason:
            return reason
    return ""


def is_too_new(node: Node) -> bool:
    """Whether the compiler's reader would refuse the whole file for this operator's version."""
    return node.version > _NEWEST.get(node.kind, node.version)


def caution(node: Node) -> str:
    """What the documentation leaves to the compiler at an operator that can run; "" for most."""
    return _UNSURE.get(node.kind, "")


def _tensors(node: Node) -> str:
    """What holds for the tensors of every operation."""
    for tensor in node.tensors:
        if tensor.dynamic or any(size < 0 for size in tensor.shape):
            return f"{tensor.name} has a size that is known only when the model runs"
        if not _has_eight_bits(tensor):
            return f"it works on {tensor.dtype} ({tensor.name})"
    for tensor in node.activations:
        if any(size > 1 for size in tensor.shape[:-_INNER]):
            return f"{tensor.name} is {_shape(tensor)}: only the innermost 3 sizes may be above 1"
    return ""


def _has_eight_bits(tensor: Tensor) -> bool:
    """int32 stands for biases, axes and shapes, which have to be constants."""
    return tensor.dtype in _EIGHT_BITS or (tensor.dtype == "int32" and tensor.values is not None)


def _anything(_: Node) -> str:
    return ""


def _no_activation(node: Node) -> str:
    return "it has a fused activation" if node.option("fusedActivationFunction") != NO_ACTIVATION else ""


def _concatenation(node: Node) -> str:
    constants = node.constants
    if not constants:
        return _no_activation(node)
    if len(node.inputs) != _ZERO_PADDING:
        return f"it joins a constant and {len(node.inputs) - 1} more tensors: one is allowed"
    zeros = all(map(_is_zero, constants))
    return _no_activation(node) or ("" if zeros else "it joins a constant that is not all zeros")


def _is_zero(tensor: Tensor) -> bool:
    zero = tensor.zero_point[0] if tensor.zero_point else 0
    return tensor.values is not None and bool(np.all(tensor.values == zero))


def _convolution(node: Node) -> str:
    steps = node.option("dilationHFactor", 1), node.option("dilationWFactor", 1)
    if steps[0] != steps[1]:
        return f"its dilation is {steps[0]} x {steps[1]}: both have to be the same"
    return _constant_kernel(node)


def _constant_kernel(node: Node) -> str:
    """Kernel and bias; TRANSPOSE_CONV has the output's shape in front and reads its image third."""
    places = (1, 3) if node.kind == "TRANSPOSE_CONV" else (1, 2)
    for place in places:
        if place < len(node.inputs) and node.inputs[place] is not None and node.constant(place) is None:
            return "its kernel or bias is computed: it has to be a constant"
    return ""


def _fully_connected(node: Node) -> str:
    if node.option("weightsFormat") != 0:
        return "its weights are shuffled: only the default format is allowed"
    if sum(size > 1 for size in node.outputs[0].shape) > 1:
        return f"its output is {_shape(node.outputs[0])}: it has to be one-dimensional"
    return _constant_kernel(node)


def _reduction(node: Node) -> str:
    axes = node.axes()
    if axes is None:
        return "its axes are computed: they have to be constants"
    return "it reduces the batch" if _BATCH in axes else ""


def _mean(node: Node) -> str:
    reason, axes, data = _reduction(node), node.axes(), node.inputs[0]
    if reason or axes is None or data is None:
        return reason
    if len(data.shape) - 1 in axes and data.shape[-1] % _CHANNEL_MULTIPLE:
        return f"it averages {data.shape[-1]} channels: their number has to be a multiple of 4"
    return ""


def _pack(node: Node) -> str:
    return "it packs along the batch" if node.option("axis") == _BATCH else ""


def _pad(node: Node) -> str:
    paddings = node.constant(1)
    if paddings is None:
        return "its paddings are computed: they have to be constants"
    return "it pads the batch" if np.any(paddings[_BATCH]) else ""


def _prelu(node: Node) -> str:
    alpha = node.inputs[1]
    if alpha is None or alpha.values is None:
        return "its slopes are computed: they have to be constants"
    return f"its slopes are {_shape(alpha)}: share them over rows and columns" if np.prod(alpha.shape[:-1]) > 1 else ""


def _softmax(node: Node) -> str:
    data = node.outputs[0]
    if sum(size > 1 for size in data.shape) > 1:
        return f"its input is {_shape(data)}: it has to be one-dimensional"
    count = int(np.prod(data.shape))
    return f"its input has {count} elements, {_SOFTMAX_ELEMENTS} are allowed" if count > _SOFTMAX_ELEMENTS else ""


def _split(node: Node) -> str:
    axis = node.constant(0)
    if axis is None:
        return "its axis is computed: it has to be a constant"
    data = node.inputs[1]
    rank = len(data.shape) if data is not None else 1
    return "it splits the batch" if int(np.ravel(axis)[0]) % rank == _BATCH else ""


def _strided_slice(node: Node) -> str:
    strides = node.constant(3)
    if strides is None or np.any(strides != 1):
        return "its strides are not all 1"
    if node.option("ellipsisMask") or node.option("newAxisMask"):
        return "it has an ellipsis or a new axis"
    return ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


OPERATIONS: dict[str, Check] = {
    **dict.fromkeys(
        ("ADD", "EXPAND_DIMS", "L2_NORMALIZATION", "LOGISTIC", "LSTM", "MAXIMUM", "MINIMUM", "MUL", "QUANTIZE", "RELU",
         "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE",
         "SPACE_TO_DEPTH", "SQUARED_DIFFERENCE", "SQUEEZE", "SUB", "TANH", "TRANSPOSE", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
        _anything,
    ),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), _no_activation),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), _convolution),
    **dict.fromkeys(("REDUCE_MAX", "REDUCE_MIN", "SUM"), _reduction),
    "CONCATENATION": _concatenation,
    "FULLY_CONNECTED": _fully_connected,
    "MEAN": _mean,
    "PACK": _pack,
    "PAD": _pad,
    "PRELU": _prelu,
    "SOFTMAX": _softmax,
    "SPLIT": _split,
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE_CONV": _constant_kernel,
}  # fmt: skip
_UNSURE = {
    "RESHAPE": "certain reshapes of large tensors stay on the CPU",
    "RESIZE_BILINEAR": "stays on the CPU at some sizes, to avoid a loss of precision",
    "RESIZE_NEAREST_NEIGHBOR": "stays on the CPU at some sizes, to avoid a loss of precision",
}

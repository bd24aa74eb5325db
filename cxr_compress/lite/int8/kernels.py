"""The operators with a kernel and a bias in a flatbuffer, and their mean results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.lite.graph.flatbuffer import Graph, Operator, Tensor, schema
from cxr_compress.lite.int8.tap_means import Floats, Window, convolution_mean, dense_mean, depthwise_mean

KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
INPUT, KERNEL, BIAS = 0, 1, 2
_CHANNELS_LAST = 3


@dataclass(frozen=True)
class Kernel:
    """One operator with a constant kernel and a constant bias.

    Attributes:
        operator: where it is.
        window: None for FULLY_CONNECTED.
        weights: real values of the kernel, as TFLite keeps it (filters first, or (1, h, w, channels) for depthwise).
        bias: real values (filters,).
    """

    operator: Operator
    window: Window | None
    weights: Floats
    bias: Floats

    def mean(self, mean_map: Floats) -> Floats:
        """Mean of each output channel before any activation, from the input's mean over images."""
        if self.operator.kind == "FULLY_CONNECTED" or self.window is None:
            return dense_mean(mean_map, self.weights) + self.bias
        if self.operator.kind == "DEPTHWISE_CONV_2D":
            return depthwise_mean(mean_map, self.weights, self.window) + self.bias
        return convolution_mean(mean_map, self.weights, self.window) + self.bias


def read_kernel(model: Any, graph: Graph, operator: Operator) -> Kernel | None:
    """The kernel of an operator of a ``ModelT``; None where it has none, or kernel or bias are computed."""
    if operator.kind not in KINDS or len(operator.inputs) <= BIAS or operator.inputs[BIAS] < 0:
        return None
    kernel, bias = (graph.tensors[operator.inputs[place]] for place in (KERNEL, BIAS))
    if kernel.values is None or bias.values is None:
        return None
    options = model.subgraphs[0].operators[operator.index].builtinOptions
    window = None
    if operator.kind != "FULLY_CONNECTED":
        window = Window(
            (int(options.strideH), int(options.strideW)),
            (int(options.dilationHFactor), int(options.dilationWFactor)),
            options.padding == schema().Padding.SAME,
        )
    return Kernel(operator, window, real_values(kernel), real_values(bias))


def real_values(tensor: Tensor) -> Floats:
    """A constant as float64, whatever it is stored as."""
    if tensor.values is None:
        raise AssertionError(f"{tensor.name} is no constant")
    values = tensor.values.astype(np.float64)
    if not tensor.scale:
        return values
    shape = [1] * values.ndim
    shape[tensor.channel_axis] = len(tensor.scale)
    scale, zero = (np.asarray(part, np.float64).reshape(shape) for part in (tensor.scale, tensor.zero_point))
    return (values - zero) * scale

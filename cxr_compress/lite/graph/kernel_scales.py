"""How finely the kernels of a file are quantised: a scale for each filter, or one for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_compress.lite.graph.flatbuffer import Graph, Operator, Tensor
from cxr_compress.lite.graph.layer_names import layer_of

# The axis of the filters in a kernel, and its place among the inputs.
_FILTER_AXIS = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0, "CONV_3D": 4}
_KERNEL = 1


@dataclass(frozen=True)
class KernelScales:
    """The integer kernels of a file.

    Attributes:
        per_channel: kernels with a scale for each filter, or with one filter.
        per_tensor: layers whose filters share one scale: one wild filter makes all the others coarse.
    """

    per_channel: int
    per_tensor: tuple[str, ...]

    def to_text(self) -> str:
        """One line."""
        shared = f", one scale for all: {', '.join(self.per_tensor)}" if self.per_tensor else ""
        return (
            f"{self.per_channel} of {self.per_channel + len(self.per_tensor)} kernels with a scale per filter{shared}"
        )


def count_scales(graphs: Sequence[Graph]) -> KernelScales:
    """Look at the kernels that are stored as integers."""
    fine, coarse = 0, []
    for graph in graphs:
        for operator in graph.operators:
            kernel = _kernel(graph, operator)
            if kernel is None or not kernel.scale or kernel.dtype == "float32":
                continue
            if len(kernel.scale) == 1 and kernel.shape[_FILTER_AXIS[operator.kind]] > 1:
                coarse.append(layer_of(graph, operator))
            else:
                fine += 1
    return KernelScales(fine, tuple(coarse))


def _kernel(graph: Graph, operator: Operator) -> Tensor | None:
    """The constant kernel of an operator; None where it has none."""
    if operator.kind not in _FILTER_AXIS or len(operator.inputs) <= _KERNEL or operator.inputs[_KERNEL] < 0:
        return None
    tensor = graph.tensors[operator.inputs[_KERNEL]]
    return tensor if tensor.values is not None else None

"""Which layer of the Keras model an operator of a .tflite came from, and which operators a layer became."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import OUTPUT_NAME, Graph, Operator

# These only change how numbers are stored; all others compute.
FENCES = ("QUANTIZE", "DEQUANTIZE", "CAST")
# A bias that is read inside of a fused layer: model/layer/BiasAdd/ReadVariableOp/resource1.
_READS = re.compile(r"/ReadVariableOp(/resource)?\d*$")


def computing(graph: Graph) -> list[Operator]:
    """The operators that compute, in the order they run: those of a float file and of its int8 files correspond."""
    return [operator for operator in graph.operators if operator.kind not in FENCES]


def layer_of(graph: Graph, operator: Operator) -> str:
    """Name of the layer: "conv2_block1_1_conv"; nested models are joined with "/".

    The converter names a tensor model/layer/operation and joins the names of fused layers with ";", the one that
    computes last: a convolution with its batch norm and ReLU is called after the convolution. What gives the output of
    the model is "logits", whatever its layer was called; any other tensor with another name keeps it.
    """
    if operator.outputs[0] in graph.outputs:
        return OUTPUT_NAME
    return layer_in(graph.tensors[operator.outputs[0]].name.split(";")[-1])


# A SavedModel calls its functions; their names stand before those of the layers.
_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")


def layer_in(name: str) -> str:
    """The layer in the name of a tensor or an operation, model/layer/operation; any other name is kept."""
    parts = _READS.sub("", _CALLS.sub("", name)).split("/")
    # model/layer/operation; anything shorter is no name of a layer.
    return "/".join(parts[1:-1]) if len(parts) > 2 else name  # noqa: PLR2004


def operators_named(graph: Graph, names: Iterable[str]) -> list[Operator]:
    """The operators of a float graph that names stand for.

    Args:
        graph: as lowered.
        names: each the name of a layer (a batch norm that stayed apart is a MUL and an ADD, both are meant; a layer
            that was fused into another means that one), or the whole name of a tensor.

    Raises:
        CompressionError: nothing in the graph has that name.
    """
    known = {operator.index: _names(graph, operator) for operator in computing(graph)}
    chosen: set[int] = set()
    for name in names:
        found = {index for index, of_operator in known.items() if name in of_operator}
        if not found:
            every = sorted(set().union(*known.values()))
            near = get_close_matches(name, every, 3, 0.3)
            raise CompressionError(f"expected layers of this network, got {name!r}: nearest are {', '.join(near)}")
        chosen |= found
    return [graph.operators[index] for index in sorted(chosen)]


def operators_of_kind(graph: Graph, kinds: Iterable[str]) -> list[Operator]:
    """The operators of a float graph that are of some kinds, as "CONV_2D".

    Raises:
        CompressionError: the graph has no operator of that kind.
    """
    wanted, there = list(kinds), {operator.kind for operator in computing(graph)}
    missing = [kind for kind in wanted if kind not in there]
    if missing:
        raise CompressionError(
            f"expected operators of this network in denylisted_ops, got {missing[0]!r}: it has "
            f"{', '.join(sorted(there))}"
        )
    return [operator for operator in computing(graph) if operator.kind in wanted]


def _names(graph: Graph, operator: Operator) -> set[str]:
    """All that an operator answers to."""
    name = graph.tensors[operator.outputs[0]].name
    return {name, layer_of(graph, operator)} | {layer_in(part) for part in name.split(";")}

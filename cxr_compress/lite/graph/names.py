"""Which layer of the Keras model an operator of a .tflite came from, and which operators a layer became."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import OUTPUT_NAME, Graph, Operator, Tensor, graphs_of, schema, to_object

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


NO_ACTIVATION = 0  # of the schema's ActivationFunctionType


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of the model itself (bodies of IF and WHILE are none).

    Attributes:
        index: place in the order of execution.
        kind: "CONV_2D", or the name of a custom one.
        version: of the operator.
        layer: of the Keras model it came from (`layer_of`).
        inputs: tensors it reads; None where an optional one is left out.
        outputs: tensors it writes.
        at_border: it stands between the model's float ends and the integers inside.
        options: the schema's object with its options; None where it has none.
    """

    index: int
    kind: str
    version: int
    layer: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    at_border: bool
    options: Any

    @property
    def tensors(self) -> list[Tensor]:
        """All that it reads and writes."""
        return [tensor for tensor in (*self.inputs, *self.outputs) if tensor is not None]

    @property
    def constants(self) -> list[Tensor]:
        """What it reads from the file."""
        return [tensor for tensor in self.inputs if tensor is not None and tensor.values is not None]

    @property
    def activations(self) -> list[Tensor]:
        """What is computed: of its inputs and all its outputs."""
        return [tensor for tensor in self.tensors if tensor.values is None]

    def option(self, name: str, default: Any = 0) -> Any:
        """An option by the schema's name, where the operator has it."""
        return getattr(self.options, name, default)

    def constant(self, place: int) -> np.ndarray | None:
        """The values of an input; None where it is computed or left out."""
        tensor = self.inputs[place] if place < len(self.inputs) else None
        return None if tensor is None else tensor.values

    def axes(self, place: int = 1) -> list[int] | None:
        """Axes that an input names, counted from the front; None where they are computed."""
        values, data = self.constant(place), self.inputs[0]
        if values is None or data is None:
            return None
        return [int(axis) % max(1, len(data.shape)) for axis in np.atleast_1d(values)]


def read_nodes(content: bytes) -> tuple[Graph, tuple[Node, ...]]:
    """The graph of a model and its operators in the order they run.

    Raises:
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
        RuntimeUnavailableError: ai-edge-litert, whose schema this reads with, is not installed.
    """
    model = to_object(content)
    graph = graphs_of(model)[0]
    packed = model.subgraphs[0].operators
    return graph, tuple(_node(graph, packed[index], index) for index in range(len(graph.operators)))


def _node(graph: Graph, packed: Any, index: int) -> Node:
    operator = graph.operators[index]
    return Node(
        index=index,
        kind=operator.kind,
        version=operator.version,
        layer=layer_of(graph, operator),
        inputs=tuple(graph.tensors[place] if place >= 0 else None for place in operator.inputs),
        outputs=tuple(graph.tensors[place] for place in operator.outputs),
        at_border=graph.at_border(operator),
        options=packed.builtinOptions if packed.builtinOptionsType != schema().BuiltinOptions.NONE else None,
    )


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values, from its shape; an open dimension counts as 1."""
    if tensor.values is not None:
        return int(tensor.values.nbytes)
    bits = {"float64": 64, "int64": 64, "float32": 32, "int32": 32, "uint32": 32, "float16": 16, "int16": 16}
    return int(np.prod([max(1, size) for size in tensor.shape], dtype=np.int64)) * bits.get(tensor.dtype, 8) // 8

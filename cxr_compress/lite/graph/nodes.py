"""The operators of a model with their tensors and options at hand: what the checks of a target look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.lite.graph.flatbuffer import Graph, Tensor, graphs_of, schema, to_object
from cxr_compress.lite.graph.layer_names import layer_of

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

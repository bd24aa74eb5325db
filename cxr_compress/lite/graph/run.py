"""Runs a flatbuffer image by image and shows every activation in it, not only the output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.device.runner import TensorFormat
from cxr_compress.lite.graph.flatbuffer import Operator, graphs_of, to_bytes, to_object
from cxr_compress.lite.graph.names import computing


class Observer:
    """One loaded flatbuffer of which every chosen activation can be read after each run.

    All of them are held at once: 160 MB for a float DenseNet121 at 224 px, a quarter of that in int8.
    """

    def __init__(self, content: bytes, tensors: Sequence[int], *, num_threads: int = 1) -> None:
        """Load a flatbuffer; `tensors` are the indices that will be read."""
        interpreter = load_interpreter(_with_outputs(content, tensors), num_threads=num_threads).interpreter
        self._interpreter = interpreter
        details = interpreter.get_input_details()
        self._formats = {int(one["index"]): TensorFormat.from_details(one) for one in details}
        self._readers = {index: interpreter.tensor(index) for index in tensors}

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the tensors to be fed."""
        return tuple(self._formats)

    def feed(self, index: int, values: np.ndarray) -> None:
        """Set an input; numbers are rounded to its codes where it stores codes."""
        form = self._formats[index]
        codes = values.astype(np.float32, copy=False) if form.scale is None else form.encode(values)
        self._interpreter.set_tensor(index, codes)

    def invoke(self) -> None:
        """Run the graph on what was fed."""
        self._interpreter.invoke()

    def view(self, index: int) -> np.ndarray:
        """What a tensor stores, without a copy: drop it before the next run, the interpreter refuses to run else."""
        return self._readers[index]()


def _with_outputs(content: bytes, tensors: Sequence[int]) -> bytes:
    """The same graph with these activations as outputs, so that no runtime fuses one away or reuses its memory."""
    model = to_object(content)
    subgraph = model.subgraphs[0]
    kept = [int(index) for index in subgraph.outputs]
    taken = {*kept, *(int(index) for index in subgraph.inputs)}
    subgraph.outputs = np.array(kept + [index for index in tensors if index not in taken], dtype=np.int32)
    return to_bytes(model)


def float_activations(content: bytes) -> list[int]:
    """Indices of the float32 activations of a flatbuffer, in order."""
    graph = graphs_of(to_object(content))[0]
    return [tensor.index for tensor in graph.activations() if tensor.dtype == "float32"]


@dataclass(frozen=True)
class Pieces:
    """The operators of a graph, none of which reads what another one wrote: one run runs them side by side.

    Attributes:
        content: the flatbuffer; what its operators read are its inputs, what they write its outputs.
        inputs: label of an activation that is read -> the tensor to feed.
        results: tensor of the whole graph -> the tensor that its operator now writes.
    """

    content: bytes = field(repr=False)
    inputs: dict[int, int]
    results: dict[int, int]

    @property
    def outputs(self) -> list[int]:
        """The tensors that the pieces write."""
        return sorted(self.results.values())


def split_operators(content: bytes, label: Callable[[Operator, int], int | None]) -> Pieces:
    """Cut a graph into pieces, without those that only change how numbers are stored.

    Args:
        content: the whole graph.
        label: operator, place among its inputs -> a number; places of one number share one input of the pieces. None
            where the operator reads a constant, or nothing.
    """
    model = to_object(content)
    graph, subgraph = graphs_of(model)[0], model.subgraphs[0]
    inputs: dict[int, int] = {}
    results: dict[int, int] = {}

    def twin(index: int) -> int:
        subgraph.tensors.append(copy.copy(subgraph.tensors[index]))
        return len(subgraph.tensors) - 1

    kept = computing(graph)
    subgraph.operators = [subgraph.operators[operator.index] for operator in kept]
    for operator, packed in zip(kept, subgraph.operators, strict=True):
        read = list(operator.inputs)
        for place, index in enumerate(operator.inputs):
            key = label(operator, place)
            if key is not None:
                if key not in inputs:
                    inputs[key] = twin(index)
                read[place] = inputs[key]
        for index in operator.outputs:
            results[index] = twin(index)
        packed.inputs = np.array(read, np.int32)
        packed.outputs = np.array([results[index] for index in operator.outputs], np.int32)
    subgraph.inputs = np.array(list(inputs.values()), np.int32)
    subgraph.outputs = np.array(list(results.values()), np.int32)
    model.signatureDefs = []
    return Pieces(to_bytes(model), inputs, results)

"""Cuts a graph into its single operators, so that each can be run on inputs that no other one has spoilt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cxr_compress.lite.graph.flatbuffer import Operator, graphs_of, to_bytes, to_object
from cxr_compress.lite.graph.layer_names import computing


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

"""Runs a graph in pieces from one chosen operator to the next, on all images at once: each piece can still be edited.

What is computed in total is one run of the whole graph an image. Between pieces only the activations that a later one
reads are kept: for DenseNet121 at 224 px in int8 about 2 MB an image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cxr_compress.lite.graph.flatbuffer import Graph, schema, to_bytes
from cxr_compress.lite.graph.observe import Observer


def segments_of(graph: Graph, starts: Sequence[int]) -> list[range]:
    """The operators of a graph in pieces; each of `starts` begins one, what lies before them is the first."""
    cuts = sorted({0, *starts, len(graph.operators)})
    return [range(first, last) for first, last in pairwise(cuts)]


class SegmentRunner:
    """Holds the activations of all images that are still needed, and runs one piece after the other."""

    def __init__(self, graph: Graph, inputs: dict[int, np.ndarray], *, num_threads: int = 1) -> None:
        """Start at the inputs of the graph: tensor -> what it stores, (images, ...) without the batch axis."""
        self._graph, self._threads = graph, num_threads
        self._held = dict(inputs)
        self._last_read = {index: op.index for op in graph.operators for index in op.inputs}

    def __getitem__(self, index: int) -> np.ndarray:
        """What an activation holds on all images, (images, ...)."""
        return self._held[index]

    def run(self, model: Any, operators: range) -> None:
        """Run a piece of `model`, which is the graph this was made for, with constants as they are by now."""
        chosen = [self._graph.operators[index] for index in operators]
        written = {index for op in chosen for index in op.outputs}
        read = sorted({index for op in chosen for index in op.inputs if index in self._held})
        kept = sorted(index for index in written if self._last_read.get(index, -1) >= operators.stop)
        if kept:
            self._compute(_extract(model, operators, read, kept), read, kept)
        self._held = {index: held for index, held in self._held.items() if self._last_read[index] >= operators.stop}

    def _compute(self, content: bytes, read: list[int], kept: list[int]) -> None:
        """Run a piece image by image; in it, what is read comes first, then what is kept."""
        outputs = range(len(read), len(read) + len(kept))
        observer = Observer(content, list(outputs), num_threads=self._threads)
        images = len(next(iter(self._held.values())))
        results: list[list[np.ndarray]] = [[] for _ in kept]
        for number in range(images):
            for place, index in enumerate(read):
                observer.feed_codes(place, self._held[index][number][np.newaxis])
            observer.invoke()
            for result, place in zip(results, outputs, strict=True):
                result.append(observer.view(place)[0].copy())
        self._held |= {index: np.stack(result) for index, result in zip(kept, results, strict=True)}


def _extract(model: Any, operators: range, read: list[int], kept: list[int]) -> bytes:
    """A flatbuffer of a few operators with only the tensors and buffers that they use, `read` and `kept` first."""
    fb, whole = schema(), model.subgraphs[0]
    used = [copy.copy(whole.operators[index]) for index in operators]
    touched = [int(index) for op in used for index in (*op.inputs, *op.outputs) if index >= 0]
    order = list(dict.fromkeys([*read, *kept, *touched]))
    place = {index: number for number, index in enumerate(order)} | {-1: -1}
    subgraph = fb.SubGraphT()
    subgraph.tensors, buffers = [], [fb.BufferT()]
    for index in order:
        tensor = copy.copy(whole.tensors[index])
        if model.buffers[tensor.buffer].data is not None:
            buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = len(buffers) - 1
        else:
            tensor.buffer = 0
        subgraph.tensors.append(tensor)
    for operator in used:
        operator.inputs = np.array([place[int(index)] for index in operator.inputs], np.int32)
        operator.outputs = np.array([place[int(index)] for index in operator.outputs], np.int32)
    subgraph.operators = used
    subgraph.inputs = np.array([place[index] for index in read], np.int32)
    subgraph.outputs = np.array([place[index] for index in kept], np.int32)
    piece = fb.ModelT()
    piece.version, piece.operatorCodes, piece.subgraphs, piece.buffers = 3, model.operatorCodes, [subgraph], buffers
    return to_bytes(piece)

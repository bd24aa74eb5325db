"""The canonical hash: the same however a network is laid out, another one as soon as anything it computes changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.modelfile import pack_model, read_model
from cxr_compress.errors import ModelFileError
from cxr_compress.lite import canonical_hash, pack_file
from cxr_compress.lite.graph.flatbuffer import name_signature, to_bytes, to_object
from cxr_compress.lite.pack_file import with_metadata
from tests.device.reference import FLOAT_MODEL, INT8_MODEL, VERSION1_MODEL

CONTENT = read_model(VERSION1_MODEL).content
HASH = canonical_hash(CONTENT)
# Recorded once: a later version of this code or of the schema has to give the same for the same file.
RECORDED = "376b2e9de466861bf0d97cd391cc6afbb77e0f986d810ffed181176b68b2a2a4"


def edited(change: Callable[[Any], Any]) -> str:
    model = to_object(CONTENT)
    change(model)
    return canonical_hash(to_bytes(model))


# --- stays ------------------------------------------------------------------------------------------------------------


def test_canonical_hash_is_the_recorded_one_and_sits_in_the_packed_file() -> None:
    assert HASH == RECORDED
    assert read_model(INT8_MODEL).info.canonical_hash == RECORDED


def test_canonical_hash_survives_packing_and_packing_again() -> None:
    info = read_model(INT8_MODEL).info
    other = pack_file(CONTENT, read_model(VERSION1_MODEL).info)
    assert canonical_hash(other) == HASH
    assert canonical_hash(pack_model(CONTENT, info)) == HASH
    assert canonical_hash(with_metadata(to_object(CONTENT), b"anything")) == HASH


def test_canonical_hash_survives_another_order_and_more_padding_of_buffers() -> None:
    def reorder(model: Any) -> None:
        order = np.random.default_rng(0).permutation(len(model.buffers) - 1) + 1
        places = {0: 0, **{int(old): new for new, old in enumerate(order, 1)}}
        model.buffers = [model.buffers[0], *(model.buffers[old] for old in order)]
        for tensor in model.subgraphs[0].tensors:
            tensor.buffer = places[tensor.buffer]
        for entry in model.metadata or ():
            entry.buffer = places[entry.buffer]
        padding = copy.copy(model.buffers[0])
        padding.data = np.zeros(1000, np.uint8)
        model.buffers.append(padding)

    assert edited(reorder) == HASH


def test_canonical_hash_survives_another_order_of_tensors_and_operator_codes() -> None:
    def reorder(model: Any) -> None:
        graph = model.subgraphs[0]
        count = len(graph.tensors)
        graph.tensors = graph.tensors[::-1]
        turned = lambda places: np.array([place if place < 0 else count - 1 - place for place in places], np.int32)  # noqa: E731
        graph.inputs, graph.outputs = turned(graph.inputs), turned(graph.outputs)
        for operator in graph.operators:
            operator.inputs, operator.outputs = turned(operator.inputs), turned(operator.outputs)
            operator.opcodeIndex = len(model.operatorCodes) - 1 - operator.opcodeIndex
        model.operatorCodes = model.operatorCodes[::-1]
        for end in [*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs]:
            end.tensorIndex = count - 1 - end.tensorIndex

    assert edited(reorder) == HASH


def test_canonical_hash_survives_other_names_and_descriptions() -> None:
    def rename(model: Any) -> None:
        model.description = b"made elsewhere"
        for index, tensor in enumerate(model.subgraphs[0].tensors):
            tensor.name = f"t{index}".encode()
            if tensor.quantization is not None:
                tensor.quantization.min = tensor.quantization.max = None

    assert edited(rename) == HASH


# --- changes ----------------------------------------------------------------------------------------------------------


def constants(model: Any) -> list[Any]:
    """The buffers that operators read, in the order of their tensors."""
    used = {int(place) for operator in model.subgraphs[0].operators for place in operator.inputs if place >= 0}
    buffers = [model.buffers[model.subgraphs[0].tensors[place].buffer] for place in sorted(used)]
    return [buffer for buffer in buffers if buffer.data is not None and len(buffer.data)]


@given(where=st.floats(0, 1, exclude_max=True), which=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_canonical_hash_changes_with_any_byte_of_any_weight(where: float, which: int, flip: int) -> None:
    def change(model: Any) -> None:
        found = constants(model)
        buffer = found[which % len(found)]
        data = np.array(buffer.data, np.uint8)
        data[int(where * len(data))] ^= flip
        buffer.data = data

    assert edited(change) != HASH


CHANGES: dict[str, Callable[[Any, Any], None]] = {
    "version of an operator": lambda model, graph: setattr(model.operatorCodes[0], "version", 9),
    "kind of an operator": lambda model, graph: setattr(model.operatorCodes[0], "builtinCode", 126),
    "stride": lambda model, graph: setattr(graph.operators[first_conv(graph)].builtinOptions, "strideW", 7),
    "fused activation": lambda model, graph: setattr(
        graph.operators[first_conv(graph)].builtinOptions, "fusedActivationFunction", 3
    ),
    "padding to its default": lambda model, graph: setattr(
        graph.operators[first_conv(graph)].builtinOptions, "padding", 1 - conv_padding(graph)
    ),
    "scale": lambda model, graph: setattr(graph.tensors[0].quantization, "scale", np.array([0.5], np.float32)),
    "zero point": lambda model, graph: setattr(graph.tensors[0].quantization, "zeroPoint", np.array([3], np.int64)),
    "channel axis": lambda model, graph: setattr(weights(graph).quantization, "quantizedDimension", 3),
    "shape": lambda model, graph: setattr(graph.tensors[0], "shape", np.array([1, 32, 96, 1], np.int32)),
    "type": lambda model, graph: setattr(graph.tensors[0], "type", 3),
    "one operator less": lambda model, graph: graph.operators.pop(),
    "order of outputs": lambda model, graph: setattr(graph, "outputs", np.array([*graph.outputs, 0], np.int32)),
    "wiring": lambda model, graph: setattr(graph.operators[1], "inputs", graph.operators[1].inputs[::-1]),
    "name in the signature": lambda model, graph: setattr(model.signatureDefs[0].outputs[0], "name", b"cam"),
}


def first_conv(graph: Any) -> int:
    return next(k for k, operator in enumerate(graph.operators) if hasattr(operator.builtinOptions, "strideW"))


def conv_padding(graph: Any) -> int:
    return int(graph.operators[first_conv(graph)].builtinOptions.padding)


def weights(graph: Any) -> Any:
    return graph.tensors[graph.operators[first_conv(graph)].inputs[1]]


@pytest.mark.parametrize("name", CHANGES)
def test_canonical_hash_changes_with(name: str) -> None:
    assert edited(lambda model: CHANGES[name](model, model.subgraphs[0])) != HASH


def test_canonical_hash_control_no_change_gives_the_same() -> None:
    assert edited(lambda model: None) == HASH


def test_canonical_hash_tells_the_reference_networks_apart() -> None:
    assert canonical_hash(read_model(FLOAT_MODEL).content) != HASH
    # Named ends are part of how a file is called; the names of its tensors are not.
    assert canonical_hash(name_signature(CONTENT)) != HASH


def test_canonical_hash_of_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"expected a \.tflite flatbuffer"):
        canonical_hash(b"\0" * 40)
    with pytest.raises(ModelFileError, match="damaged or cut off"):
        canonical_hash(CONTENT[:200])


def test_canonical_hash_index_that_points_nowhere_is_refused() -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].operators[0].opcodeIndex = 99

    with pytest.raises(ModelFileError, match="contradicts itself"):
        edited(change)


def test_canonical_hash_weights_outside_the_flatbuffer_are_refused() -> None:
    def change(model: Any) -> None:
        constants(model)[0].offset = 4096

    with pytest.raises(ModelFileError, match="keeps weights behind its flatbuffer"):
        edited(change)

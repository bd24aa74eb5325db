from __future__ import annotations

import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.lite import LiteModel
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.graph.names import computing, layer_of, operators_named
from cxr_compress.lite.int8.fold import fold_like


def test_layer_of_names_the_keras_layers_in_order(block_files: dict[str, LiteModel]) -> None:
    graph = read_graphs(block_files["none"].content)[0]
    names = [(operator.kind, layer_of(graph, operator)) for operator in computing(graph)]
    assert [kind for kind, _ in names][:5] == ["CONV_2D", "MUL", "ADD", "CONV_2D", "CONCATENATION"]
    layers = [layer for _, layer in names]
    assert (layers[0], layers[3], layers[4]) == ("stem", "growth", "concat")
    assert layers[-1] == "logits"
    assert layers[1] == layers[2]  # a batch norm that could not be folded
    assert layers[1].startswith("batch_normalization")


def test_computing_of_a_float_and_an_int8_file_correspond(block_files: dict[str, LiteModel]) -> None:
    contents = {name: block_files[name].content for name in ("none", "int8", "int8_float_io")}
    contents["none"] = fold_like(contents["none"], contents["int8"])
    kinds = [[operator.kind for operator in computing(read_graphs(one)[0])] for one in contents.values()]
    assert kinds[0] == kinds[1] == kinds[2]


def test_operators_named_finds_layers_fused_layers_and_tensors(
    block_files: dict[str, LiteModel], chain_files: dict[str, LiteModel]
) -> None:
    graph = read_graphs(block_files["none"].content)[0]
    norm = layer_of(graph, computing(graph)[1])
    assert [op.kind for op in operators_named(graph, [norm])] == ["MUL", "ADD"]
    tensor = graph.tensors[computing(graph)[4].outputs[0]].name
    assert [op.kind for op in operators_named(graph, [tensor, "stem", "stem"])] == ["CONV_2D", "CONCATENATION"]
    folded = read_graphs(chain_files["none"].content)[0]
    (by_conv,) = operators_named(folded, ["second"])
    names = folded.tensors[by_conv.outputs[0]].name
    assert "batch_normalization" in names  # the convolution with what was folded into it


def test_operators_named_of_an_unknown_layer_names_the_nearest(block_files: dict[str, LiteModel]) -> None:
    graph = read_graphs(block_files["none"].content)[0]
    with pytest.raises(CompressionError, match=r"expected layers of this network, got 'groth': nearest are growth"):
        operators_named(graph, ["groth"])

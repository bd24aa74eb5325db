"""Probes: every kind of kernel becomes one layer of the widths asked for, in any quant type, always the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cxr_compress.device.cost_table import ONE_CHANNEL_A_GROUP, KernelKind, LayerUse, ProbeSpec
from cxr_compress.device.probe_pack import read_pack
from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.probes import build_probe, build_probe_pack, widths

CONV = KernelKind("Conv2D", (3, 3), (1, 1), (1, 1), 1, 1, "same", (8, 8), (8, 8))
DENSE = KernelKind("Dense", (), (), (), 1, 1, "valid", (), ())


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "operator", "shapes"),
    [
        (CONV, 8, 16, "CONV_2D", ((1, 8, 8, 8), (1, 8, 8, 16))),
        (
            replace(CONV, strides=(2, 2), padding="valid", output_size=(3, 3)), 4, 6, "CONV_2D",
            ((1, 8, 8, 4), (1, 3, 3, 6)),
        ),
        (replace(CONV, groups=2), 4, 6, "CONV_2D", ((1, 8, 8, 8), (1, 8, 8, 6))),
        (replace(CONV, groups=ONE_CHANNEL_A_GROUP, multiplier=2), 12, 1, None, ((1, 8, 8, 6), (1, 8, 8, 12))),
        (
            replace(CONV, class_name="DepthwiseConv2D", multiplier=2), 6, 1, "DEPTHWISE_CONV_2D",
            ((1, 8, 8, 6), (1, 8, 8, 12)),
        ),
        (
            replace(CONV, class_name="Conv2DTranspose", strides=(2, 2), output_size=(16, 16)), 4, 6, "TRANSPOSE_CONV",
            ((1, 8, 8, 4), (1, 16, 16, 6)),
        ),
        (DENSE, 20, 3, "FULLY_CONNECTED", ((1, 20), (1, 3))),
        (KernelKind("Conv1D", (3,), (1,), (2,), 1, 1, "same", (10,), (10,)), 4, 6, "CONV_2D", ((1, 10, 4), (1, 10, 6))),
    ],
)  # fmt: skip
def test_build_probe_is_one_layer_of_that_kind_and_those_widths(kind, inputs, outputs, operator, shapes):
    graph = read_graphs(build_probe(kind, inputs, outputs, "none"))[0]
    assert (graph.tensors[graph.inputs[0]].shape, graph.tensors[graph.outputs[0]].shape) == shapes
    assert operator is None or [op.kind for op in graph.operators].count(operator) == 1


@pytest.mark.parametrize(
    ("quant_type", "dtype"), [("none", "float32"), ("int8", "int8"), ("fp16", "float32"), ("int16x8", "int16")]
)
def test_build_probe_computes_in_the_quant_type_and_runs(quant_type, dtype):
    content = build_probe(CONV, 8, 16, quant_type)
    graph = read_graphs(content)[0]
    assert graph.tensors[graph.inputs[0]].dtype == dtype
    run = Runner(content)
    low, high = (run(np.full((1, 8, 8, 8), value, np.float32)) for value in (-1.0, 1.0))
    assert np.abs(high - low).max() > 0.1


def test_build_probe_same_arguments_give_the_same_bytes():
    assert build_probe(CONV, 8, 16, "int8") == build_probe(CONV, 8, 16, "int8")
    assert build_probe(CONV, 8, 16, "int8") != build_probe(CONV, 8, 24, "int8")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ProbeSpec(CONV, (3, 3), (4, 64)), [(3, 8), (3, 16), (3, 64)]),
        (ProbeSpec(DENSE, (17, 136), (1, 1)), [(24, 1), (48, 1), (136, 1)]),
        (ProbeSpec(CONV, (2, 6), (5, 5)), [(2, 5), (3, 5), (6, 5)]),
        (
            ProbeSpec(CONV, (8, 128), (16, 64)),
            [(8, 16), (8, 32), (8, 64), (32, 16), (32, 32), (32, 64), (128, 16), (128, 32), (128, 64)],
        ),
        (ProbeSpec(replace(CONV, class_name="DepthwiseConv2D"), (8, 72), (1, 1)), [(8, 1), (24, 1), (72, 1)]),
        (ProbeSpec(replace(CONV, groups=12), (2, 2), (12, 48)), [(2, 24), (2, 48)]),
    ],
)
def test_widths_span_the_range_on_whole_blocks(spec, expected):
    assert widths(spec) == expected


def test_widths_of_a_huge_kernel_are_cut_to_a_bounded_size():
    points = widths(ProbeSpec(DENSE, (3136, 25088), (512, 4096)))
    assert max(inputs * outputs for inputs, outputs in points) <= 1 << 21
    assert len(points) > 3


def test_build_probe_pack_is_read_back_and_repeatable(chain_files):
    specs = [ProbeSpec(CONV, (8, 16), (8, 8)), ProbeSpec(DENSE, (8, 16), (4, 4))]
    uses = [LayerUse(CONV.name, 8, 8), LayerUse(DENSE.name, 16, 4)]
    told = []
    content = chain_files["int8"].content
    pack = build_probe_pack(content, specs, uses, moved=123, quant_type="int8", progress=told.append)
    assert read_pack(pack.to_bytes()) == pack
    assert pack.model == content
    assert (pack.uses, pack.moved, pack.quant_type) == (tuple(uses), 123, "int8")
    assert [(probe.kind, probe.inputs) for probe in pack.probes] == [
        (CONV.name, 8), (CONV.name, 16), (DENSE.name, 8), (DENSE.name, 16),
    ]  # fmt: skip
    # A batch norm that cannot fold: what is multiplied is read and written, then what is added.
    graph = read_graphs(pack.moves[0].content)[0]
    assert [op.kind for op in graph.operators] == ["MUL", "ADD"]
    assert pack.moves[0].elements == 4 * np.prod(graph.tensors[graph.inputs[0]].shape)
    assert told[-1] == "built probes of 2 of 2 kinds of kernel"
    again = build_probe_pack(content, specs, uses, moved=123, quant_type="int8")
    assert again.to_bytes() == pack.to_bytes()


def test_build_probe_pack_unknown_quant_type_raises():
    with pytest.raises(CompressionError, match=r"expected quant_type to be one of none, .*; got 'int4'"):
        build_probe_pack(b"", [], [], moved=0, quant_type="int4")

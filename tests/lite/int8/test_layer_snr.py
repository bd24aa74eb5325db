"""Signal-to-noise ratios against what numpy says of all activations."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from cxr_compress.device import runner
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.lite import LayerSnr, LiteModel, convert, layer_snr
from cxr_compress.lite.graph.flatbuffer import Graph, read_graphs
from cxr_compress.lite.graph.names import computing
from cxr_compress.lite.graph.run import Observer
from cxr_compress.lite.inputs_outputs import InputOutput
from cxr_compress.lite.int8.layer_snr import COLUMNS, curable_share, decibels, match_operators
from cxr_compress.lite.int8.ranges import measure_ranges, write_ranges
from cxr_compress.lite.lowering import quantize
from tests.lite import nets
from tests.lite.conftest import run

IMAGES = nets.batch(8, seed=3)


def ratio(exact: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(np.square(exact, dtype=np.float64).sum() / np.square(exact - other, dtype=np.float64).sum())


def observed(content: bytes, index: int, images: np.ndarray) -> np.ndarray:
    """An activation of a file on images, in real values; float files as they are."""
    tensor = read_graphs(content)[0].tensors[index]
    observer = Observer(content, [index])
    values = []
    for image in images:
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        values.append(observer.view(index)[0].copy())
    stacked = np.stack(values)
    return stacked if not tensor.scale else runner.dequantize(stacked, tensor.scale[0], tensor.zero_point[0])


def by_index(found: list[LayerSnr]) -> list[LayerSnr]:
    return sorted(found, key=lambda one: one.index)


def quantized_with(
    content: bytes, ranges: dict[int, tuple[float, float]], *, float_tensors: tuple[str, ...] = ()
) -> bytes:
    return quantize(
        write_ranges(content, ranges), input_output=InputOutput("float32", "float32"), float_tensors=float_tensors
    )


@pytest.fixture(scope="module")
def unfolded(block: Any) -> dict[str, LiteModel]:
    """The float file and the int8 file operator by operator."""
    return convert(block, ["none", "int8"], calibration=[nets.batch(32, seed=1)], fold_scales=False)


def test_layer_snr_cumulative_is_that_of_every_activation_as_it_runs(unfolded: dict[str, LiteModel]) -> None:
    contents = [unfolded[name].content for name in ("none", "int8")]
    graphs = [read_graphs(content)[0] for content in contents]
    found = by_index(layer_snr(*contents, IMAGES))
    for one, ours, theirs in zip(found, computing(graphs[0]), computing(graphs[1]), strict=True):
        exact, rounded = (observed(c, op.outputs[0], IMAGES) for c, op in zip(contents, (ours, theirs), strict=True))
        assert one.cumulative_db == pytest.approx(ratio(exact, rounded), abs=1e-3)
        assert (one.kind, one.index) == (ours.kind, ours.index)
    logits = [run(content, IMAGES) for content in contents]
    assert found[-1].cumulative_db == pytest.approx(ratio(*logits), abs=1e-3)
    assert all(10 < one.cumulative_db < 60 for one in found)


def test_layer_snr_local_is_that_of_the_operator_alone_on_rounded_inputs(unfolded: dict[str, LiteModel]) -> None:
    """MUL and ADD of a batch norm, computed by hand from the codes that the int8 file gives its constants."""
    contents = [unfolded[name].content for name in ("none", "int8")]
    graphs = [read_graphs(content)[0] for content in contents]
    found = by_index(layer_snr(*contents, IMAGES))
    for number, combine in ((1, np.multiply), (2, lambda a, b: np.maximum(a + b, 0))):
        ours, theirs = computing(graphs[0])[number], computing(graphs[1])[number]
        source = observed(contents[0], ours.inputs[0], IMAGES)
        read = rounded(graphs[1], theirs.inputs[0], source)
        constants = [g.tensors[op.inputs[1]] for g, op in zip(graphs, (ours, theirs), strict=True)]
        exact = combine(read, constants[0].values)
        codes = runner.dequantize(constants[1].values, constants[1].scale[0], constants[1].zero_point[0])
        integer = rounded(graphs[1], theirs.outputs[0], combine(read, codes).astype(np.float32))
        signal = np.square(observed(contents[0], ours.outputs[0], IMAGES), dtype=np.float64).sum()
        for got, result in (
            (found[number].local_db, integer),
            (found[number].in_float_db, rounded(graphs[1], theirs.outputs[0], exact.astype(np.float32))),
        ):
            # The int8 kernels round by fixed-point factors: a code more or less for one value in some hundreds.
            assert got == pytest.approx(10 * math.log10(signal / np.square(result - exact).sum()), abs=0.3)
        assert found[number].local_db < found[number].in_float_db  # a constant in 8 bits costs something


def rounded(graph: Graph, index: int, values: np.ndarray) -> np.ndarray:
    scale, zero_point = graph.tensors[index].scale[0], graph.tensors[index].zero_point[0]
    return runner.dequantize(runner.quantize(values, scale, zero_point, np.int8), scale, zero_point)


def test_layer_snr_finds_the_layer_whose_range_was_spoilt_and_not_those_behind_it(
    chain_files: dict[str, LiteModel],
) -> None:
    content = chain_files["none"].content
    ranges = measure_ranges(content, nets.batch(32, seed=1))
    first, second = (op.outputs[0] for op in read_graphs(content)[0].operators if op.kind == "CONV_2D")
    wide = ranges | {first: (ranges[first][0] * 64, ranges[first][1] * 64)}
    good, bad = (by_index(layer_snr(content, quantized_with(content, r), IMAGES)) for r in (ranges, wide))
    # 64 times the step: 36 dB for the layer itself, and nothing for the one behind it on its own.
    assert good[0].local_db - bad[0].local_db == pytest.approx(20 * math.log10(64), abs=3)
    assert good[1].local_db == pytest.approx(bad[1].local_db, abs=3)
    assert good[1].cumulative_db - bad[1].cumulative_db > 15
    assert layer_snr(content, quantized_with(content, wide), IMAGES)[0].index == bad[0].index  # worst first
    # Its range is at fault: float arithmetic would not help.
    assert bad[0].in_float_db == pytest.approx(bad[0].local_db, abs=0.5)
    assert second != first


def test_layer_snr_of_moved_values_and_of_float_layers_adds_nothing(block_files: dict[str, LiteModel]) -> None:
    content = block_files["none"].content
    graph = read_graphs(content)[0]
    names = [graph.tensors[op.outputs[0]].name for op in graph.operators if op.kind in ("MUL", "ADD")]
    ranges = measure_ranges(content, nets.batch(32, seed=1))
    made = quantized_with(content, ranges, float_tensors=tuple(names))
    found = by_index(layer_snr(content, made, IMAGES))
    assert [one.kind for one in found if one.local_db == math.inf] == ["MUL", "ADD", "CONCATENATION", "MUL", "ADD"]
    assert [one.kind for one in found if not one.is_integer] == ["MUL", "ADD", "MUL", "ADD"]
    assert all(math.isfinite(one.cumulative_db) for one in found)  # what came in was rounded
    whole = by_index(layer_snr(content, block_files["int8_float_io"].content, IMAGES))
    assert found[-1].cumulative_db > whole[-1].cumulative_db


def test_layer_snr_of_files_that_take_pixels_reads_pixels() -> None:
    spec = PreprocessSpec(16, 16, input="uint8")
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
    made = convert(nets.chain(), ["none", "int8"], calibration=[images], pixels=spec, layer_report=True)
    found = layer_snr(made["none"].content, made["int8"].content, images)
    assert all(one.cumulative_db > 15 for one in found)
    reported = made["int8"].layers
    assert [(one.layer, one.kind) for one in reported] == [(one.layer, one.kind) for one in found]
    for mine, theirs in zip(reported, found, strict=True):
        assert mine.cumulative_db == pytest.approx(theirs.cumulative_db, abs=1e-3)
    assert made["none"].layers == ()


def test_layer_snr_is_ready_for_json_and_tables(chain_files: dict[str, LiteModel]) -> None:
    lines: list[str] = []
    contents = [chain_files[name].content for name in ("none", "int8")]
    found = layer_snr(*contents, nets.batch(20, seed=3), progress=lines.append)
    assert lines == ["compared the layers on 8 of 20 images", "compared the layers on 16 of 20 images"]
    assert all(len(one.row()) == len(COLUMNS) for one in found)
    document = json.loads(json.dumps([one.to_dict() for one in found], allow_nan=False))
    assert document[0]["local_db"] == pytest.approx(found[0].local_db)
    head = next(one for one in found if one.kind == "FULLY_CONNECTED")
    assert (head.in_float_db, head.to_dict()["in_float_db"]) == (math.inf, None)  # float logits are not rounded
    assert [one.local_db for one in found] == sorted(one.local_db for one in found)


def test_layer_snr_of_two_networks_or_no_images_fails(
    chain_files: dict[str, LiteModel], block_files: dict[str, LiteModel], chain: Any
) -> None:
    with pytest.raises(CompressionError, match="expected a float and an int8 file of one network, got 4 and 7 operat"):
        layer_snr(chain_files["none"].content, block_files["int8"].content, IMAGES)
    with pytest.raises(CompressionError, match="expected at least one image to compare the layers on"):
        layer_snr(chain_files["none"].content, chain_files["int8"].content, IMAGES[:0])


@pytest.mark.parametrize(
    ("signal", "noise", "expected"), [(100, 1, 20), (1, 1, 0), (4, 0, math.inf), (0, 0, math.inf), (0, 2, -math.inf)]
)
def test_decibels_of_nothing_are_infinite(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == expected


def test_curable_share_is_the_mean_over_channels_of_what_float_takes_away() -> None:
    signal, in_float = np.array([100.0, 1.0, 0.0]), np.array([1.0, 0.01, 5.0])
    local = np.array([2.0, 0.5, 5.0])
    assert curable_share(signal, local, in_float) == pytest.approx(((0.02 + 0.5) - (0.01 + 0.01)) / 2)
    assert curable_share(signal, local * 1000, in_float) == pytest.approx((2 - 0.02) / 2)  # no more than all is lost
    assert curable_share(signal, in_float, local) == 0
    assert curable_share(signal * 0, local, in_float) == 0


def test_convert_to_int8_has_a_weight_scale_for_each_filter(chain_files: dict[str, LiteModel]) -> None:
    graph = read_graphs(chain_files["int8"].content)[0]
    exact = read_graphs(chain_files["none"].content)[0]
    for ours, theirs in match_operators(exact, graph):
        if theirs.kind != "CONV_2D":
            continue
        kernel, floats = graph.tensors[theirs.inputs[1]], exact.tensors[ours.inputs[1]].values
        assert floats is not None
        filters = kernel.shape[0]
        largest = np.abs(floats).reshape(filters, -1).max(axis=1)
        assert len(kernel.scale) == filters > 1
        assert len(set(kernel.scale)) > 1  # control: one scale for all would be equal numbers
        np.testing.assert_allclose(kernel.scale, largest / 127, rtol=1e-5)

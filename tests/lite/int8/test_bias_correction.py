"""Corrected biases: no channel is shifted any more, whatever comes before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.runner import dequantize
from cxr_compress.errors import CompressionError
from cxr_compress.lite import LiteModel, convert, freeze
from cxr_compress.lite.graph.flatbuffer import graphs_of, read_graphs, to_object
from cxr_compress.lite.graph.run import Observer, SegmentRunner, segments_of
from cxr_compress.lite.inputs_outputs import feed_uint8
from cxr_compress.lite.int8.bias_correction import correct_bias
from cxr_compress.lite.int8.kernels import BIAS, INPUT, KERNEL, read_kernel
from cxr_compress.lite.int8.layer_snr import match_operators
from cxr_compress.lite.int8.ranges import measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize
from tests.lite import nets

IMAGES = nets.batch(16, seed=1) + 1


def observed(content: bytes, index: int, images: np.ndarray) -> np.ndarray:
    """An activation of a file on images, in real values; float files as they are."""
    tensor = read_graphs(content)[0].tensors[index]
    observer = Observer(content, [index])
    found = []
    for image in images:
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        found.append(observer.view(index)[0].copy())
    stacked = np.stack(found)
    return stacked if not tensor.scale else dequantize(stacked, tensor.scale[0], tensor.zero_point[0])


def shifts(float_content: bytes, int8_content: bytes, images: np.ndarray) -> list[np.ndarray]:
    """For each layer: mean of the int8 file's results, before any activation, less the float file's, in bias steps."""
    models = [to_object(content) for content in (float_content, int8_content)]
    graphs = [graphs_of(model)[0] for model in models]
    found = []
    for pair in match_operators(*graphs):
        means = []
        for content, model, graph, operator in zip((float_content, int8_content), models, graphs, pair, strict=True):
            kernel = read_kernel(model, graph, operator)
            if kernel is not None:
                maps = observed(content, operator.inputs[INPUT], images).astype(np.float64)
                means.append(kernel.mean(maps.mean(axis=0)))
        if means:
            found.append((means[1] - means[0]) / graphs[1].tensors[pair[1].inputs[BIAS]].scale)
    return found


@pytest.fixture(scope="module", params=[nets.chain, nets.dense_block, nets.depthwise, nets.linear])
def files(request: pytest.FixtureRequest) -> tuple[bytes, bytes, np.ndarray]:
    """Float graph, int8 graph and images of one network."""
    build: Callable[[], Any] = request.param
    model = build()
    images = nets.batch(16, model.input_shape[1], seed=1) + 1
    float_content = lower(freeze(model), "none")
    return float_content, quantize(write_ranges(float_content, measure_ranges(float_content, images))), images


def test_correct_bias_leaves_no_channel_shifted_by_more_than_half_a_step_of_its_bias(files) -> None:
    float_content, int8_content, images = files
    corrected = correct_bias(float_content, int8_content, images)
    # The inputs of each layer are looked at in the finished file: whatever was corrected before is in them.
    after = shifts(float_content, corrected, images)
    # Half a step of rounding; the float means come from float32 sums (24 bits) against steps of about 2^-14 of a range.
    assert all(np.abs(shift).max() <= 0.5 + 1e-2 for shift in after)
    before = shifts(float_content, int8_content, images)
    assert len(before) == len(after) >= 1
    assert max(np.abs(shift).max() for shift in before) > 20  # control: there was something to correct


def test_correct_bias_changes_biases_only(files) -> None:
    float_content, int8_content, images = files
    corrected = correct_bias(float_content, int8_content, images)
    before, after = read_graphs(int8_content)[0], read_graphs(corrected)[0]
    assert [op.kind for op in before.operators] == [op.kind for op in after.operators]
    changed = 0
    for old, new in zip(before.operators, after.operators, strict=True):
        for place, (a, b) in enumerate(zip(old.inputs, new.inputs, strict=True)):
            tensors = before.tensors[a], after.tensors[b]
            assert [t.scale for t in tensors] == [tensors[0].scale] * 2
            if tensors[0].values is not None and not np.array_equal(tensors[0].values, tensors[1].values):
                assert place == BIAS
                assert tensors[0].dtype == "int32"
                changed += 1
    kernels = sum(op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for op in before.operators)
    assert changed == kernels
    assert all(a.zero_point == b.zero_point for a, b in zip(before.tensors, after.tensors, strict=False))


def test_correct_bias_is_deterministic_whatever_the_threads(files) -> None:
    float_content, int8_content, images = files
    corrected = correct_bias(float_content, int8_content, images)
    assert correct_bias(float_content, int8_content, images, num_threads=2) == corrected
    assert correct_bias(float_content, int8_content, images[:8]) != corrected  # control: the images matter


def test_correct_bias_of_another_network_fails(
    chain_files: dict[str, LiteModel], block_files: dict[str, LiteModel]
) -> None:
    with pytest.raises(CompressionError, match="expected a float and an int8 file of one network, got"):
        correct_bias(chain_files["none"].content, block_files["int8"].content, IMAGES)


def test_convert_with_bias_correction_brings_the_mean_logits_to_the_float_ones(chain: Any) -> None:
    images = nets.batch(32, seed=1)
    exact = chain(images, training=False).numpy().mean(axis=0)
    shift = {}
    for corrected in (False, True):
        made = convert(chain, "int8", calibration=[images], bias_correction=corrected)
        index = read_graphs(made.content)[0].outputs[0]
        logits = observed(made.content, index, images)
        shift[corrected] = np.abs(logits.mean(axis=0) - exact).max()
    step = next(t.scale for t in made.audit.tensors if t.name == "logits")
    # What is left is the rounding of 32 logits to their own step: six standard deviations of its mean.
    assert shift[True] < 6 * step / np.sqrt(12 * 32)
    assert shift[False] > 2 * shift[True]


def test_convert_with_bias_correction_of_a_file_that_takes_pixels_corrects_it() -> None:
    from cxr_compress.device.spec import PreprocessSpec
    from cxr_compress.lite.inputs_outputs import take_pixels

    spec = PreprocessSpec(16, 16, input="uint8")
    model = nets.chain()
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
    made = convert(model, "int8", calibration=[images], bias_correction=True, pixels=spec)
    float_content = feed_uint8(lower(take_pixels(freeze(model), spec), "none"))
    assert all(np.abs(shift).max() <= 0.5 + 1e-2 for shift in shifts(float_content, made.content, images))
    plain = convert(model, "int8", calibration=[images], pixels=spec)
    assert max(np.abs(shift).max() for shift in shifts(float_content, plain.content, images)) > 5


def test_segment_runner_gives_what_the_whole_graph_gives_and_lets_go_of_what_is_done(
    block_files: dict[str, LiteModel],
) -> None:
    content = block_files["int8"].content
    model, images = to_object(content), nets.batch(4, seed=2)
    graph = graphs_of(model)[0]
    observer = Observer(content, [op.outputs[0] for op in graph.operators])
    expected: dict[int, list[np.ndarray]] = {op.outputs[0]: [] for op in graph.operators}
    codes = []
    for image in images:
        observer.feed(observer.inputs[0], image[np.newaxis])
        codes.append(observer._formats[graph.inputs[0]].encode(image))
        observer.invoke()
        for index, found in expected.items():
            found.append(observer.view(index)[0].copy())
    starts = [op.index for op in graph.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    runner = SegmentRunner(graph, {graph.inputs[0]: np.stack(codes)}, num_threads=1)
    compared = 0
    for operators in segments_of(graph, starts):
        runner.run(model, operators)
        for index in list(runner._held):
            assert np.array_equal(runner[index], np.stack(expected[index]))
            compared += 1
        assert graph.inputs[0] not in runner._held or operators.stop == 0
    assert compared >= 3
    assert runner._held == {}


def test_convert_to_int8_has_a_weight_scale_for_each_filter(chain: Any, chain_files: dict[str, LiteModel]) -> None:
    graph = read_graphs(chain_files["int8"].content)[0]
    exact = read_graphs(chain_files["none"].content)[0]
    for ours, theirs in match_operators(exact, graph):
        if theirs.kind != "CONV_2D":
            continue
        kernel, floats = graph.tensors[theirs.inputs[KERNEL]], exact.tensors[ours.inputs[KERNEL]].values
        assert floats is not None
        filters = kernel.shape[0]
        largest = np.abs(floats).reshape(filters, -1).max(axis=1)
        assert len(kernel.scale) == filters > 1
        assert len(set(kernel.scale)) > 1  # control: one scale for all would be equal numbers
        np.testing.assert_allclose(kernel.scale, largest / 127, rtol=1e-5)

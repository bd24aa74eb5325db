from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite import LiteModel
from cxr_compress.lite.graph.flatbuffer import Tensor, read_graphs, to_object
from cxr_compress.lite.int8.ranges import measure_ranges, write_ranges
from tests.lite import nets
from tests.lite.conftest import run


def _tensor(content: bytes, kind: str) -> Tensor:
    """The first result of an operator kind."""
    graph = read_graphs(content)[0]
    return graph.tensors[next(op for op in graph.operators if op.kind == kind).outputs[0]]


def test_measure_ranges_of_a_tensor_that_is_overwritten_in_place_are_its_own(
    block: Any, block_files: dict[str, LiteModel]
) -> None:
    """The MUL behind the concatenation may write over it, where TensorFlow's calibrator then reads it."""
    content, images = block_files["none"].content, nets.batch(32, seed=4)
    low, high = measure_ranges(content, images)[_tensor(content, "CONCATENATION").index]
    concat = keras.Model(block.input, block.get_layer("concat").output)(images, training=False).numpy()
    # Sums of at most 3*3*8 products of values up to 10: 72 * 2^-24 * 10 * 2 layers < 1e-4.
    assert low == pytest.approx(concat.min(), abs=1e-4)
    assert high == pytest.approx(concat.max(), abs=1e-4)
    some = measure_ranges(content, images[:4])[_tensor(content, "CONCATENATION").index]
    assert abs(some[0] - concat.min()) > 1e-2  # control: fewer images, another range


def test_measure_ranges_covers_input_and_output(chain: Any, chain_files: dict[str, LiteModel]) -> None:
    content, images = chain_files["none"].content, nets.batch(16, seed=5)
    graph = read_graphs(content)[0]
    ranges = measure_ranges(content, images)
    assert ranges[graph.inputs[0]] == (float(images.min()), float(images.max()))
    logits = run(content, images)
    assert ranges[graph.outputs[0]] == pytest.approx((logits.min(), logits.max()), rel=1e-5)
    assert set(ranges) == {tensor.index for tensor in graph.activations()}


def test_measure_ranges_does_not_depend_on_threads_or_order(block_files: dict[str, LiteModel]) -> None:
    content, images = block_files["none"].content, nets.batch(16)
    ranges = measure_ranges(content, images)
    assert measure_ranges(content, images[::-1], num_threads=2) == ranges
    assert measure_ranges(content, images / 2) != ranges


def test_measure_ranges_reports_long_runs(chain_files: dict[str, LiteModel]) -> None:
    lines: list[str] = []
    measure_ranges(chain_files["none"].content, nets.batch(70), progress=lines.append)
    assert lines == ["calibrated on 32 of 70 images", "calibrated on 64 of 70 images"]


def test_measure_ranges_of_an_overflow_names_the_activation(chain_files: dict[str, LiteModel]) -> None:
    images = nets.batch(2)
    images[1] = 3e38
    with pytest.raises(CompressionError, match=r"activation '.+' is NaN or infinite on the calibration images"):
        measure_ranges(chain_files["none"].content, images)


def test_write_ranges_changes_nothing_but_the_ranges(chain_files: dict[str, LiteModel]) -> None:
    content, images = chain_files["none"].content, nets.batch(4)
    written = write_ranges(content, {0: (-1.5, 2.5)})
    quantization = to_object(written).subgraphs[0].tensors[0].quantization
    assert (quantization.min.tolist(), quantization.max.tolist()) == ([-1.5], [2.5])
    assert np.array_equal(run(written, images), run(content, images))

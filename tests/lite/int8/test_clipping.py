"""Clipped ranges against the plainest computation on all values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cxr_compress.device.runner import dequantize, quantize
from cxr_compress.errors import CompressionError
from cxr_compress.lite import LiteModel, convert
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.int8.ranges import (
    BINS,
    Histogram,
    clipped_ranges,
    count_values,
    measure_ranges,
    mse_range,
    percentile_range,
    quantization_error,
    shared_scales,
)
from tests.lite import nets
from tests.lite.conftest import run

values_of_a_tensor = arrays(np.float32, st.integers(2, 300), elements=st.floats(-100, 100, width=32)).filter(
    lambda values: values.max() - values.min() > 1e-3
)


def histogram_of(values: np.ndarray, bins: int = BINS) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(low, high, count_values(values, low, high, bins))


def rms_error(values: np.ndarray, low: float, high: float) -> float:
    """Root mean square of what int8 codes for a range do to all values, by the quantizer that devices use."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero_point = int(np.clip(np.rint(-128 - low / scale), -128, 127))
    back = dequantize(quantize(values, scale, zero_point, np.int8), scale, zero_point)
    return math.sqrt(np.mean(np.square(back.astype(np.float64) - values)))


@given(values_of_a_tensor, st.sampled_from([60.0, 90.0, 99.0, 99.9, 100.0]))
def test_percentile_range_is_the_narrowest_that_leaves_no_more_outside(values: np.ndarray, percentile: float) -> None:
    histogram = histogram_of(values, 256)
    low, high = percentile_range(histogram, percentile)
    # The same search, one border at a time, on the bins of all values.
    edges, counts = histogram.edges, histogram.counts.tolist()
    allowed = len(values) * (100 - percentile) / 100 + 1e-9
    first = max(n for n in range(257) if sum(counts[:n]) <= allowed)
    last = min(n for n in range(257) if sum(counts[n:]) <= allowed)
    if first < last:
        assert (low, high) == (edges[first], edges[last])
    else:
        assert (low, high) == (histogram.low, histogram.high)
    assert histogram.low <= low < high <= histogram.high


@given(st.integers(0, 1000), st.sampled_from([99.0, 99.9, 99.99]))
def test_percentile_range_ends_within_a_bin_of_the_last_value_that_stays(seed: int, percentile: float) -> None:
    values = np.sort(np.random.default_rng(seed).standard_t(3, 20_000).astype(np.float32))
    histogram = histogram_of(values)
    low, high = percentile_range(histogram, percentile)
    gone = round(20_000 * (100 - percentile) / 100)  # at either end
    width = 1.001 * (histogram.high - histogram.low) / BINS
    assert values[gone] - width <= low <= values[gone] + 0.001 * width
    assert values[-1 - gone] - 0.001 * width <= high <= values[-1 - gone] + width


def test_percentile_range_of_100_is_what_occurred_and_less_is_narrower() -> None:
    values = np.concatenate([np.linspace(-1, 1, 9_998), [-50, 80]]).astype(np.float32)
    histogram = histogram_of(values)
    assert percentile_range(histogram, 100) == (-50, 80)
    low, high = percentile_range(histogram, 99.99)  # exactly one value may go at either end
    width = 130 / BINS
    assert -1 - width <= low <= -1
    assert 1 <= high <= 1 + width
    assert percentile_range(histogram, 99.999) == (-50, 80)  # a tenth of a value: none may go


@given(values_of_a_tensor)
def test_mse_range_errs_no_more_than_any_other_of_its_candidates(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    low, high = mse_range(histogram)
    assert min(histogram.low, 0.0) <= low <= high <= max(histogram.high, 0.0)
    # The distance to the nearest code changes no faster than the value. A value is at most half a bin from the center
    # that stands for it, so that neither of the two errors compared is off by more than half a bin; float32 codes add
    # a rounding of the largest value.
    slack = (histogram.high - histogram.low) / BINS + 4 * 2.0**-23 * float(np.abs(values).max())
    chosen = rms_error(values, low, high)
    for factor in np.linspace(1.0, 0.05, 96):
        assert chosen <= rms_error(values, min(histogram.low, 0.0) * factor, max(histogram.high, 0.0) * factor) + slack


@given(values_of_a_tensor, st.sampled_from([0.25, 2.0, 8.0]))
def test_mse_range_scales_with_the_values(values: np.ndarray, factor: float) -> None:
    plain, scaled = histogram_of(values), histogram_of(values)
    scaled = Histogram(plain.low * factor, plain.high * factor, plain.counts)
    # Powers of two: every product and quotient is the same number but for its exponent.
    assert mse_range(scaled) == tuple(end * factor for end in mse_range(plain))


def test_mse_range_clips_a_long_tail_and_keeps_an_even_spread() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(-3, 3, 20_000).astype(np.float32)
    low, high = mse_range(histogram_of(even))
    assert high - low > 0.99 * (even.max() - even.min())
    # N values from -3 to 3 and one at 8: the error for an upper end h is N (h + 3)^2 / (12 * 255^2) + (8 - h)^2, least
    # where its derivative is 0. Candidates are a hundredth apart.
    many = rng.uniform(-3, 3, 200_000).astype(np.float32)
    share = 200_000 / (12 * 255**2)
    low, high = mse_range(histogram_of(np.append(many, np.float32(8))))
    assert high == pytest.approx((8 - 3 * share) / (1 + share), abs=0.2)
    assert low == pytest.approx(-3, abs=0.05)
    # One value far out costs more when clipped than all others gain: this is what percentile is for.
    assert mse_range(histogram_of(np.append(even, np.float32(60))))[1] > 50


def test_mse_range_of_values_that_are_all_0_is_what_occurred() -> None:
    assert mse_range(Histogram(0.0, 0.0, np.array([7, 0, 0, 0]))) == (0.0, 0.0)
    assert quantization_error(np.array([0.5]), np.array([2.0]), 0.0, 0.0) == 0.5


@given(values_of_a_tensor, st.floats(-5, 0), st.floats(0.5, 5))
def test_quantization_error_is_that_of_the_quantizer_that_devices_use(
    values: np.ndarray, low: float, high: float
) -> None:
    found = quantization_error(values.astype(np.float64), np.ones(len(values)), low, high)
    # float32 there, float64 here: a value on the border of two codes may go either way, which errs alike.
    assert math.sqrt(found / len(values)) == pytest.approx(rms_error(values, low, high), abs=1e-4)


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_clipped_ranges_are_common_where_a_scale_is_shared_and_whole_at_the_ends(
    block_files: dict[str, LiteModel], method: str
) -> None:
    content, images = block_files["none"].content, nets.batch(16, seed=7)
    images[3, 5, 5] = 40  # one bright spot
    graph, ranges = read_graphs(content)[0], measure_ranges(content, images)
    clipped = clipped_ranges(content, images, ranges, method, 99.0)
    groups = shared_scales(graph, ranges)
    assert any(len(group) > 1 for group in groups)
    for group in groups:
        assert len({clipped[index] for index in group}) == 1 or {*graph.inputs, *graph.outputs} & set(group)
    for end in (*graph.inputs, *graph.outputs):
        assert clipped[end] == ranges[end]
    widths = np.array([[high - low for low, high in (clipped[i], ranges[i])] for i in ranges])
    assert (widths[:, 0] < 0.9 * widths[:, 1]).sum() >= 3
    assert clipped_ranges(content, images[::-1], ranges, method, 99.0, num_threads=2) == clipped
    assert clipped_ranges(content, images, ranges, "minmax") == ranges


def test_shared_scales_join_through_pools_pads_and_concatenations_only(block_files: dict[str, LiteModel]) -> None:
    graph = read_graphs(block_files["none"].content)[0]
    activations = [tensor.index for tensor in graph.activations()]
    (joined,) = [group for group in shared_scales(graph, activations) if len(group) > 1]
    concat = next(op for op in graph.operators if op.kind == "CONCATENATION")
    assert sorted(joined) == sorted([*concat.inputs, *concat.outputs])


@pytest.mark.parametrize(("method", "spot", "part"), [("percentile", 60, 0.5), ("mse", 30, 0.85)])
def test_convert_with_a_clipping_method_beats_minmax_on_images_with_a_bright_spot(
    block: Any, method: str, spot: int, part: float
) -> None:
    calibration = nets.batch(32, seed=8)
    calibration[0, 4, 4] = spot
    files = {
        name: convert(block, "int8", calibration=[calibration], calibration_method=name, percentile=99.9)
        for name in ("minmax", method)
    }
    images = nets.batch(64, seed=9)
    exact = block(images, training=False).numpy()
    errors = {name: np.square(run(made.content, images) - exact).mean() for name, made in files.items()}
    # Other values stay below 8: min-max codes are coarse by that much. The mse clips less of one far value.
    assert errors[method] < part * errors["minmax"]
    # Scales stay shared: no QUANTIZE between the concatenation and what it joins.
    assert [op.kind for op in files[method].audit.ops] == [op.kind for op in files["minmax"].audit.ops]
    # The logits keep their range: the scale of the output is min-max's.
    assert files[method].audit.outputs[0].scale == pytest.approx(files["minmax"].audit.outputs[0].scale)
    inner = [
        {tensor.name: tensor.scale for tensor in made.audit.tensors if tensor.scale and "concat" in tensor.name}
        for made in files.values()
    ]
    assert inner[0] != inner[1]  # control: others do change


def test_convert_with_mse_named_gives_the_bytes_of_the_default(block: Any, block_files: dict[str, LiteModel]) -> None:
    images = nets.batch(32, seed=1)
    named = convert(block, "int8", calibration=[images], calibration_method="mse", percentile=90.0)
    assert named.content == block_files["int8"].content


def test_convert_with_a_clipping_method_gives_the_same_bytes_on_any_threads(chain: Any) -> None:
    images = nets.batch(16)
    made = [convert(chain, "int8", calibration=[images], calibration_method="mse", num_threads=n) for n in (1, 2)]
    assert made[0].content == made[1].content


@pytest.mark.parametrize(
    ("method", "percentile", "message"),
    [
        ("entropy", 99.0, r"expected calibration_method .* to be one of minmax, percentile, mse; got 'entropy'"),
        ("percentile", 0.9999, r"expected percentile .* to be above 50 and up to 100; got 0\.9999"),
        ("percentile", 100.5, r"up to 100; got 100\.5"),
    ],
)
def test_convert_with_a_wrong_calibration_method_says_what_there_is(
    method: str, percentile: float, message: str
) -> None:
    with pytest.raises(CompressionError, match=message):
        convert(None, "int8", calibration=[], calibration_method=method, percentile=percentile)

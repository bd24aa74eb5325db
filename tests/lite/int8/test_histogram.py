"""Histograms against all values held at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cxr_compress.lite import LiteModel
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.graph.run import Observer
from cxr_compress.lite.int8.ranges import (
    BINS,
    Histogram,
    count_values,
    measure_histograms,
    measure_ranges,
    shared_scales,
)
from tests.lite import nets

finite = st.floats(-1e6, 1e6, width=32)


@pytest.fixture(scope="module")
def block_values(block_files: dict[str, LiteModel]) -> tuple[bytes, np.ndarray, dict[int, np.ndarray]]:
    """The float graph, the images, and every value of every activation on them."""
    content, images = block_files["none"].content, nets.batch(16, seed=6)
    indices = [tensor.index for tensor in read_graphs(content)[0].activations()]
    observer = Observer(content, indices)
    values: dict[int, list[np.ndarray]] = {index: [] for index in indices}
    for image in images:
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        for index in indices:
            values[index].append(observer.view(index).copy())
    return content, images, {index: np.concatenate([part.ravel() for part in parts]) for index, parts in values.items()}


@given(arrays(np.float32, st.integers(1, 200), elements=finite), st.integers(2, 64))
def test_count_values_puts_every_value_into_one_bin_of_its_width(values: np.ndarray, bins: int) -> None:
    low, high = float(values.min()), float(values.max())
    counts = count_values(values, low, high, bins)
    assert counts.sum() == values.size
    width = (high - low) / bins
    # A value may land beside a border by the rounding of three float32 operations, each relative to the range's ends.
    slack = 4 * 2.0**-23 * max(abs(low), abs(high))
    below = np.cumsum(counts)
    for number in range(bins):
        edge = low + width * (number + 1)
        assert (values < edge - slack).sum() <= below[number] <= (values <= edge + slack).sum() or number == bins - 1


def test_count_values_of_whole_numbers_on_whole_bins_is_exact() -> None:
    values = np.array([0, 0, 1, 2, 2, 2, 3, 8], np.float32)
    assert count_values(values, 0, 8, 8).tolist() == [2, 1, 3, 1, 0, 0, 0, 1]  # the largest value ends the last bin
    assert count_values(values, 0, 4, 4).tolist() == [2, 1, 3, 2]  # what lies outside is in the end bins
    assert count_values(np.full(5, 7, np.float32), 7, 7, 4).tolist() == [5, 0, 0, 0]


def test_measure_histograms_equal_those_of_all_values_held_at_once(block_values) -> None:
    content, images, values = block_values
    ranges = measure_ranges(content, images)
    groups = shared_scales(read_graphs(content)[0], ranges)
    assert any(len(group) == 3 for group in groups)  # stem, growth and the concatenation of both
    for group, found in zip(groups, measure_histograms(content, images, ranges, groups), strict=True):
        together = np.concatenate([values[index] for index in group])
        assert (found.low, found.high) == (together.min(), together.max())
        assert np.array_equal(found.counts, count_values(together, found.low, found.high))
        # numpy's own, which computes the bins in float64: only values within a rounding of a border may move.
        exact = np.histogram(together, bins=BINS, range=(found.low, found.high))[0]
        moved = np.abs(np.cumsum(exact) - np.cumsum(found.counts))
        assert moved.max() <= 0.001 * together.size
        assert exact.sum() == found.counts.sum()


def test_measure_histograms_do_not_depend_on_threads_or_order(block_values) -> None:
    content, images, _ = block_values
    ranges = measure_ranges(content, images)
    groups = [[index] for index in ranges]
    lines: list[str] = []
    one = measure_histograms(content, images, ranges, groups, progress=lines.append)
    other = measure_histograms(content, images[::-1], ranges, groups, num_threads=2)
    assert all(np.array_equal(a.counts, b.counts) for a, b in zip(one, other, strict=True))
    fewer = measure_histograms(content, images[:8], ranges, groups)
    assert not any(np.array_equal(a.counts, b.counts) for a, b in zip(one, fewer, strict=True))  # control
    assert lines == []  # 16 images are no long run


def test_histogram_edges_and_centers_span_its_range() -> None:
    histogram = Histogram(-1.0, 3.0, np.zeros(8, np.int64))
    assert histogram.edges.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert histogram.centers[0] == -0.75

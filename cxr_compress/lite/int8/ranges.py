"""Activation ranges for post-training int8: run the float graph on calibration images, note minimum and maximum.

Why not the converter's own calibrator: it runs one thread of the unoptimized kernels (about 0.26 s an image for
DenseNet121 at 224 px, against 0.05 s here on two threads), and it reads an operator's inputs after the operator ran.
Where MUL or ADD wrote its result over its input, the input may be given the result's range: in a DenseNet121 of random
weights six tensors are, and scales come out up to 22 % too wide; in one trained on X-rays it made no difference.
Source: tensorflow issue 127842 (open in September 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import Graph, read_graphs, schema, to_bytes, to_object
from cxr_compress.lite.graph.run import Observer, float_activations

Ranges = dict[int, tuple[float, float]]
_REPORT_EVERY = 32


def measure_ranges(
    content: bytes, images: np.ndarray, *, num_threads: int = 1, progress: Callable[[str], None] | None = None
) -> Ranges:
    """Smallest and largest value of every float activation over the images.

    The number of threads does not change the result. All activations are held at once: 160 MB for DenseNet121 at
    224 px.

    Args:
        content: float flatbuffer of batch 1.
        images: float32 (images, height, width, channels).
        num_threads: for the interpreter.
        progress: is told how far it is.

    Returns:
        Tensor index -> (minimum, maximum).

    Raises:
        CompressionError: an activation is NaN or infinite.
    """
    tensors = float_activations(content)
    observer = Observer(content, tensors, num_threads=num_threads)
    low, high = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    for number, image in enumerate(images, 1):
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        # One view at a time, gone before the next run.
        low = np.minimum(low, [observer.view(index).min() for index in tensors])
        high = np.maximum(high, [observer.view(index).max() for index in tensors])
        if progress is not None and number % _REPORT_EVERY == 0 and number < len(images):
            progress(f"calibrated on {number} of {len(images)} images")
    bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
    if bad.size:
        name = read_graphs(content)[0].tensors[tensors[int(bad[0])]].name
        raise CompressionError(
            f"activation {name!r} is NaN or infinite on the calibration images: check the weights and the preprocessing"
        )
    return {index: (float(lo), float(hi)) for index, lo, hi in zip(tensors, low, high, strict=True)}


def write_ranges(content: bytes, ranges: Ranges) -> bytes:
    """The same flatbuffer with `ranges` in its tensors, as the quantizer reads them."""
    model, fb = to_object(content), schema()
    for index, (low, high) in ranges.items():
        quantization = fb.QuantizationParametersT()
        quantization.min = np.array([low], dtype=np.float32)
        quantization.max = np.array([high], dtype=np.float32)
        model.subgraphs[0].tensors[index].quantization = quantization
    return to_bytes(model)


# 16 bins for one int8 step over the full range: within a bin values differ by 1/256 of the rounding error's power.
BINS = 4096


@dataclass(frozen=True)
class Histogram:
    """How often the values of an activation fall into equal bins.

    Attributes:
        low: smallest value, where the first bin begins.
        high: largest value, where the last bin ends.
        counts: int64 (bins,).
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64] = field(repr=False)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Borders of the bins: (bins + 1,)."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middles of the bins: (bins,)."""
        return (self.edges[:-1] + self.edges[1:]) / 2


def count_values(values: np.ndarray, low: float, high: float, bins: int = BINS) -> npt.NDArray[np.int64]:
    """How many values fall into each of `bins` equal bins from `low` to `high`; what lies outside is in the end bins.

    A value within a float32 rounding of a border may be counted on either side of it, always on the same one.
    """
    if high <= low:
        return np.bincount(np.zeros(values.size, np.intp), minlength=bins)
    places = (values.ravel() - np.float32(low)) * np.float32(bins / (high - low))
    return np.bincount(np.clip(places, 0, bins - 1).astype(np.intp), minlength=bins)


def measure_histograms(
    content: bytes,
    images: np.ndarray,
    ranges: Ranges,
    groups: Sequence[Sequence[int]],
    *,
    num_threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[Histogram]:
    """One histogram for each group of activations, of the values of all its members over the images.

    Takes two to three times as long as `measure_ranges`: 0.15 s an image for DenseNet121 at 112 px. 32 kB a group.

    Args:
        content: float flatbuffer of batch 1.
        images: float32 (images, height, width, channels), those that the ranges were measured on.
        ranges: tensor index -> (minimum, maximum), as `measure_ranges` gives them.
        groups: tensor indices, none of them twice.
        num_threads: for the interpreter; it does not change the result.
        progress: is told how far it is.
    """
    ends = [(min(ranges[one][0] for one in group), max(ranges[one][1] for one in group)) for group in groups]
    counts = np.zeros((len(groups), BINS), np.int64)
    observer = Observer(content, [one for group in groups for one in group], num_threads=num_threads)
    for number, image in enumerate(images, 1):
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        for place, (group, (low, high)) in enumerate(zip(groups, ends, strict=True)):
            for one in group:
                counts[place] += count_values(observer.view(one), low, high)
        if progress is not None and number % _REPORT_EVERY == 0 and number < len(images):
            progress(f"counted the values on {number} of {len(images)} images")
    return [Histogram(low, high, count) for (low, high), count in zip(ends, counts, strict=True)]


# Operators whose int8 kernels write with the scale of what they read.
# Source: TFLite 8-bit quantization specification, "Int8 quantized operator specifications" (same scale).
SAME_SCALE = frozenset((
    "AVERAGE_POOL_2D", "BATCH_TO_SPACE_ND", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "MAXIMUM",
    "MAX_POOL_2D", "MINIMUM", "MIRROR_PAD", "PACK", "PAD", "PADV2", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "SELECT", "SELECT_V2", "SLICE", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT",
    "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK",
))  # fmt: skip

_LEVELS = 255
_LOWEST_CODE, _HIGHEST_CODE = -128, 127
Range = tuple[float, float]
# Candidates are this part of the full range, in steps of a hundredth; then each end alone, in finer steps.
_COARSE = np.linspace(1.0, 0.05, 96)
_FINE = np.linspace(0.8, 1.25, 46)


def clipped_ranges(
    content: bytes,
    images: np.ndarray,
    ranges: Ranges,
    method: str,
    percentile: float = 100.0,
    *,
    shared: bool = True,
    num_threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Ranges:
    """The ranges to quantize with.

    Activations that must share a scale (those that a CONCATENATION joins, what a pool reads and writes) get one range,
    chosen on the values of all of them together; those that share one with an end of the network keep what occurred.

    Args:
        content: float flatbuffer of batch 1.
        images: float32 (images, height, width, channels), those that the ranges were measured on.
        ranges: tensor index -> what occurred (`measure_ranges`).
        method: "minmax", "percentile" or "mse".
        percentile: of the values that stay inside at either end, for "percentile".
        shared: False lets each activation have a range of its own; a QUANTIZE then has to bring what a CONCATENATION
            joins to one scale. For comparison.
        num_threads: for the interpreter; it does not change the result.
        progress: is told how far it is.
    """
    if method == "minmax":
        return dict(ranges)
    graph = read_graphs(content)[0]
    ends = {*graph.inputs, *graph.outputs}
    alike = shared_scales(graph, ranges) if shared else [[index] for index in ranges]
    groups = [group for group in alike if not ends & set(group)]
    histograms = measure_histograms(content, images, ranges, groups, num_threads=num_threads, progress=progress)
    chosen = dict(ranges)
    for group, histogram in zip(groups, histograms, strict=True):
        own = mse_range(histogram) if method == "mse" else percentile_range(histogram, percentile)
        chosen |= dict.fromkeys(group, own)
    return chosen


def joined_ranges(content: bytes, ranges: Ranges) -> Ranges:
    """The same with one range for all activations that must share a scale: the smallest that holds theirs."""
    chosen = dict(ranges)
    for group in shared_scales(read_graphs(content)[0], ranges):
        ends = [ranges[index] for index in group]
        chosen |= dict.fromkeys(group, (min(low for low, _ in ends), max(high for _, high in ends)))
    return chosen


def shared_scales(graph: Graph, tensors: Iterable[int]) -> list[list[int]]:
    """The activations in groups of one scale; most are alone."""
    parent = {index: index for index in tensors}

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for operator in graph.operators:
        if operator.kind in SAME_SCALE:
            touched = [index for index in operator.inputs + operator.outputs if index in parent]
            for index in touched[1:]:
                parent[root(index)] = root(touched[0])
    groups: dict[int, list[int]] = {}
    for index in parent:
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The narrowest range, on borders of bins, with at most 100 - percentile of the values beyond either end."""
    # What 100 - percentile loses to rounding must not cost a value.
    allowed = histogram.counts.sum() * (100 - percentile) / 100 + 1e-9
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    above = below[-1] - below
    edges = histogram.edges
    low = edges[np.flatnonzero(below <= allowed)[-1]]
    high = edges[np.flatnonzero(above <= allowed)[0]]
    # Both land on one border only where all values fall into one bin; then nothing is gained by clipping.
    return (float(low), float(high)) if low < high else (histogram.low, histogram.high)


def mse_range(histogram: Histogram) -> tuple[float, float]:
    """The range whose int8 codes err least, squared, over the values of a histogram.

    Searched in rounds: both ends drawn in by the same factor, to a twentieth in steps of a hundredth; then each end
    alone likewise; then each alone by factors of 0.8 to 1.25 of what it has come to, never beyond what occurred.
    """
    best = (histogram.low, histogram.high)
    if histogram.low >= histogram.high:
        return best
    used = np.flatnonzero(histogram.counts)
    values, counts = histogram.centers[used], histogram.counts[used].astype(np.float64)
    full = (min(histogram.low, 0.0), max(histogram.high, 0.0))
    for candidates in (_both_ends, _lower_end, _upper_end, _lower_end_finely, _upper_end_finely):
        tried = list(candidates(full, best))
        errors = [quantization_error(values, counts, low, high) for low, high in tried]
        best = tried[int(np.argmin(errors))]
    return best


def quantization_error(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], low: float, high: float
) -> float:
    """Sum of the squared errors of int8 codes for `low` to `high`, each value weighed by its count.

    Source: TFLite 8-bit quantization specification; as the converter does, the range is widened to hold 0, which gets a
    code of its own.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        return float(counts @ np.square(values))
    scale = (high - low) / _LEVELS
    zero_point = np.clip(np.rint(_LOWEST_CODE - low / scale), _LOWEST_CODE, _HIGHEST_CODE)
    codes = np.clip(np.rint(values / scale) + zero_point, _LOWEST_CODE, _HIGHEST_CODE)
    return float(counts @ np.square((codes - zero_point) * scale - values))


def _both_ends(full: Range, _: Range) -> Iterator[Range]:
    return ((float(full[0] * factor), float(full[1] * factor)) for factor in _COARSE)


def _lower_end(full: Range, best: Range) -> Iterator[Range]:
    yield best
    yield from ((float(full[0] * factor), best[1]) for factor in _COARSE)


def _upper_end(full: Range, best: Range) -> Iterator[Range]:
    yield best
    yield from ((best[0], float(full[1] * factor)) for factor in _COARSE)


def _lower_end_finely(full: Range, best: Range) -> Iterator[Range]:
    yield best
    yield from ((max(full[0], float(best[0] * factor)), best[1]) for factor in _FINE)


def _upper_end_finely(full: Range, best: Range) -> Iterator[Range]:
    yield best
    yield from ((best[0], min(full[1], float(best[1] * factor))) for factor in _FINE)

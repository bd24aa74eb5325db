"""What the quant types of one conversion share: the lowered float graph, and the same graph with its ranges."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cxr_compress.device.runner import Runner
from cxr_compress.lite.audit import audit, require_integer
from cxr_compress.lite.bias_correction import correct_bias
from cxr_compress.lite.calibration import pick_evenly
from cxr_compress.lite.clipping import clipped_ranges
from cxr_compress.lite.fallback import Fallback, choose_float_layers, measure_file, output_ratio
from cxr_compress.lite.flatbuffer import OUTPUT_NAME, name_signature, read_graphs
from cxr_compress.lite.freeze import FrozenFunction
from cxr_compress.lite.layer_names import operators_named
from cxr_compress.lite.layer_snr import LayerSnr, layer_snr
from cxr_compress.lite.lite_model import CALIBRATED, FLOAT_ENDS, LiteModel
from cxr_compress.lite.lowering import lower, quantize
from cxr_compress.lite.ptq import PtqOptions
from cxr_compress.lite.ranges import measure_ranges, write_ranges
from cxr_compress.lite.uint8_input import feed_uint8, pin_pixel_range

Progress = Callable[[str], None]
# Of the calibration images, to compare layers on: a layer has thousands of values on each.
_COMPARED = 16


class Stage:
    """Times a stage and reports it when it has ended well."""

    def __init__(self, name: str, report: Progress) -> None:
        self._name, self._report = name, report

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._report(f"{self._name} {time.perf_counter() - self._start:.1f} s")


@dataclass(frozen=True)
class Exporter:
    """Makes one file after the other of a frozen function.

    Attributes:
        frozen: with the normalisation in front where it takes pixels.
        images: for the int8 types; float32, or uint8 for pixels.
        num_threads: for what runs the images.
        report: is told each stage.
        options: how int8 is made.
        pixels: the files take uint8 pixels.
    """

    frozen: FrozenFunction
    images: np.ndarray | None
    num_threads: int
    report: Progress
    options: PtqOptions
    pixels: bool

    def make(self, quant_type: str) -> LiteModel:
        """Convert to one quant type, name its ends and check it."""
        if quant_type in CALIBRATED:
            return self._integer(quant_type)
        graph = self._float_graph if quant_type == "none" else None
        with Stage(quant_type, self.report):
            content = lower(self.frozen, quant_type) if graph is None else graph
            content = name_signature(feed_uint8(content) if self.pixels else content)
            found = audit(content)
        return LiteModel(content, quant_type, found)

    @cached_property
    def _float_graph(self) -> bytes:
        with Stage("float graph", self.report):
            return lower(self.frozen, "none")

    @property
    def _films(self) -> np.ndarray:
        if self.images is None:
            raise AssertionError("an int8 type reached the exporter without images")
        return self.images

    @cached_property
    def _calibrated(self) -> bytes:
        content, images, options = self._float_graph, self._films.astype(np.float32, copy=False), self.options
        with Stage(f"calibration on {len(images)} images", self.report):
            common: dict[str, Any] = {"num_threads": self.num_threads, "progress": self.report}
            ranges = measure_ranges(content, images, **common)
            if options.calibration_method != "minmax":
                method, percentile = options.calibration_method, options.percentile
                ranges = clipped_ranges(content, images, ranges, method, percentile, **common)
            return write_ranges(content, pin_pixel_range(content, ranges) if self.pixels else ranges)

    def _integer(self, quant_type: str) -> LiteModel:
        left, fallback = self.options.float_layers, None
        content = self._quantized(quant_type, left)
        layers = self._compared(content)
        if self.options.auto_fallback:
            chosen, exact = self._chosen(quant_type, content, layers)
            whole, left = content, (*left, *chosen)
            if chosen:
                content = self._quantized(quant_type, left)
                layers = self._compared(content)
            before, after = (measure_file(one, self._few, exact) for one in (whole, content))
            fallback = Fallback(chosen, before, after)
            self.report(fallback.to_text())
        content = name_signature(content)
        found = audit(content)
        allowed = self._tensors(left, renamed=True)
        require_integer(found, float_io=quant_type == FLOAT_ENDS, pixels=self.pixels, allowed=allowed)
        return LiteModel(content, quant_type, found, tuple(layers), fallback)

    def _chosen(self, quant_type: str, content: bytes, layers: list[LayerSnr]) -> tuple[tuple[str, ...], np.ndarray]:
        """The layers to leave in float, and the outputs of the float graph that they were judged by."""
        exact = Runner(self._float_graph)(self._few.astype(np.float32, copy=False))
        before = output_ratio(content, self._few, exact)

        def trial(layer: str) -> float:
            tried = self._rounded(self._calibrated, quant_type, (*self.options.float_layers, layer))
            ratio = output_ratio(tried, self._few, exact)
            self.report(f"{layer} in float: {before:.2f} -> {ratio:.2f} dB at the output")
            return ratio

        if self.options.bias_correction:  # which the files that are tried do without
            before = output_ratio(
                self._rounded(self._calibrated, quant_type, self.options.float_layers), self._few, exact
            )
        with Stage("layers tried in float", self.report):
            return choose_float_layers(layers, self.options.auto_fallback, trial, before), exact

    @cached_property
    def _few(self) -> np.ndarray:
        return self._films[pick_evenly(range(len(self._films)), _COMPARED)]

    def _quantized(self, quant_type: str, left: tuple[str, ...]) -> bytes:
        """The int8 graph with some layers left in float, its biases corrected if that is wanted."""
        calibrated = self._calibrated  # made, and its stages reported, before this one starts
        with Stage(quant_type, self.report):
            content = self._rounded(calibrated, quant_type, left)
        if not self.options.bias_correction:
            return content
        with Stage("bias correction", self.report):
            threads, report = self.num_threads, self.report
            return correct_bias(self._float_graph, content, self._films, num_threads=threads, progress=report)

    def _rounded(self, calibrated: bytes, quant_type: str, left: tuple[str, ...]) -> bytes:
        float_io, tensors = quant_type == FLOAT_ENDS, self._tensors(left)
        return quantize(calibrated, float_io=float_io, pixels=self.pixels, float_tensors=tensors)

    def _compared(self, content: bytes) -> list[LayerSnr]:
        """The layers of a file against the float graph's, where anyone wants to know."""
        if not (self.options.layer_report or self.options.auto_fallback):
            return []
        with Stage(f"layers compared on {len(self._few)} images", self.report):
            threads, report = self.num_threads, self.report
            return layer_snr(self._float_graph, content, self._few, num_threads=threads, progress=report)

    def _tensors(self, left: tuple[str, ...], *, renamed: bool = False) -> list[str]:
        """What the operators of layers write, by name; the output of the model has another in the finished file."""
        graph = read_graphs(self._float_graph)[0] if left else None
        if graph is None:
            return []
        results = [operator.outputs[0] for operator in operators_named(graph, left)]
        return [OUTPUT_NAME if renamed and index in graph.outputs else graph.tensors[index].name for index in results]

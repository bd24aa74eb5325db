"""What the quant types of one conversion share: the lowered float graph, and the same graph with its ranges."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from cxr_compress.device.runner import Runner
from cxr_compress.lite.audit import Audit, audit, require_integer
from cxr_compress.lite.calibration import pick_evenly
from cxr_compress.lite.freeze import FrozenFunction
from cxr_compress.lite.graph.flatbuffer import OUTPUT_NAME, name_signature, read_graphs
from cxr_compress.lite.graph.names import operators_named, operators_of_kind
from cxr_compress.lite.graph.op_versions import require_target
from cxr_compress.lite.head import widen_map
from cxr_compress.lite.inputs_outputs import Ends, ends_of, feed_uint8, pin_pixel_range
from cxr_compress.lite.int8.fallback import Fallback, choose_float_layers, measure_file, output_ratio
from cxr_compress.lite.int8.fold import choose_folds, fold_scales
from cxr_compress.lite.int8.layer_snr import LayerSnr, layer_snr
from cxr_compress.lite.int8.ptq import PtqOptions
from cxr_compress.lite.int8.ranges import Ranges, clipped_ranges, measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize, quantize_int16
from cxr_compress.lite.parity import (
    MOST_IMAGES,
    MOST_IMAGES_INT16,
    Parity,
    Reference,
    answer,
    measure_parity,
    require_answers,
    require_runs,
)
from cxr_compress.quant_types import CALIBRATED, INT16


@dataclass(frozen=True)
class LiteModel:
    """One converted model.

    Attributes:
        content: the plain flatbuffer, without labels and preprocessing (device.modelfile.pack_model adds those).
        quant_type: one of QUANT_TYPES.
        audit: what is inside.
        layers: how far each layer is from the float file's, worst first; () where nobody asked.
        fallback: what leaving layers in float costs and gives; None where none were to be chosen.
        parity: the file's answers beside the model's; None where nothing was compared.
    """

    content: bytes = field(repr=False)
    quant_type: str
    audit: Audit
    layers: tuple[LayerSnr, ...] = field(default=(), repr=False)
    fallback: Fallback | None = None
    parity: Parity | None = None


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
        frozen: with the normalization in front where it takes pixels.
        images: for the integer types, and to compare on; float32, or uint8 for pixels.
        num_threads: for what runs the images.
        report: is told each stage.
        options: how int8 is made.
        pixels: the files take uint8 pixels.
        input_type: what the files' inputs store; None for each type's own.
        output_type: likewise.
        target: the runtime that has to load the files, one of `op_versions.TARGETS`; None for any.
        compare: run each file beside the model.
        force: let files pass whose answers are unlike the model's.
    """

    frozen: FrozenFunction
    images: np.ndarray | None
    num_threads: int
    report: Progress
    options: PtqOptions
    pixels: bool
    input_type: str | None = None
    output_type: str | None = None
    target: str | None = None
    compare: bool = True
    force: bool = False

    def make(self, quant_type: str) -> LiteModel:
        """Convert to one quant type, name its ends, check it, and compare its answers with the model's if wanted."""
        if quant_type == INT16:
            made = self._wide()
        else:
            made = self._integer(quant_type) if quant_type in CALIBRATED else self._float(quant_type)
        require_target(made.audit.too_new, self.target)
        require_runs(made.content, quant_type)
        return self._compared_with_model(made) if self.compare else made

    def _compared_with_model(self, made: LiteModel) -> LiteModel:
        """The same file with its parity.

        Raises:
            CompressionError: it answers the same to everything.
        """
        quant_type = made.quant_type
        # Its reference kernels run on one thread.
        slow = quant_type == INT16
        common: dict[str, Any] = {"most": MOST_IMAGES_INT16 if slow else MOST_IMAGES, "side_by_side": slow}
        reference = self._reference
        with Stage(f"{quant_type} compared with the model", self.report):
            parity = measure_parity(made.content, reference, num_threads=self.num_threads, **common)
        require_answers(parity, reference, quant_type, force=self.force)
        return replace(made, audit=replace(made.audit, output_codes=parity.codes), parity=parity)

    @cached_property
    def _reference(self) -> Reference:
        with Stage("answers of the model", self.report):
            return answer(self.frozen, self.images, pixels=self.pixels)

    def _ends(self, quant_type: str) -> Ends:
        return ends_of(quant_type, pixels=self.pixels, input_type=self.input_type, output_type=self.output_type)

    def _float(self, quant_type: str) -> LiteModel:
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

    @cached_property
    def _integer_graph(self) -> bytes:
        """What the integer types are made of: the float graph, with its scales folded where that is wanted."""
        content = self._float_graph  # made, and its stage reported, before this one starts
        if not self.options.fold_scales:
            return content
        with Stage("scales folded", self.report):
            chosen = choose_folds(content, self._images, num_threads=self.num_threads, progress=self.report)
            return fold_scales(content, only=chosen)[0]

    @property
    def _images(self) -> np.ndarray:
        if self.images is None:
            raise AssertionError("an int8 type reached the exporter without images")
        return self.images

    @cached_property
    def _ranges(self) -> Ranges:
        """All that occurred."""
        content, images = self._integer_graph, self._images.astype(np.float32, copy=False)
        with Stage(f"calibration on {len(images)} images", self.report):
            ranges = measure_ranges(content, images, num_threads=self.num_threads, progress=self.report)
            return widen_map(content, ranges)

    @cached_property
    def _calibrated(self) -> bytes:
        """For int8: the ranges as the method has them."""
        content, options, ranges = self._integer_graph, self.options, self._ranges
        if options.calibration_method != "minmax":
            images, method = self._images.astype(np.float32, copy=False), options.calibration_method
            with Stage(f"ranges by {method}", self.report):
                common: dict[str, Any] = {"num_threads": self.num_threads, "progress": self.report}
                ranges = clipped_ranges(content, images, ranges, method, options.percentile, **common)
        return write_ranges(content, pin_pixel_range(content, ranges) if self.pixels else ranges)

    def _wide(self) -> LiteModel:
        """The file with int16 activations. Its ranges are always all that occurred: steps are fine enough without."""
        graph, ranges, ends = self._integer_graph, self._ranges, self._ends(INT16)
        with Stage(INT16, self.report):
            ranged = write_ranges(graph, pin_pixel_range(graph, ranges) if self.pixels else ranges)
            content = name_signature(quantize_int16(ranged, ends=ends))
            found = audit(content)
            require_integer(found, ends=ends)
        return LiteModel(content, INT16, found, tuple(self._compared(content)))

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
        require_integer(found, ends=self._ends(quant_type), allowed=allowed)
        return LiteModel(content, quant_type, found, tuple(layers), fallback)

    def _chosen(self, quant_type: str, content: bytes, layers: list[LayerSnr]) -> tuple[tuple[str, ...], np.ndarray]:
        """The layers to leave in float, and the outputs of the float graph that they were judged by."""
        exact = Runner(self._integer_graph)(self._few.astype(np.float32, copy=False))
        before = output_ratio(content, self._few, exact)

        def trial(layer: str) -> float:
            tried = self._rounded(self._calibrated, quant_type, (*self.options.float_layers, layer))
            ratio = output_ratio(tried, self._few, exact)
            self.report(f"{layer} in float: {before:.2f} -> {ratio:.2f} dB at the output")
            return ratio

        with Stage("layers tried in float", self.report):
            return choose_float_layers(layers, self.options.auto_fallback, trial, before), exact

    @cached_property
    def _few(self) -> np.ndarray:
        return self._images[pick_evenly(range(len(self._images)), _COMPARED)]

    def _quantized(self, quant_type: str, left: tuple[str, ...]) -> bytes:
        """The int8 graph with some layers left in float."""
        calibrated = self._calibrated  # made, and its stages reported, before this one starts
        with Stage(quant_type, self.report):
            return self._rounded(calibrated, quant_type, left)

    def _rounded(self, calibrated: bytes, quant_type: str, left: tuple[str, ...]) -> bytes:
        return quantize(calibrated, ends=self._ends(quant_type), float_tensors=self._tensors(left))

    def _compared(self, content: bytes) -> list[LayerSnr]:
        """The layers of a file against the float graph's, where anyone wants to know."""
        if not (self.options.layer_report or self.options.auto_fallback):
            return []
        with Stage(f"layers compared on {len(self._few)} images", self.report):
            threads, report = self.num_threads, self.report
            return layer_snr(self._integer_graph, content, self._few, num_threads=threads, progress=report)

    def _tensors(self, left: tuple[str, ...], *, renamed: bool = False) -> list[str]:
        """What the operators of layers write, by name; the output of the model has another in the finished file."""
        kinds = self.options.denylisted_ops
        if not (left or kinds):
            return []
        graph = read_graphs(self._integer_graph)[0]
        operators = [*operators_named(graph, left), *operators_of_kind(graph, kinds)]
        results = list(dict.fromkeys(operator.outputs[0] for operator in operators))
        return [OUTPUT_NAME if renamed and index in graph.outputs else graph.tensors[index].name for index in results]

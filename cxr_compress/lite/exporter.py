"""How the files of one conversion are made: what quant types share is made once, when the first of them needs it.

float graph -> (batch-norm scales folded) -> ranges of its activations on images -> int8 or int16 codes
|
+-> none, fp16, dynamic
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from cxr_compress.device.runner import Runner
from cxr_compress.lite.audit import Audit, audit, require_integer, require_target
from cxr_compress.lite.calibration import pick_evenly
from cxr_compress.lite.freeze import FrozenFunction
from cxr_compress.lite.graph.flatbuffer import OUTPUT_NAME, name_signature, read_graphs
from cxr_compress.lite.graph.names import operators_named, operators_of_kind
from cxr_compress.lite.head import leave_room_for_map
from cxr_compress.lite.inputs_outputs import InputOutput, feed_uint8, input_output_of, pin_pixel_range
from cxr_compress.lite.int8.fold import choose_folds, fold_scales
from cxr_compress.lite.int8.layer_snr import (
    Fallback,
    LayerSnr,
    choose_float_layers,
    layer_snr,
    measure_file,
    output_ratio,
)
from cxr_compress.lite.int8.pooling import average_by_convolution
from cxr_compress.lite.int8.ranges import Ranges, clipped_ranges, measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize, quantize_int16
from cxr_compress.lite.options import ConvertOptions
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
from cxr_compress.quant_types import TYPES


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
# Enough to compare layers on: a layer has thousands of values on each image.
_COMPARED_IMAGES = 16


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
        options: how the files are made.
        pixels: the files take uint8 pixels.
    """

    frozen: FrozenFunction
    images: np.ndarray | None
    num_threads: int
    report: Progress
    options: ConvertOptions
    pixels: bool

    def make(self, quant_type: str) -> LiteModel:
        """Convert to one quant type, check that the file runs, and compare its answers with the model's if wanted."""
        make = {"float32": self._make_float, "int8": self._make_int8, "int16": self._make_int16}
        file = make[TYPES[quant_type].activations](quant_type)
        require_target(file.audit.too_new, self.options.target_runtime)
        require_runs(file.content, quant_type)
        return self._compared_with_model(file) if self.options.compare else file

    def _make_float(self, quant_type: str) -> LiteModel:
        """A file that computes in float32, whatever its weights are stored as."""
        # Made, and its stage reported, before this one starts.
        graph = self._float_graph if quant_type == "none" else None
        with Stage(quant_type, self.report):
            content = lower(self.frozen, quant_type) if graph is None else graph
            content = name_signature(feed_uint8(content) if self.pixels else content)
            return LiteModel(content, quant_type, audit(content))

    def _make_int16(self, quant_type: str) -> LiteModel:
        """The file with int16 activations. Its ranges are always all that occurred: steps are fine enough without."""
        graph, ranges, input_output = self._integer_graph, self._ranges, self._input_output(quant_type)
        with Stage(quant_type, self.report):
            content = name_signature(quantize_int16(self._with_ranges(graph, ranges), input_output=input_output))
            audited = audit(content)
            require_integer(audited, input_output=input_output)
        return LiteModel(content, quant_type, audited, tuple(self._layer_ratios(content)))

    def _make_int8(self, quant_type: str) -> LiteModel:
        """The file with int8 activations, some layers left in float where that is wanted."""
        float_layers, fallback = self.options.float_layers, None
        content = self._quantized(quant_type, float_layers)
        layers = self._layer_ratios(content)
        if self.options.auto_fallback:
            # Layers are chosen by what the file without them loses, so that there are two files to compare.
            all_int8, exact = content, Runner(self._integer_graph)(self._few_images.astype(np.float32, copy=False))
            chosen = self._choose_float_layers(quant_type, all_int8, layers, exact)
            if chosen:
                float_layers = (*float_layers, *chosen)
                content = self._quantized(quant_type, float_layers)
                layers = self._layer_ratios(content)
            before, after = (measure_file(file, self._few_images, exact) for file in (all_int8, content))
            fallback = Fallback(chosen, before, after)
            self.report(fallback.to_text())
        content = name_signature(content)
        audited = audit(content)
        allowed = self._float_tensors(float_layers, renamed=True)
        require_integer(audited, input_output=self._input_output(quant_type), allowed=allowed)
        return LiteModel(content, quant_type, audited, tuple(layers), fallback)

    # What the files share, each made when it is first asked for.

    @cached_property
    def _float_graph(self) -> bytes:
        with Stage("float graph", self.report):
            return lower(self.frozen, "none")

    @cached_property
    def _integer_graph(self) -> bytes:
        """What the integer types are made of: the float graph, with its scales folded where that is wanted.

        Averages of a few places are convolutions in it, which have fast kernels.
        """
        content = average_by_convolution(self._float_graph)
        if not self.options.fold_scales:
            return content
        with Stage("scales folded", self.report):
            chosen = choose_folds(content, self._images, num_threads=self.num_threads, progress=self.report)
            return fold_scales(content, only=chosen)[0]

    @property
    def _images(self) -> np.ndarray:
        if self.images is None:
            raise AssertionError("an integer type reached the exporter without images")
        return self.images

    @cached_property
    def _few_images(self) -> np.ndarray:
        return self._images[pick_evenly(range(len(self._images)), _COMPARED_IMAGES)]

    @cached_property
    def _ranges(self) -> Ranges:
        """All that occurred."""
        content, images = self._integer_graph, self._images.astype(np.float32, copy=False)
        with Stage(f"calibration on {len(images)} images", self.report):
            ranges = measure_ranges(content, images, num_threads=self.num_threads, progress=self.report)
            return leave_room_for_map(content, ranges)

    @cached_property
    def _calibrated(self) -> bytes:
        """The graph that int8 is made of, with the ranges as the calibration method has them."""
        content, options, ranges = self._integer_graph, self.options, self._ranges
        if options.calibration_method != "minmax":
            images, method = self._images.astype(np.float32, copy=False), options.calibration_method
            with Stage(f"ranges by {method}", self.report):
                common: dict[str, Any] = {"num_threads": self.num_threads, "progress": self.report}
                ranges = clipped_ranges(content, images, ranges, method, options.percentile, **common)
        return self._with_ranges(content, ranges)

    def _with_ranges(self, content: bytes, ranges: Ranges) -> bytes:
        # Pixels have one code each, whatever the calibration images held.
        return write_ranges(content, pin_pixel_range(content, ranges) if self.pixels else ranges)

    @cached_property
    def _reference(self) -> Reference:
        with Stage("answers of the model", self.report):
            return answer(self.frozen, self.images, pixels=self.pixels)

    # The steps of one file.

    def _input_output(self, quant_type: str) -> InputOutput:
        input_type, output_type = self.options.inference_input_type, self.options.inference_output_type
        return input_output_of(quant_type, pixels=self.pixels, input_type=input_type, output_type=output_type)

    def _quantized(self, quant_type: str, float_layers: tuple[str, ...]) -> bytes:
        """The int8 graph with some layers left in float."""
        calibrated = self._calibrated  # made, and its stages reported, before this one starts
        with Stage(quant_type, self.report):
            return self._rounded(calibrated, quant_type, float_layers)

    def _rounded(self, calibrated: bytes, quant_type: str, float_layers: tuple[str, ...]) -> bytes:
        tensors = self._float_tensors(float_layers)
        return quantize(calibrated, input_output=self._input_output(quant_type), float_tensors=tensors)

    def _float_tensors(self, float_layers: tuple[str, ...], *, renamed: bool = False) -> list[str]:
        """What the operators of layers write, by name; the output of the model has another in the finished file."""
        kinds = self.options.denylisted_ops
        if not (float_layers or kinds):
            return []
        graph = read_graphs(self._integer_graph)[0]
        operators = [*operators_named(graph, float_layers), *operators_of_kind(graph, kinds)]
        results = list(dict.fromkeys(operator.outputs[0] for operator in operators))
        return [OUTPUT_NAME if renamed and index in graph.outputs else graph.tensors[index].name for index in results]

    def _choose_float_layers(
        self, quant_type: str, content: bytes, layers: list[LayerSnr], exact: np.ndarray
    ) -> tuple[str, ...]:
        """The layers to leave in float, judged by the outputs of the float graph, `exact`."""
        before = output_ratio(content, self._few_images, exact)

        def trial(layer: str) -> float:
            content = self._rounded(self._calibrated, quant_type, (*self.options.float_layers, layer))
            ratio = output_ratio(content, self._few_images, exact)
            self.report(f"{layer} in float: {before:.2f} -> {ratio:.2f} dB at the output")
            return ratio

        with Stage("layers tried in float", self.report):
            return choose_float_layers(layers, self.options.auto_fallback, trial, before)

    def _layer_ratios(self, content: bytes) -> list[LayerSnr]:
        """The layers of a file against the float graph's, where anyone wants to know."""
        if not (self.options.layer_report or self.options.auto_fallback):
            return []
        with Stage(f"layers compared on {len(self._few_images)} images", self.report):
            threads, report = self.num_threads, self.report
            return layer_snr(self._integer_graph, content, self._few_images, num_threads=threads, progress=report)

    def _compared_with_model(self, file: LiteModel) -> LiteModel:
        """The same file with its parity.

        Raises:
            CompressionError: it answers the same to everything.
        """
        quant_type = file.quant_type
        # Reference kernels run on one thread: several images at a time make up for that.
        slow = TYPES[quant_type].reference_kernels
        common: dict[str, Any] = {"most": MOST_IMAGES_INT16 if slow else MOST_IMAGES, "side_by_side": slow}
        reference = self._reference
        with Stage(f"{quant_type} compared with the model", self.report):
            parity = measure_parity(file.content, reference, num_threads=self.num_threads, **common)
        require_answers(parity, reference, quant_type, force=self.options.force)
        return replace(file, audit=replace(file.audit, output_codes=parity.codes), parity=parity)

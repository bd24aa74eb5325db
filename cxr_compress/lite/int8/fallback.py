"""Which layers to leave in float, and what that costs and gives."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cxr_compress.device.runner import Runner
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.int8.layer_snr import LayerSnr, decibels

_WARM_UPS, _RUNS = 2, 9


@dataclass(frozen=True)
class FileFacts:
    """What is compared of a file with layers in float and one without.

    Attributes:
        file_bytes: size.
        fences: QUANTIZE and DEQUANTIZE operators, those at the ends included.
        milliseconds: median time of one image here, one thread: x86 times tell little of ARM's.
        output_db: signal-to-noise ratio of the logits against the float file's.
    """

    file_bytes: int
    fences: int
    milliseconds: float
    output_db: float


@dataclass(frozen=True)
class Fallback:
    """Layers left in float, and the file before and after.

    Attributes:
        layers: as `layer_names.layer_of` calls them, the one that gains most first.
        before: the file with all layers in int8.
        after: the file with these in float.
    """

    layers: tuple[str, ...]
    before: FileFacts
    after: FileFacts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite ratio is None."""
        fields = asdict(self)
        for facts in (fields["before"], fields["after"]):
            facts["output_db"] = facts["output_db"] if math.isfinite(facts["output_db"]) else None
        return fields | {"layers": list(self.layers)}

    def to_text(self) -> str:
        """One line: what was gained, what it costs."""
        before, after = self.before, self.after
        if not self.layers:
            return f"no layer tried gains by float: {before.output_db:.1f} dB at the output stay"
        gained = f"{before.output_db:.1f} -> {after.output_db:.1f} dB at the output"
        return (
            f"{', '.join(self.layers)} left in float: {gained}, {after.file_bytes - before.file_bytes:+d} bytes, "
            f"{after.fences - before.fences:+d} QUANTIZE/DEQUANTIZE, {before.milliseconds:.2f} -> "
            f"{after.milliseconds:.2f} ms an image here"
        )


def shortlist(found: Sequence[LayerSnr], count: int) -> tuple[str, ...]:
    """The layers from which float arithmetic takes away most noise of their own (`LayerSnr.curable`).

    Not simply the lowest ratio: what spoils a layer is often the range that its result shares with others, and that
    stays when the layer computes in float. A batch norm that became MUL and ADD is one layer.

    Args:
        found: of the file as it is (`layer_snr`).
        count: layers at most; those with nothing to gain are left out.
    """
    gains: dict[str, float] = {}
    for one in sorted(found, key=lambda one: one.index):
        gains[one.layer] = gains.get(one.layer, 0.0) + (one.curable if one.is_integer else 0.0)
    worthy = [layer for layer, gain in gains.items() if gain > 0]
    return tuple(sorted(worthy, key=lambda layer: -gains[layer])[:count])


def choose_float_layers(
    found: Sequence[LayerSnr], count: int, trial: Callable[[str], float], before: float
) -> tuple[str, ...]:
    """The layers that gain most at the output by float, each tried alone, the best first.

    What a layer adds and what of it reaches the output are two things, so that the most suspicious are tried: twice as
    many as wanted and four more.

    Args:
        found: of the file as it is (`layer_snr`).
        count: layers to choose at most; layers that gain nothing are not taken.
        trial: signal-to-noise ratio at the output with this one layer in float, in dB.
        before: the ratio as it is.
    """
    ratios = {layer: trial(layer) for layer in shortlist(found, 2 * count + 4)} if count else {}
    better = [layer for layer, ratio in ratios.items() if ratio > before]
    return tuple(sorted(better, key=lambda layer: -ratios[layer])[:count])


def output_ratio(content: bytes, images: np.ndarray, exact: np.ndarray) -> float:
    """Signal-to-noise ratio of a file's outputs in dB; `exact`: those of the float file on the same images."""
    error = Runner(content)(images).astype(np.float64) - exact
    return decibels(float(np.square(exact, dtype=np.float64).sum()), float(np.square(error).sum()))


def measure_file(content: bytes, images: np.ndarray, exact: np.ndarray) -> FileFacts:
    """The facts of a file.

    Args:
        content: the flatbuffer.
        images: (images, height, width, channels) as the file takes them.
        exact: what the float file gives for them.
    """
    kinds = [operator.kind for operator in read_graphs(content)[0].operators]
    return FileFacts(
        file_bytes=len(content),
        fences=kinds.count("QUANTIZE") + kinds.count("DEQUANTIZE"),
        milliseconds=_milliseconds(content, images[:1]),
        output_db=output_ratio(content, images, exact),
    )


def _milliseconds(content: bytes, batch: np.ndarray) -> float:
    runner = Runner(content)
    times = []
    for _ in range(_WARM_UPS + _RUNS):
        start = time.perf_counter()
        runner(batch)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[_WARM_UPS:])

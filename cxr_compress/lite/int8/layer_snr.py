"""How far each layer of an int8 file is from the float file, and which layers are worth leaving in float.

Signal-to-noise ratios on the same images:

- *cumulative*: the activation of the int8 file, as it runs, against the float one. What has gone wrong up to here?
- *local*: the int8 operator alone against the float operator alone, both given the float file's activations, rounded to
  the codes that the int8 operator reads. What does this operator add, by its integer weights and by rounding and
  clipping its result? One that only moves values (CONCATENATION, PAD) adds nothing.
- *in float*: the same where the operator is left in float and only its result is rounded to the codes that the next
  operators read. Where this is hardly above *local*, leaving the layer in float cures nothing: its result needs a
  narrower range.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.runner import Runner, TensorFormat
from cxr_compress.errors import CompressionError
from cxr_compress.lite.graph.flatbuffer import Graph, Operator, read_graphs
from cxr_compress.lite.graph.names import FENCES, computing, layer_of
from cxr_compress.lite.graph.run import Observer, split_operators
from cxr_compress.lite.int8.fold import fold_like

COLUMNS = ("layer", "operator", "local dB", "in float dB", "cumulative dB", "arithmetic")
_REPORT_EVERY = 8
_WARM_UPS, _RUNS = 2, 9
Powers = npt.NDArray[np.float64]
_FLOATS = TensorFormat(-1, np.dtype(np.float32), None, 0)


@dataclass(frozen=True)
class LayerSnr:
    """One operator, float against int8.

    A ratio is 10 log10 of the sum of the squared float values by the sum of the squared differences, over all values
    on all images; 20 dB are errors of a tenth, 40 dB of a hundredth, 6 dB are one bit. Infinite where there is no
    difference, minus infinite where the float values are all 0 and the others are not.

    Attributes:
        layer: name of the Keras layer (`names.layer_of`).
        tensor: name of the result in the float file.
        kind: "CONV_2D", "ADD", ...
        index: number of the operator in the float file.
        local_db: of this operator alone.
        in_float_db: of this operator alone, were it left in float.
        cumulative_db: of the int8 file as it runs.
        is_integer: computes in integers; False where it was left in float.
        curable: share of a channel's power, on average over the channels, that is noise and that leaving the operator
            in float would take away. Channel by channel, because one loud channel hides what is lost in the others.
    """

    layer: str
    tensor: str
    kind: str
    index: int
    local_db: float
    in_float_db: float
    cumulative_db: float
    is_integer: bool
    curable: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite ratio is None, as JSON knows no infinity."""
        return {name: _finite(value) for name, value in asdict(self).items()}

    def row(self) -> list[str]:
        """One line of a table with COLUMNS."""
        ratios = (self.local_db, self.in_float_db, self.cumulative_db)
        return [self.layer, self.kind, *(f"{ratio:.1f}" for ratio in ratios), "int" if self.is_integer else "float"]


def layer_snr(
    float_content: bytes,
    int8_content: bytes,
    images: np.ndarray,
    *,
    num_threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[LayerSnr]:
    """Signal-to-noise ratios of every operator, worst local one first; ties in the order they run.

    Sixteen images are plenty: a layer has thousands of values on each. All activations of both files, and of both cut
    into single operators, are held at once: about 0.6 GB for DenseNet121 at 224 px.

    Args:
        float_content: the float file ("none") of a network.
        int8_content: an int8 file of the same network, fully integer or with layers left in float.
        images: (images, height, width, channels) as the files take them: float32, or uint8 pixels.
        num_threads: for the interpreters.
        progress: is told how far it is.

    Raises:
        CompressionError: the files are not of one network, or there is no image.
        ModelFileError: one is no .tflite flatbuffer.
    """
    if len(images) == 0:
        raise CompressionError("expected at least one image to compare the layers on, got none: give 16")
    pair = _Pair(fold_like(float_content, int8_content), int8_content, num_threads)
    for number, image in enumerate(images, 1):
        pair.add(image[np.newaxis])
        if progress is not None and number % _REPORT_EVERY == 0 and number < len(images):
            progress(f"compared the layers on {number} of {len(images)} images")
    return sorted(pair.ratios(), key=lambda found: (found.local_db, found.index))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); see `LayerSnr` for where one of them is 0."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def curable_share(signal: Powers, local: Powers, in_float: Powers) -> float:
    """`LayerSnr.curable` of the powers of channels; a channel can lose no more than all, a dead one has nothing."""
    alive = signal > 0
    if not alive.any():
        return 0.0
    shares = [np.minimum(noise[alive] / signal[alive], 1.0).mean() for noise in (local, in_float)]
    return max(0.0, float(shares[0] - shares[1]))


class _Pair:
    """Both files, both in pieces, and the sums of squares that they give."""

    def __init__(self, float_content: bytes, int8_content: bytes, num_threads: int) -> None:
        self._exact, self._rounded = read_graphs(float_content)[0], read_graphs(int8_content)[0]
        self._operators = match_operators(self._exact, self._rounded)
        self._sources = _float_sources(self._exact, self._rounded, self._operators)
        partner = {ours.index: theirs for ours, theirs in self._operators}
        self._ours = split_operators(float_content, lambda op, place: self._activation(partner[op.index], place))
        self._theirs = split_operators(int8_content, self._activation)
        self._read_as = {label: _format_read(self._rounded, label) for label in self._theirs.inputs}
        results = [ours.outputs[0] for ours, _ in self._operators]
        wanted = sorted({*results, *(self._sources[label] for label in self._theirs.inputs)})
        self._floats = Observer(float_content, wanted, num_threads=num_threads)
        self._codes = Observer(int8_content, [op.outputs[0] for _, op in self._operators], num_threads=num_threads)
        self._float_pieces = Observer(self._ours.content, self._ours.outputs, num_threads=num_threads)
        self._int8_pieces = Observer(self._theirs.content, self._theirs.outputs, num_threads=num_threads)
        # By operator: (4, channels): signal, then noise: local, in float, cumulative.
        self._sums: list[Any] = [0.0] * len(self._operators)

    def _activation(self, operator: Operator, place: int) -> int | None:
        """What an operator of the int8 file reads at a place; None for a constant and for what is left out."""
        index = operator.inputs[place] if place < len(operator.inputs) else -1
        return index if index >= 0 and self._rounded.tensors[index].values is None else None

    def add(self, image: np.ndarray) -> None:
        """Run all four on one image."""
        for observer in (self._floats, self._codes):
            observer.feed(observer.inputs[0], image)
            observer.invoke()
        for label, form in self._read_as.items():
            codes = form.encode(self._floats.view(self._sources[label]).astype(np.float32, copy=False))
            self._float_pieces.feed(self._ours.inputs[label], form.decode(codes))
            self._int8_pieces.feed(self._theirs.inputs[label], form.decode(codes))
        self._float_pieces.invoke()
        self._int8_pieces.invoke()
        for number, (ours, theirs) in enumerate(self._operators):
            self._sums[number] = self._sums[number] + self._powers(ours.outputs[0], theirs.outputs[0])

    def _powers(self, ours: int, theirs: int) -> Powers:
        """Sums of squares by channel for one operator on one image."""
        form, rounding = _format_of(self._rounded, theirs), _format_written(self._rounded, theirs)
        exact = self._floats.view(ours)
        alone = self._float_pieces.view(self._ours.results[ours])
        parts = (
            exact,
            form.decode(self._int8_pieces.view(self._theirs.results[theirs])) - alone,
            rounding.decode(rounding.encode(alone)) - alone,
            form.decode(self._codes.view(theirs)) - exact,
        )
        squares = [np.square(part).reshape(-1, part.shape[-1] if part.ndim else 1) for part in parts]
        return np.stack([square.sum(axis=0, dtype=np.float64) for square in squares])

    def ratios(self) -> list[LayerSnr]:
        """What the sums come to."""
        found = []
        for (ours, theirs), sums in zip(self._operators, self._sums, strict=True):
            signal, *noises = sums.sum(axis=1).tolist()
            local, in_float, cumulative = (decibels(signal, noise) for noise in noises)
            found.append(
                LayerSnr(
                    layer=layer_of(self._exact, ours),
                    tensor=self._exact.tensors[ours.outputs[0]].name,
                    kind=ours.kind,
                    index=ours.index,
                    local_db=local,
                    in_float_db=in_float,
                    cumulative_db=cumulative,
                    is_integer=self._rounded.tensors[theirs.outputs[0]].is_integer,
                    curable=curable_share(*sums[:3]),
                )
            )
        return found


def match_operators(exact: Graph, rounded: Graph) -> list[tuple[Operator, Operator]]:
    """The operators of a float file with those of its int8 file: the quantizer keeps their order.

    Raises:
        CompressionError: the files are not of one network.
    """
    ours, theirs = computing(exact), computing(rounded)
    described = [[(op.kind, _shapes(graph, op)) for op in ops] for graph, ops in ((exact, ours), (rounded, theirs))]
    if described[0] != described[1]:
        raise CompressionError(
            f"expected a float and an int8 file of one network, got {len(ours)} and {len(theirs)} operators that do "
            "not correspond: convert both from the same model"
        )
    return list(zip(ours, theirs, strict=True))


def _shapes(graph: Graph, operator: Operator) -> list[tuple[int, ...]]:
    return [graph.tensors[index].shape for index in operator.outputs]


def _float_sources(exact: Graph, rounded: Graph, pairs: Sequence[tuple[Operator, Operator]]) -> dict[int, int]:
    """For each activation of the int8 graph, the activation of the float graph that it stands for."""
    sources = dict(zip(rounded.inputs, exact.inputs, strict=True))
    for ours, theirs in pairs:
        sources |= dict(zip(theirs.outputs, ours.outputs, strict=True))
    for operator in rounded.operators:
        if operator.kind in FENCES:
            sources.setdefault(operator.outputs[0], sources[operator.inputs[0]])
    return sources


def _format_of(graph: Graph, index: int) -> TensorFormat:
    """How a tensor stores its numbers."""
    tensor = graph.tensors[index]
    if not tensor.is_integer or not tensor.scale:
        return _FLOATS
    return TensorFormat(index, np.dtype(tensor.dtype), tensor.scale[0], tensor.zero_point[0])


def _format_read(graph: Graph, index: int) -> TensorFormat:
    """How the numbers that an operator reads were stored, before a DEQUANTIZE if there is one."""
    producer = graph.producers().get(index)
    if producer is not None and producer.kind == "DEQUANTIZE":
        index = producer.inputs[0]
    return _format_of(graph, index)


def _format_written(graph: Graph, index: int) -> TensorFormat:
    """How a result would be stored for its readers; the output of the model would be float then."""
    readers = [operator for operator in graph.operators if index in operator.inputs]
    computes = any(operator.kind not in FENCES for operator in readers)
    return _format_of(graph, index) if computes else _FLOATS


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        layers: as `names.layer_of` calls them, the one that gains most first.
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

"""How much the output suffers from each group: ignore its weakest channels, run the model, and note the error.

Scores rank the channels of one group well and say little about groups against each other. Here every group is damaged
by itself, at a few depths, and the damage is seen where it counts: at the output. The model is never rebuilt for it:
a channel is ignored by zeroing what its consumers multiply it with, which equals removing it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.files import write_text
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import copy_model, layers_by_path
from cxr_compress.structured.analysis import ChannelAnalysis, ChannelGroup
from cxr_compress.structured.cost import BoolArray
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.rebuild import remove_channels
from cxr_compress.structured.repair.consumers import checked, fitting_images
from cxr_compress.structured.select import check_scores
from cxr_compress.structured.sensitivity_curves import SENSITIVITY_FORMAT, Curve, Sensitivity

Batches = Sequence[tuple[npt.NDArray[np.float32], Any]]
Log = Callable[[str], None]

_SECONDS_BETWEEN_LINES = 10


class CurveCache:
    """The curves measured so far, and the file that holds them.

    Args:
        cache: the file; None keeps them in memory alone.
        empty: what is known of the measurement before the first curve.
        log: takes a line on what the file held, and lines of progress.
    """

    def __init__(self, cache: Path | None, empty: Sensitivity, log: Log) -> None:
        self._cache, self._empty, self._log = cache, empty, log
        self._last_line = time.monotonic()
        self.curves: dict[str, Curve] = {}
        self.blocks: dict[str, float] = {}
        known = _read(cache)
        if known is not None and known.key == empty.key:
            self.curves, self.blocks = dict(known.curves), dict(known.blocks)
            log(f"sensitivity: {len(known.curves)} groups measured before, kept")
        elif known is not None:
            log("sensitivity: what was measured before is of another model, data or order of channels; starting anew")

    def add(self, group: str, curve: Curve, groups: int) -> None:
        """Note a group's curve, on disk too."""
        self.curves[group] = curve
        self._noted(f"{len(self.curves)} of {groups} groups")

    def add_block(self, block: str, error: float, blocks: int) -> None:
        """Note the error without a block of layers, on disk too."""
        self.blocks[block] = error
        self._noted(f"{len(self.blocks)} of {blocks} blocks of layers")

    def _noted(self, progress: str) -> None:
        if self._cache is not None:
            write_text(self._cache, self.sensitivity(self.curves, self.blocks).to_json())
        if time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._log(f"sensitivity: {progress} measured")

    def sensitivity(self, groups: Iterable[str], blocks: Iterable[str]) -> Sensitivity:
        """What was measured of these groups and blocks of layers."""
        curves = {name: self.curves[name] for name in groups}
        return replace(self._empty, curves=curves, blocks={name: self.blocks[name] for name in blocks})


def _read(cache: Path | None) -> Sensitivity | None:
    if cache is None or not cache.exists():
        return None
    try:
        return Sensitivity.from_json(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError, CompressionError) as error:
        raise CompressionError(f"{cache}: {error}; delete the file to measure anew") from error


def model_hash(model: keras.Model) -> str:
    """A hash of a model's config and weights; the container file around them does not matter."""
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def measurement_key(
    settings: Mapping[str, Any], orders: Mapping[str, npt.NDArray[np.int64]], data: Batches, loss: object
) -> str:
    """A hash of everything that decides the errors.

    Args:
        settings: what else decides them, ready for JSON: the model's hash, the fractions.
        orders: by group, (channels,) which channels go first: all that matters of the scores.
        data: images and, where there is a loss, labels.
        loss: see `measure_sensitivity`.
    """
    head = {"format": SENSITIVITY_FORMAT, "loss": _describe(loss), **settings}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, default=str).encode())
    for name, order in orders.items():
        digest.update(name.encode() + np.ascontiguousarray(order, dtype=np.int64).tobytes())
    for images, labels in data:
        digest.update(np.ascontiguousarray(images).data)
        if loss is not None:
            digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _describe(loss: Any) -> str:
    if loss is None:
        return ""
    name = getattr(loss, "__qualname__", type(loss).__qualname__)
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    return f"{name} {json.dumps(config, sort_keys=True, default=str)}"


_MEMORY = 1 << 28  # bytes of live tensors in one batch: larger batches are hardly faster
# The least variance of an output, over its mean square, that is more than the rounding of float32.
_CONSTANT = 1e-12


SENSITIVITY_FRACTIONS = (0.25, 0.5, 0.75)


def measure_sensitivity(
    model: keras.Model,
    analysis: ChannelAnalysis,
    scores: Mapping[str, npt.NDArray[np.float64]],
    batches: Iterable[Any],
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    fractions: Sequence[float] = SENSITIVITY_FRACTIONS,
    layers: bool = False,
    cache: Path | None = None,
    progress: Log | None = None,
) -> Sensitivity:
    """Measure, group by group, what ignoring its lowest-scored channels does to the model's output.

    Ignored means that every consumer multiplies the channel by zero, on a copy of the model: exactly the pruned model,
    without a rebuild. The one removal that this cannot mimic, of channels that a LayerNormalization takes statistics
    over (analyzed with `allow_inexact`), is measured on a rebuilt model. No repair is simulated: batch norms that are
    re-estimated afterwards take back a part of the error, and more of it where the error is a mere shift.

    Costs one pass over all images per group and fraction: a DenseNet121 at 112 px with 64 images takes about 1.1 s of
    processor time a pass and so 4 to 6 minutes on two idle cores for its 120 groups and 3 fractions. More images make
    the errors less noisy; for an order of groups some dozens do: from the first blocks to the last their errors span
    four orders of magnitude.

    Source: Li et al. 2016, "Pruning Filters for Efficient ConvNets" (arXiv 1608.08710), section 3.2: each layer pruned
    by itself, at several depths, smallest filters first. They look at the accuracy, which needs labels and cannot see
    what does not flip a decision; the change of the outputs needs none and sees everything.

    Args:
        model: the model that `analysis` came from; it is only read.
        analysis: its channels.
        scores: by group, (channels,) higher means keep; decides which channels go first.
        batches: float32 (n, h, w, c) preprocessed as in training, or pairs with labels; all are held in memory.
        loss: (labels, outputs) -> loss; with it the error is the rise of the mean loss, below 0 where ignoring helps.
            Without, it is the variance over images of an output's change, over the output's own, averaged over the
            outputs. Outputs that no longer depend on the image have an error of 1 or more.
        fractions: shares of a group's channels to ignore, in (0, 1); each is rounded to whole channels. None are
            needed where only whole layers are asked about.
        layers: measure every block of layers that may go too, in one pass each. Of the branch of a residual block the
            constant stays that it gives without its inputs; it hardly shows in a variance over images.
        cache: a JSON file that is written after every group. A measurement that was interrupted goes on from there;
            one of another model, other data, or scores of another order is replaced. A `loss` is known by its
            `get_config`, or else by its name.
        progress: takes a line on how far it is every 10 seconds.

    Raises:
        CompressionError: a model with several inputs, fractions outside their range, scores that do not fit, or a
            damaged cache.
        DataError: no batches, batches that do not fit the model, or outputs that do not depend on the images.
    """
    if not (fractions or layers) or not all(0 < fraction < 1 for fraction in fractions):
        raise CompressionError(f"expected fractions of channels to ignore in (0, 1); got {tuple(fractions)}")
    if len(model.inputs) != 1:
        raise CompressionError(f"expected a model with one input to run on batches, got {len(model.inputs)} inputs")
    check_scores(analysis, scores)
    orders = {name: np.argsort(scores[name], kind="stable") for name in analysis.groups}
    data = _batches(model, analysis, batches, labels=loss is not None)
    settings = {"model": model_hash(model), "exclude": analysis.exclude, "fractions": fractions}
    key = measurement_key(settings, orders, data, loss)
    images = sum(len(part) for part, _ in data)
    empty = Sensitivity(key, "output" if loss is None else "loss", images, {})
    measured = CurveCache(cache, empty, progress or (lambda line: None))
    missing = [group for name, group in analysis.groups.items() if name not in measured.curves]
    blocks = analysis.blocks if layers else {}
    whole = [name for name in blocks if name not in measured.blocks]
    if missing or whole:
        probe = _Probe(model, analysis, data, loss)
        for group in missing:
            measured.add(group.name, _curve(probe, group, orders[group.name], fractions), len(analysis.groups))
        for name in whole:
            measured.add_block(name, probe.error_without(blocks[name].groups), len(blocks))
    return measured.sensitivity(analysis.groups, blocks)


def _curve(probe: _Probe, group: ChannelGroup, order: npt.NDArray[np.int64], fractions: Sequence[float]) -> Curve:
    """The errors of one group; a group of one channel can lose none."""
    counts = {min(max(1, round(fraction * group.channels)), group.channels - 1) for fraction in fractions}
    measured = sorted(counts - {0})
    errors = tuple(probe.error(group, order[:count]) for count in measured)
    return Curve(group.channels, tuple(count / group.channels for count in measured), errors)


class _Probe:
    """A copy of a model, in which channels can be ignored, and what it gives when none are."""

    def __init__(
        self, model: keras.Model, analysis: ChannelAnalysis, data: Batches, loss: Callable[[Any, Any], Any] | None
    ) -> None:
        self._model, self._analysis, self._data, self._loss = model, analysis, data, loss
        copy = copy_model(model)
        layers = layers_by_path(copy)
        axes = [(path, axis) for path, layer in analysis.layers.items() for axis in layer.axes]
        self._readers = [(layers[path].weights[axis.weight], axis) for path, axis in axes if axis.role == "consume"]
        self._inexact = np.zeros(analysis.set_count, dtype=np.bool_)
        for path, axis in axes:
            if isinstance(layers[path], keras.layers.LayerNormalization):
                self._inexact[axis.sets] = True
        self._forward = _compiled(copy)
        self._start = self._run(self._forward)
        if loss is None:
            self._variance = _variance(self._start)

    def error(self, group: ChannelGroup, channels: npt.NDArray[np.int64]) -> float:
        """What ignoring these channels of a group does; see `measure_sensitivity`."""
        gone = np.zeros(self._analysis.set_count, dtype=np.bool_)
        gone[group.start + channels] = True
        return self._error(gone)

    def error_without(self, groups: Sequence[str]) -> float:
        """What ignoring all channels of some groups does."""
        gone = np.zeros(self._analysis.set_count, dtype=np.bool_)
        for name in groups:
            gone[self._analysis.groups[name].sets] = True
        return self._error(gone)

    def _error(self, gone: BoolArray) -> float:
        if self._inexact[gone].any():
            outcome = self._run(_compiled(self._rebuilt(gone)))
        else:
            with self._ignoring(gone):
                outcome = self._run(self._forward)
        if self._loss is not None:
            return float(outcome - self._start)
        varied = self._variance > 0
        # The variance: a shift that is the same for all images ranks no image differently, and any repair undoes it.
        change = np.var(outcome - self._start, axis=0)
        return float(np.mean(change[varied] / self._variance[varied]))

    def _run(self, forward: Callable[[Any], list[Any]]) -> Any:
        """One pass over all images: the mean loss, or the outputs as float64 (images, outputs)."""
        parts: list[Any] = []
        for images, labels in self._data:
            outputs = forward(tf.convert_to_tensor(images))
            if self._loss is None:
                flat = [np.asarray(output, dtype=np.float64).reshape(len(images), -1) for output in outputs]
                parts.append(np.concatenate(flat, axis=1))
            else:
                value = self._loss(tf.convert_to_tensor(labels), outputs[0] if len(outputs) == 1 else outputs)
                parts.append(float(tf.reduce_mean(value)) * len(images))
        if not all(np.isfinite(part).all() for part in parts):
            raise DataError("sensitivity: the model gives NaN or infinity: check images, labels and weights")
        if self._loss is None:
            return np.concatenate(parts)
        return sum(parts) / sum(len(images) for images, _ in self._data)

    @contextmanager
    def _ignoring(self, gone: BoolArray) -> Iterator[None]:
        """Zero what consumers multiply these channel sets with, for a while."""
        before = []
        try:
            for kernel, axis in self._readers:
                if gone[axis.sets].any():
                    before.append((kernel, kernel.numpy()))
                    values = before[-1][1].copy()
                    np.moveaxis(values, axis.axis, 0)[gone[axis.sets]] = 0
                    kernel.assign(values)
            yield
        finally:
            # Backwards: a kernel that two axes of one group meet in is noted twice.
            for kernel, values in reversed(before):
                kernel.assign(values)

    def _rebuilt(self, gone: BoolArray) -> keras.Model:
        return remove_channels(self._model, ChannelPlan.of(self._analysis, ~gone, {}))


def _batches(model: keras.Model, analysis: ChannelAnalysis, batches: Iterable[Any], *, labels: bool) -> Batches:
    """All batches, cut to what fits into memory."""
    size = fitting_images(_MEMORY, analysis)
    return [
        (images[start : start + size], None if truth is None else truth[start : start + size])
        for images, truth in checked(model, batches, "sensitivity", labels=labels)
        for start in range(0, len(images), size)
    ]


def _compiled(model: keras.Model) -> Callable[[Any], list[Any]]:
    @tf.function(reduce_retracing=True)
    def forward(images: Any) -> list[Any]:
        return list(tf.nest.flatten(model(images, training=False)))

    return forward


def _variance(outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(outputs,) over the images; 0 where an output is constant but for rounding."""
    variance = outputs.var(axis=0)
    variance[variance <= _CONSTANT * np.mean(outputs**2, axis=0)] = 0
    if not variance.any():
        raise DataError("sensitivity: the model gives the same output for all images: expected two or more that differ")
    return np.asarray(variance)

"""Fold what removed channels contributed on average into their consumers' bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.structured.analyze import analyze_channels
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.repair.consumers import (
    DEFAULT_MEMORY,
    ConstantSink,
    Consumer,
    find_consumers,
    fitting_images,
    losing,
    once,
)
from cxr_compress.structured.stepwise import FloatArray, take_images, unroll, walk


@dataclass(frozen=True)
class FoldReport:
    """What folding did.

    Attributes:
        images: how many were looked at.
        folded: by layer, the root mean square of what went into its bias or the batch norm behind it.
        left: by layer, why nothing was folded.
    """

    images: int
    folded: Mapping[str, float] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


def fold_constant_channels(
    pruned: keras.Model,
    model: keras.Model,
    plan: ChannelPlan,
    batches: Iterable[Any],
    *,
    positions: int = 64,
    seed: int = 0,
    memory_bytes: int = DEFAULT_MEMORY,
) -> FoldReport:
    """Put the mean contribution of every removed channel into the bias of the layers that read it, in place.

    Exact where a removed channel is constant and its consumer is a 1x1 convolution, a Dense or unpadded; with padding
    the border sees less of the channel, and the mean over all positions is folded. A consumer without bias passes the
    constant to the batch norm behind it (its moving mean). Cheaper and weaker than `reconstruct_consumers`, which fits
    a constant of its own: use one of the two.

    Args:
        pruned: the pruned model; biases and moving means change.
        model: the original model; only read.
        plan: what was removed.
        batches: float32 (n, h, w, c), preprocessed as in training; labels beside them are ignored.
        positions: sampled output positions per image and layer.
        seed: of those positions.
        memory_bytes: for tensors held at once; more images than fit are not looked at.

    Raises:
        DataError: no batches, or batches that do not fit the model.
        CompressionError: a plan for another model.
    """
    analysis = analyze_channels(model, exclude=plan.exclude, allow_inexact=plan.allow_inexact)
    keep = plan.keep_vector(analysis)
    if keep.all():
        return FoldReport(0)
    steps, pruned_steps = unroll(model), unroll(pruned)
    images = take_images(model, batches, fitting_images(memory_bytes, analysis), "constant folding")
    consumers, left = find_consumers(steps, analysis)
    chosen: dict[int, tuple[Consumer, ConstantSink]] = {}
    for consumer in losing(once(consumers, left), keep):
        sink = ConstantSink(pruned_steps, consumer.place)
        if sink.open:
            chosen[consumer.place] = (consumer, sink)
        else:
            left[consumer.path] = "has no bias, and no batch norm of its own behind it"
    rng = np.random.default_rng(seed)
    folded: dict[str, float] = {}

    def visit(place: int, inputs: list[list[list[Any]]]) -> None:
        consumer, sink = chosen[place]
        mean = _mean_row(consumer, [tensors[0] for tensors in inputs[0]], positions, rng)
        gone = ~keep[consumer.units]
        shift = mean[gone] @ consumer.kernel()[gone][:, keep[consumer.outputs]].astype(np.float64)
        sink.add(shift)
        folded[consumer.path] = float(np.sqrt(np.mean(shift**2)))

    walk([steps], images, chosen, visit)
    return FoldReport(sum(map(len, images)), folded, left)


def _mean_row(consumer: Consumer, tensors: list[Any], positions: int, rng: np.random.Generator) -> FloatArray:
    """(columns,) the mean of what a consumer reads, over sampled positions of all images."""
    total = np.zeros(consumer.reader.columns)
    count = 0
    for tensor in tensors:
        rows = consumer.reader.rows(tensor, consumer.reader.draw(len(tensor), positions, rng))
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    return total / count  # type: ignore[return-value]

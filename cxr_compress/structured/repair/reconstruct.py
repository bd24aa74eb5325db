"""Least-squares repair of the layers that read removed channels (He 2017): no labels, no gradients, one pass."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import Step, Steps, traits_of, unroll
from cxr_compress.structured.analyze import analyze_channels
from cxr_compress.structured.cost import BoolArray
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.repair.consumers import (
    DEFAULT_MEMORY,
    Consumer,
    PatchReader,
    Places,
    beside,
    find_consumers,
    fitting_images,
    is_depthwise,
    take_images,
    walk,
)
from cxr_compress.structured.repair.least_squares import Matrix, NormalEquations, choose_ridge

# Parts of the images, on each of which a fit to the others is tried.
FOLDS = 4
# float64 normal equations of this many columns take half a gigabyte.
MAX_COLUMNS = 8192


@dataclass(frozen=True)
class ReconstructionReport:
    """What reconstruction did.

    Attributes:
        images: how many were used.
        errors: by layer, the squared error of its output over its variance, before and after, on those images.
        left: by layer, why it was left as it is.
    """

    images: int
    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


def reconstruct_consumers(
    pruned: keras.Model,
    model: keras.Model,
    plan: ChannelPlan,
    batches: Iterable[Any],
    *,
    positions: int = 32,
    ridge: float | None = None,
    seed: int = 0,
    memory_bytes: int = DEFAULT_MEMORY,
) -> ReconstructionReport:
    """Refit, in place, the weights of every layer that lost inputs, so that its output is again the original model's.

    Front to back in one pass of both models: a layer's inputs come from the pruned model, the layers before it repaired
    already, its targets from the original one. Conv2D and Dense layers are refitted, each reader of a shared channel by
    itself, and so are depthwise convolutions, which lose no inputs but see changed ones; other layers are left and
    listed. A constant per output goes into the bias or into the batch norm behind the layer. Re-estimating the batch
    norms afterwards (`recalibrate_batch_norm`) is another repair of the same damage, not a required second half:
    measure whether it still helps.

    Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (arXiv 1707.06168),
    section 3.1, equation 1 with the selection fixed, and section 3.2.

    Args:
        pruned: the pruned model; its weights change.
        model: the original model; only read.
        plan: what was removed.
        batches: float32 (n, h, w, c), preprocessed as in training; labels beside them are ignored.
        positions: sampled output positions per image and layer. Rows = images * positions: a 3x3 convolution of 128
            channels has 1,152 unknowns per output and wants several times as many rows.
        ridge: pull towards the weights before the refit, as a share of the mean input energy; None chooses it for each
            layer by how well the fit holds on images that it has not seen. With few images, or a network that is hard
            to fit, a pull too weak is worse than no refit: EfficientNet-Lite0 at half the MACs and 32 images answers
            at random with 0.001 (AUROC 0.51), and with what is chosen has 0.60 of 0.68.
        seed: of the positions.
        memory_bytes: for tensors of both models held at once; more images than fit are not used.

    Raises:
        DataError: no batches, batches that do not fit the model, or activations that are not finite.
        CompressionError: a plan for another model, or a pruned model that is not the plan's.
    """
    analysis = plan.on(model)
    keep = plan.keep_vector(analysis)
    if keep.all():
        return ReconstructionReport(0)
    steps = unroll(model)
    pruned_steps = beside(unroll(pruned), steps)
    most = images_that_fit(pruned, model, plan, memory_bytes)
    images = take_images(model, batches, most, "reconstruction")
    consumers, left = find_consumers(steps, analysis, depthwise=True)
    calls = Counter(consumer.path for consumer in consumers)
    left.update({path: f"is called {times} times" for path, times in calls.items() if times > 1})
    chosen: dict[int, _Refit] = {}
    for consumer in consumers:
        removed = not pruned_steps.calls[consumer.place].makes
        if consumer.path in left or removed or (keep[consumer.sets].all() and not is_depthwise(consumer.layer)):
            continue
        columns = consumer.reader.taps if is_depthwise(consumer.layer) else consumer.reader.columns
        if columns > MAX_COLUMNS:
            left[consumer.path] = f"reads {columns:,} columns, more than {MAX_COLUMNS:,}"
        else:
            chosen[consumer.place] = _Refit(consumer, steps, pruned_steps, keep)
    rng = np.random.default_rng(seed)
    errors: dict[str, tuple[float, float]] = {}

    def visit(place: int, inputs: list[list[list[Any]]]) -> None:
        refit = chosen[place]
        folds = refit.collect(inputs, positions, rng)
        errors[refit.consumer.path] = refit.apply(folds, ridge)

    walk([steps, pruned_steps], images, chosen, visit)
    return ReconstructionReport(sum(map(len, images)), errors, left)


def images_that_fit(
    pruned: keras.Model, model: keras.Model, plan: ChannelPlan, memory_bytes: int = DEFAULT_MEMORY
) -> int:
    """How many images `reconstruct_consumers` can use: more do not fit into so many bytes."""
    return fitting_images(memory_bytes, plan.on(model), analyze_channels(pruned))


class _Refit:
    """The refit of one layer: one problem of least squares, or, of a depthwise convolution, one for each channel."""

    def __init__(self, consumer: Consumer, steps: Steps, pruned_steps: Steps, keep: BoolArray) -> None:
        self.consumer = consumer
        self._step: Step = pruned_steps.calls[consumer.place]
        self._outputs = keep[consumer.outputs]
        # Where the fitted constant goes: the layer's bias, or the moving mean of the batch norm behind it.
        self._norm: Any = None if consumer.layer.use_bias else _norm_behind(pruned_steps, consumer.place)
        self._original_norm: Any = None if self._norm is None else _norm_behind(steps, consumer.place)
        self._depthwise = is_depthwise(consumer.layer)
        start = self._start()
        columns, outputs = int(keep[consumer.sets].sum()), int(self._outputs.sum())
        problems, inputs, made = start.shape
        if (problems * inputs, problems * made) != (columns, outputs):
            raise CompressionError(
                f"{consumer.path}: the pruned model was not made from this plan; run remove_channels"
            )

    def collect(self, inputs: list[list[list[Any]]], positions: int, rng: np.random.Generator) -> list[NormalEquations]:
        """By part of the images, rows of the pruned model against outputs of the original one at the same places."""
        wide = self.consumer.reader
        narrow = PatchReader(self._step.layer, tuple(self._step.node.keras_inputs[0].shape)[1:])
        problems, columns, outputs = self._start().shape
        bias = self.consumer.bias()[self._outputs].reshape(problems, 1, outputs)
        kernel = self._problems(self.consumer.layer.get_weights()[0])
        # Of a depthwise convolution the channels that stay are problems, of any other layer they are outputs.
        channels = np.flatnonzero(self._outputs[::outputs]) if self._depthwise else np.arange(1)
        kernel = kernel[channels] if self._depthwise else kernel[:, :, self._outputs]
        has_constant = self.consumer.layer.use_bias or self._norm is not None
        images = sum(len(tensors[0]) for tensors in inputs[0])
        folds = [
            NormalEquations(columns, outputs, constant=has_constant, problems=problems)
            for _ in range(min(FOLDS, ceil(images / 2)))
        ]
        first = 0
        for original, pruned in zip(*inputs, strict=True):
            places = wide.draw(len(original[0]), positions, rng)
            rows = self._rows(narrow, pruned[0], places)
            targets = self._rows(wide, original[0], places)[channels] @ kernel + bias
            # Neighbors stay together: they may be an image and its varied copy.
            fold = (first + places.image) // 2 % len(folds)
            for number, equations in enumerate(folds):
                equations.add(rows[:, fold == number], targets[:, fold == number])
            first += len(original[0])
        return folds

    def _start(self) -> npt.NDArray[Any]:
        return self._problems(self._step.layer.get_weights()[0])

    def _problems(self, kernel: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(problems, columns, outputs) of a layer's kernel."""
        if not self._depthwise:
            return kernel.reshape(1, -1, kernel.shape[-1])
        return kernel.reshape(-1, *kernel.shape[-2:]).transpose(1, 0, 2)

    def _rows(self, reader: PatchReader, tensor: Any, places: Places) -> npt.NDArray[np.float32]:
        """(problems, rows, columns) of what the layer reads at some places."""
        rows = reader.rows(tensor, places)
        return rows.reshape(len(rows), reader.taps, -1).transpose(2, 0, 1) if self._depthwise else rows[None]

    def apply(self, folds: list[NormalEquations], ridge: float | None) -> tuple[float, float]:
        """Solve, write the weights, and return the errors before and after."""
        layer = self._step.layer
        start, shape = self._start(), layer.weights[0].shape
        chosen = choose_ridge(folds, start) if ridge is None else np.full(len(start), ridge)
        equations = functools.reduce(NormalEquations.plus, folds)
        weights, constant = equations.solve(start, chosen)
        if not np.isfinite(weights).all():
            raise DataError(f"reconstruction of {self.consumer.path} gave NaN: check the images and the weights")
        kernel = weights.transpose(1, 0, 2) if self._depthwise else weights
        layer.weights[0].assign(kernel.reshape(shape).astype(np.float32))
        old = self._write_constant(constant.reshape(-1)).reshape(constant.shape)
        return equations.error(start, old), equations.error(weights, constant)

    def _write_constant(self, constant: Matrix) -> Matrix:
        """Put the fitted constant where it belongs; returns the one that stood there before."""
        layer = self._step.layer
        if layer.use_bias:
            old = layer.bias.numpy().astype(np.float64)
            layer.bias.assign(constant.astype(np.float32))
            return np.asarray(old)
        if self._norm is None:
            return np.zeros_like(constant)
        original = self._original_norm.moving_mean.numpy()[self._outputs].astype(np.float64)
        old = original - self._norm.moving_mean.numpy()
        self._norm.moving_mean.assign((original - constant).astype(np.float32))
        return np.asarray(old)


def _norm_behind(steps: Steps, place: int) -> Any:
    """The batch norm that alone reads a linear layer's output, and reads nothing else."""
    step = steps.calls[place]
    readers = steps.readers(step.makes[0])
    if len(readers) != 1 or step.makes[0] in steps.results or step.layer.activation is not keras.activations.linear:
        return None
    norm = readers[0].layer
    calls = sum(other.layer is norm for other in steps.calls)
    plain = traits_of(norm, subclasses=True).moving_statistics and calls == 1
    return norm if plain and tuple(norm.moving_mean.shape) == (step.node.outputs.shape[-1],) else None

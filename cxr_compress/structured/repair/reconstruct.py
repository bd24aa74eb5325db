"""Least-squares repair of the layers that read removed channels (He 2017): no labels, no gradients, one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
    beside,
    find_consumers,
    fitting_images,
    take_images,
    walk,
)

Matrix = npt.NDArray[np.float64]


class NormalEquations:
    """The sums from which  min ||rows * weights + constant - targets||^2  is solved.

    float64, because the products of hundreds of correlated columns lose half of float32's digits.

    Args:
        columns: of the rows.
        outputs: columns of the targets.
        constant: whether a free constant per output is fitted too.
    """

    def __init__(self, columns: int, outputs: int, *, constant: bool) -> None:
        self.rows = 0
        self._constant = constant
        self._gram: Matrix = np.zeros((columns, columns))
        self._cross: Matrix = np.zeros((columns, outputs))
        self._sum_rows: Matrix = np.zeros(columns)
        self._sum_targets: Matrix = np.zeros(outputs)
        self._energy = 0.0

    def add(self, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """Add (n, columns) rows and their (n, outputs) targets."""
        rows64, targets64 = rows.astype(np.float64), targets.astype(np.float64)
        self.rows += len(rows64)
        self._gram += rows64.T @ rows64
        self._cross += rows64.T @ targets64
        self._sum_rows += rows64.sum(axis=0)
        self._sum_targets += targets64.sum(axis=0)
        self._energy += float(np.sum(targets64**2))

    def solve(self, start: npt.NDArray[Any], ridge: float) -> tuple[Matrix, Matrix]:
        """(columns, outputs) weights and (outputs,) constant.

        Args:
            start: the weights that directions without data keep; the ridge pulls towards them, not towards zero.
            ridge: its strength, as a share of the mean column's energy.
        """
        gram, cross = self._gram, self._cross
        if self._constant:
            gram = gram - np.outer(self._sum_rows, self._sum_rows) / self.rows
            cross = cross - np.outer(self._sum_rows, self._sum_targets) / self.rows
        strength = ridge * float(np.trace(gram)) / len(gram)
        weights = start.astype(np.float64)
        if strength > 0:
            damped = gram + strength * np.eye(len(gram))
            weights = weights + np.linalg.solve(damped, cross - gram @ weights)
        return weights, self.best_constant(weights)

    def best_constant(self, weights: Matrix) -> Matrix:
        """The constant that goes best with these weights; zero where none is fitted."""
        if not self._constant:
            return np.zeros_like(self._sum_targets)
        return np.asarray((self._sum_targets - self._sum_rows @ weights) / self.rows)

    def error(self, weights: npt.NDArray[Any], constant: npt.NDArray[Any]) -> float:
        """Squared error over the targets' variance, both summed over outputs: 0 is exact, 1 no better than the mean."""
        weights = weights.astype(np.float64)
        predicted = np.sum(weights * (self._gram @ weights)) + self.rows * np.sum(constant**2.0)
        predicted += 2 * np.sum(constant * (self._sum_rows @ weights))
        mixed = np.sum(weights * self._cross) + np.sum(constant * self._sum_targets)
        spread = self._energy - np.sum(self._sum_targets**2) / self.rows
        return float(max(self._energy + predicted - 2 * mixed, 0.0) / max(spread, 1e-300))


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
    ridge: float = 1e-3,
    seed: int = 0,
    memory_bytes: int = DEFAULT_MEMORY,
) -> ReconstructionReport:
    """Refit, in place, the weights of every layer that lost inputs, so that its output is again the original model's.

    Front to back in one pass of both models: a layer's inputs come from the pruned model, the layers before it repaired
    already, its targets from the original one. Conv2D and Dense layers are refitted, and each reader of a shared
    channel by itself; other layers are left and listed. A constant per output goes into the bias or into the batch norm
    behind the layer. Re-estimating the batch norms afterwards (`recalibrate_batch_norm`) is another repair of the same
    damage, not a required second half: measure whether it still helps.

    Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (arXiv 1707.06168),
    section 3.1, equation 1 with the selection fixed, and section 3.2.

    Args:
        pruned: the pruned model; its weights change.
        model: the original model; only read.
        plan: what was removed.
        batches: float32 (n, h, w, c), preprocessed as in training; labels beside them are ignored.
        positions: sampled output positions per image and layer. Rows = images * positions: a 3x3 convolution of 128
            channels has 1,152 unknowns per output and wants several times as many rows.
        ridge: pull towards the weights before the refit, as a share of the mean input energy. Smaller fits the images
            given more closely, larger holds better on others when they are few.
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
    fitting = fitting_images(memory_bytes, analysis, analyze_channels(pruned))
    images = take_images(model, batches, fitting, "reconstruction")
    consumers, left = find_consumers(steps, analysis)
    calls = Counter(consumer.path for consumer in consumers)
    left.update({path: f"is called {times} times" for path, times in calls.items() if times > 1})
    chosen: dict[int, _Refit] = {}
    for consumer in consumers:
        removed = not pruned_steps.calls[consumer.place].makes
        if consumer.path in left or removed or keep[consumer.sets].all():
            continue
        if consumer.reader.columns > MAX_COLUMNS:
            left[consumer.path] = f"reads {consumer.reader.columns:,} columns, more than {MAX_COLUMNS:,}"
        else:
            chosen[consumer.place] = _Refit(consumer, steps, pruned_steps, keep)
    rng = np.random.default_rng(seed)
    errors: dict[str, tuple[float, float]] = {}

    def visit(place: int, inputs: list[list[list[Any]]]) -> None:
        refit = chosen[place]
        equations = refit.collect(inputs, positions, rng)
        errors[refit.consumer.path] = refit.apply(equations, ridge)

    walk([steps, pruned_steps], images, chosen, visit)
    return ReconstructionReport(sum(map(len, images)), errors, left)


class _Refit:
    """The refit of one layer."""

    def __init__(self, consumer: Consumer, steps: Steps, pruned_steps: Steps, keep: BoolArray) -> None:
        self.consumer = consumer
        self._step: Step = pruned_steps.calls[consumer.place]
        self._outputs = keep[consumer.outputs]
        # Where the fitted constant goes: the layer's bias, or the moving mean of the batch norm behind it.
        self._norm: Any = None if consumer.layer.use_bias else _norm_behind(pruned_steps, consumer.place)
        self._original_norm: Any = None if self._norm is None else _norm_behind(steps, consumer.place)
        kernel = self._step.layer.get_weights()[0]
        expected = (int(keep[consumer.sets].sum()), int(self._outputs.sum()))
        if (kernel.size // kernel.shape[-1], kernel.shape[-1]) != expected:
            raise CompressionError(
                f"{consumer.path}: the pruned model was not made from this plan; run remove_channels"
            )

    def collect(self, inputs: list[list[list[Any]]], positions: int, rng: np.random.Generator) -> NormalEquations:
        """Rows of the pruned model against outputs of the original one, at the same sampled positions."""
        wide = self.consumer.reader
        narrow = PatchReader(self._step.layer, tuple(self._step.node.keras_inputs[0].shape)[1:])
        kernel, bias = self.consumer.kernel()[:, self._outputs], self.consumer.bias()[self._outputs]
        has_constant = self.consumer.layer.use_bias or self._norm is not None
        equations = NormalEquations(narrow.columns, kernel.shape[1], constant=has_constant)
        for original, pruned in zip(*inputs, strict=True):
            places = wide.draw(len(original[0]), positions, rng)
            equations.add(narrow.rows(pruned[0], places), wide.rows(original[0], places) @ kernel + bias)
        return equations

    def apply(self, equations: NormalEquations, ridge: float) -> tuple[float, float]:
        """Solve, write the weights, and return the errors before and after."""
        layer = self._step.layer
        before = layer.get_weights()
        start = before[0].reshape(-1, before[0].shape[-1])
        weights, constant = equations.solve(start, ridge)
        if not np.isfinite(weights).all():
            raise DataError(f"reconstruction of {self.consumer.path} gave NaN: check the images and the weights")
        layer.kernel.assign(weights.reshape(before[0].shape).astype(np.float32))
        old = self._write_constant(constant)
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
    return norm if plain and tuple(norm.moving_mean.shape) == (step.layer.weights[0].shape[-1],) else None

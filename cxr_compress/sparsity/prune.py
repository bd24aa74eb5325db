"""Zeroing the smallest weights while the network trains on (TF-MOT), and handing back a plain model.

Zeroed weights make a file that compresses better; they make it neither smaller as it lies on the disk nor faster on
the usual runtimes. Removing filters does both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.sparsity.measure import measure_sparsity
from cxr_compress.sparsity.plan import Allocation, allocate
from cxr_compress.sparsity.schedule import AT_ONCE, PruningSteps, plan_steps
from cxr_compress.sparsity.target import SparsityTarget
from cxr_compress.sparsity.tfmot import sparsity_api
from cxr_compress.sparsity.wrap import ExactMasks, strip_model, wrap_model

Films = tuple[np.ndarray, np.ndarray]


class TrainingConfig(Protocol):
    """What pruning has to know of a training configuration (``train.FitConfig`` is one)."""

    @property
    def epochs(self) -> int:
        """Passes over the training films."""

    @property
    def ema_decay(self) -> float:
        """Of a running average of the weights; 0 for none."""

    def steps_per_epoch(self, films: int) -> int:
        """Training steps in an epoch of so many films."""


def prune_weights(  # noqa: PLR0917 - the first six are those of `fit`, in its order
    model: Any,
    train: Films,
    dev: Films,
    spec: PreprocessSpec,
    config: TrainingConfig,
    run_dir: str | Path,
    *,
    fit: Callable[..., Any],
    findings: Sequence[str],
    target: SparsityTarget | None = None,
    target_sparsity: float | None = None,
    steps: PruningSteps | None = None,
    ramp_fraction: float = 0.5,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Return a copy of ``model`` with the asked share of weights exactly zero, trained on; ``model`` is left as it is.

    ``allocate`` shares the zeros out among the Conv2D, Dense and SeparableConv2D (pointwise) kernels; the head,
    depthwise kernels, biases and batch norms are left out (``measure_sparsity`` lists them). The sparsity follows the
    target's schedule, then the masks are fixed, exactly as many zeros per kernel as allocated, and the rest of the run
    recovers what was lost. The best epoch is chosen among those with final masks. Resumes from ``run_dir`` as ``fit``
    does.

    Args:
        model: Plain functional or Sequential model, nested models included.
        train: (images, labels), as ``fit`` takes them.
        dev: Likewise; chooses the best epoch.
        spec: How the model wants its films.
        config: Of the run: a lower learning rate than in base training keeps what was learned.
        run_dir: Folder of this run alone.
        fit: ``cxr_compress.train.fit``, or a partial of it that fixes the weights of the loss or a teacher.
        findings: Names of the label columns.
        target: How many zeros, where, in which pattern, on which curve.
        target_sparsity: Short for ``SparsityTarget(sparsity=...)``.
        steps: When weights are zeroed; None plans it from ``ramp_fraction``. The pattern 2:4 has its own.
        ramp_fraction: Share of the run until the target is reached.
        progress: Takes lines of progress; None is silent.

    Returns:
        A plain uncompiled ``keras.Model`` with the layers of ``model``.

    Raises:
        CompressionError: The target is out of range, or the run is too short to reach it.
        UnsupportedLayerError: The model is subclassed or has nothing to prune.
    """
    wanted = _one_target(target, target_sparsity)
    allocation = allocate(model, wanted)
    steps_per_epoch = config.steps_per_epoch(len(train[0]))
    steps = _steps(wanted, steps, config, steps_per_epoch, ramp_fraction)
    if progress:
        for line in allocation.notes():
            progress(line)
    wrapped = wrap_model(model, allocation, steps)
    fit(
        wrapped,
        train,
        dev,
        spec,
        config,
        run_dir,
        findings=findings,
        extra_callbacks=[sparsity_api().UpdatePruningStep(), ExactMasks(allocation, steps.end_step)],
        best_from_epoch=steps.final_epoch(steps_per_epoch),
        # With the start weights, which `fit` compares itself, these decide every mask.
        facts={**{f"prune_{name}": value for name, value in wanted.to_dict().items()}, "pruning": asdict(steps)},
        progress=progress,
    )
    plain = strip_model(wrapped, model, allocation)
    check_allocation(plain, allocation)
    return plain


def check_allocation(model: Any, allocation: Allocation) -> None:
    """Fail unless every kernel of a stripped model has the zeros it was allocated.

    A kernel may have more: weights that training itself left at exactly 0.

    Raises:
        CompressionError: Names the layers with too few.
    """
    found = {layer.name: layer.zeros for layer in measure_sparsity(model).layers}
    short = [
        f"{layer.name} ({found.get(layer.name, 0)} of {layer.zeros})"
        for layer in allocation.layers
        if found.get(layer.name, 0) < layer.zeros
    ]
    if short:
        raise CompressionError(f"kernels of {model.name} have fewer zeros than allocated: {', '.join(short)}")


def _one_target(target: SparsityTarget | None, target_sparsity: float | None) -> SparsityTarget:
    if (target is None) == (target_sparsity is None):
        raise CompressionError(f"give either target or target_sparsity, got {target} and {target_sparsity}")
    return SparsityTarget(sparsity=target_sparsity) if target is None else target


def _steps(
    target: SparsityTarget,
    steps: PruningSteps | None,
    config: TrainingConfig,
    steps_per_epoch: int,
    ramp_fraction: float,
) -> PruningSteps:
    """The steps of the run, checked against it."""
    if config.ema_decay:
        # It would average masks and step counters along with the weights.
        raise CompressionError(
            f"a running average knows no masks that grow: prune with ema_decay 0, got {config.ema_decay:g}, and "
            "average in the fine-tuning after it, with the masks held"
        )
    if target.pattern == "2:4":
        if steps not in (None, AT_ONCE):
            raise CompressionError(f"TF-MOT cuts 2:4 at the first training step: leave steps at None, got {steps}")
        steps = AT_ONCE
    steps = steps or plan_steps(config.epochs, steps_per_epoch, ramp_fraction)
    steps.check(config.epochs, steps_per_epoch)
    return steps

"""Zeroing the smallest weights while the network trains on (TF-MOT), and handing back a plain model.

Zeroed weights make a file that compresses better; they make it neither smaller as it lies on the disk nor faster on
the usual runtimes. Removing filters does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras, tfmot
from cxr_compress.models.keras_graph import layers_by_path
from cxr_compress.models.zeros import kernel_of, prunable_layers
from cxr_compress.sparsity.allocate import Allocation, LayerTarget, allocate
from cxr_compress.sparsity.masks import TWO_OF_FOUR, SparsityTarget, exact_mask
from cxr_compress.sparsity.measure import measure_sparsity

_UPDATES = 50  # mask updates on the way: each sorts all weights, and more than this changes no result


@dataclass(frozen=True)
class PruningSteps:
    """The steps at which TF-MOT chooses the masks anew, on the way to the target or at it.

    Source: Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878), section 3.

    Attributes:
        begin_step: the sparsity is 0 before; the first training step is 1.
        end_step: the target holds from here on, and the masks never change again.
        frequency: steps between two mask updates; `end_step - begin_step` is a multiple of it, since TF-MOT updates
            no mask at any other step and would stop short of the target.
    """

    begin_step: int
    end_step: int
    frequency: int

    def check(self, epochs: int, steps_per_epoch: int) -> None:
        """Refuse a schedule that cannot reach its target in the run, before anything is trained.

        Raises:
            CompressionError: the steps contradict one another, or the run is over before `end_step`; says steps
                near these that this run reaches.
        """
        steps = epochs * steps_per_epoch
        reachable = f"this run reaches {self.reachable(steps)}"
        if not 0 <= self.begin_step < self.end_step or self.frequency < 1:
            raise CompressionError(
                f"a pruning schedule needs 0 <= begin_step < end_step and frequency >= 1, got {self}; {reachable}"
            )
        if (self.end_step - self.begin_step) % self.frequency:
            raise CompressionError(
                f"the masks are updated every {self.frequency} steps from step {self.begin_step}, which misses "
                f"end_step {self.end_step}: the sparsity would stop short of its target; choose a frequency that "
                f"divides {self.end_step - self.begin_step}; {reachable}"
            )
        if self.end_step > steps:
            raise CompressionError(
                f"the pruning schedule ends at step {self.end_step}, the run after {steps} "
                f"({epochs} epochs of {steps_per_epoch} batches): train more epochs, use smaller batches or end the "
                f"schedule sooner; {reachable}"
            )

    def reachable(self, steps: int) -> PruningSteps:
        """Return these steps, changed as little as it takes to reach the target in a run of so many steps."""
        begin = min(max(self.begin_step, 0), steps - 1)
        end = min(max(self.end_step, begin + 1), steps)
        frequency = min(max(self.frequency, 1), end - begin)
        while (end - begin) % frequency:
            frequency -= 1
        return PruningSteps(begin, end, frequency)

    def updates(self) -> Iterator[int]:
        """The training steps, from 1, in which TF-MOT chooses masks."""
        return (step for step in range(self.begin_step, self.end_step + 1, self.frequency) if step >= 1)

    def final_epoch(self, steps_per_epoch: int) -> int:
        """The first epoch (counted from 1) at whose end the masks are final."""
        return -(-self.end_step // steps_per_epoch)

    def __str__(self) -> str:
        return f"begin_step {self.begin_step}, end_step {self.end_step}, frequency {self.frequency}"


# TF-MOT cuts the pattern 2:4 at its first step, whatever the schedule says, and never again.
AT_ONCE = PruningSteps(begin_step=0, end_step=1, frequency=1)


def plan_steps(epochs: int, steps_per_epoch: int, ramp_fraction: float = 0.5) -> PruningSteps:
    """Plan a schedule that raises the sparsity in the first part of a run and leaves the rest to recover.

    Args:
        epochs: of the pruning run.
        steps_per_epoch: batches in an epoch.
        ramp_fraction: share of the run until the target is reached (or, with a constant schedule, until the masks are
            final); a short ramp leaves more steps to recover in, a long one is gentler on the way.

    Raises:
        CompressionError: `ramp_fraction` is not in (0, 1], or the run has a single step.
    """
    steps = epochs * steps_per_epoch
    if not 0 < ramp_fraction <= 1:
        raise CompressionError(f"ramp_fraction must be in (0, 1], got {ramp_fraction}")
    if steps < 2:  # noqa: PLR2004 - one step to zero weights, one to recover
        raise CompressionError(
            f"pruning needs at least 2 training steps, got {steps}: train more epochs or more images"
        )
    ramp = max(1, int(steps * ramp_fraction))
    frequency = max(1, ramp // _UPDATES)
    return PruningSteps(begin_step=0, end_step=ramp - ramp % frequency, frequency=frequency)


_CUBIC = 3


def wrap_model(model: Any, allocation: Allocation, steps: PruningSteps) -> Any:
    """Return a copy in which TF-MOT's wrapper zeroes the weights of each layer that gets zeros, as training goes on.

    Layers are wrapped one by one: TF-MOT wraps a whole model only if it knows every layer in it. Each wrapper has a
    schedule of its own with its layer's share, which is how TF-MOT comes to know any allocation but the uniform one.
    """
    shares = {id(layer): allocation.pruned.get(name) for name, layer in prunable_layers(model).items()}

    def wrap(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=wrap)
        copy = layer.__class__.from_config(layer.get_config())
        share = shares.get(id(layer))
        return copy if share is None else _wrapped(copy, share, allocation.target, steps)

    wrapped = keras.models.clone_model(model, clone_function=wrap)
    _copy_weights(layers_by_path(model), _layers_by_original_name(wrapped))  # clone_model makes new random weights
    return wrapped


def strip_model(wrapped: Any, original: Any, allocation: Allocation) -> Any:
    """Return the plain model of a wrapped one, its masks applied and counted.

    `tfmot.sparsity.keras.strip_pruning` gives the same function, but of layers that belong to two models, which
    then have two inputs each; a clone of the original has only what a model file needs.

    Raises:
        CompressionError: a mask does not hold exactly the zeros that were asked for.
    """
    plain = keras.models.clone_model(original)
    layers = layers_by_path(plain)
    _copy_weights(_layers_by_original_name(wrapped), layers)
    found = wrappers(wrapped)
    for name, share in allocation.pruned.items():
        kernel, mask = kernel_of(layers[name]), mask_of(found[name]).numpy()
        zeroed = int(np.count_nonzero(mask == 0))
        if zeroed != share.zeros:
            raise CompressionError(
                f"pruning left {zeroed} of {mask.size} weights of {name} zeroed, expected {share.zeros}: the run was "
                "not finished; train on in the same folder"
            )
        kernel.assign(np.where(mask == 0, np.float32(0), kernel.numpy()))
    return plain


class ExactMasks(keras.callbacks.Callback):
    """Replaces TF-MOT's masks by exact ones at the step where they become final.

    TF-MOT keeps all weights at its threshold or above, so ties keep too many; from `end_step` on it changes no mask.
    A run that resumes later finds the exact masks in its checkpoint and leaves them alone.
    """

    def __init__(self, allocation: Allocation, end_step: int) -> None:
        """Remember the zeros of each layer and the step, counted in training steps from 1, at which masks are final."""
        super().__init__()
        self.allocation = allocation
        self.end_step = end_step
        self._open: dict[str, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the wrapped layers whose masks are not final yet."""
        self._open = {name: layer for name, layer in wrappers(self.model).items() if not self._is_exact(name, layer)}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Fix the masks once, after TF-MOT's last update of them."""
        if not self._open or any(int(layer.pruning_step) < self.end_step for layer in self._open.values()):
            return
        for name, layer in self._open.items():
            mask, zeros = mask_of(layer), self.allocation.pruned[name].zeros
            kernel = kernel_of(layer.layer).numpy()
            mask.assign(exact_mask(kernel, zeros, self.allocation.target, held=mask.numpy()))
        self._open = {}

    def _is_exact(self, name: str, layer: Any) -> bool:
        zeroed = int(np.count_nonzero(mask_of(layer).numpy() == 0))
        return int(layer.pruning_step) >= self.end_step and zeroed == self.allocation.pruned[name].zeros


def wrappers(model: Any) -> dict[str, Any]:
    """Original name -> wrapper of each wrapped layer."""
    return {
        f"{name.removesuffix(layer.name)}{layer.layer.name}": layer
        for name, layer in layers_by_path(model).items()
        if _is_wrapper(layer)
    }


def mask_of(wrapper: Any) -> Any:
    """The mask variable; prunable layers have one kernel each."""
    ((_, mask, _),) = wrapper.pruning_vars
    return mask


def _wrapped(layer: Any, share: LayerTarget, target: SparsityTarget, steps: PruningSteps) -> Any:
    api = tfmot().sparsity.keras
    if target.pattern == "2:4":
        once = api.ConstantSparsity(TWO_OF_FOUR, begin_step=0)
        return api.prune_low_magnitude(layer, pruning_schedule=once, sparsity_m_by_n=(2, 4))
    schedule = make_schedule(share.sparsity, target, steps)
    block = target.block if target.pattern == "block" else (1, 1)
    return api.prune_low_magnitude(layer, pruning_schedule=schedule, block_size=block)


def make_schedule(sparsity: float, target: SparsityTarget, steps: PruningSteps) -> Any:
    """TF-MOT's schedule of one layer: wrappers keep what they are given, so each has its own."""
    api = tfmot().sparsity.keras
    if target.schedule == "constant":
        return api.ConstantSparsity(sparsity, **asdict(steps))
    start = min(target.initial_sparsity, sparsity)
    power = target.power if target.schedule == "polynomial" else _CUBIC
    return api.PolynomialDecay(start, sparsity, power=power, **asdict(steps))


def _is_wrapper(layer: Any) -> bool:
    return hasattr(layer, "pruning_vars")


def _layers_by_original_name(wrapped: Any) -> dict[str, Any]:
    """Every layer, wrapped ones under the name of what they wrap; a wrapper's weights are those of what it wraps."""
    others = {name: layer for name, layer in layers_by_path(wrapped).items() if not _is_wrapper(layer)}
    return {**others, **wrappers(wrapped)}


def _copy_weights(source: dict[str, Any], target: dict[str, Any]) -> None:
    for name, layer in source.items():
        target[name].set_weights(layer.get_weights())


SplitImages = tuple[np.ndarray, np.ndarray]


class TrainingConfig(Protocol):
    """What pruning has to know of a training configuration (`train.FitConfig` is one)."""

    @property
    def epochs(self) -> int:
        """Passes over the training images."""

    @property
    def ema_decay(self) -> float:
        """Of a running average of the weights; 0 for none."""

    def steps_per_epoch(self, images: int) -> int:
        """Training steps in an epoch of so many images."""


def prune_weights(  # noqa: PLR0917 - the first six are those of `fit`, in its order
    model: Any,
    train: SplitImages,
    dev: SplitImages,
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
    """Return a copy of `model` with the asked share of weights exactly zero, trained on; `model` is left as it is.

    `allocate` shares the zeros out among the Conv2D, Dense and SeparableConv2D (pointwise) kernels; the head,
    depthwise kernels, biases and batch norms are left out (`measure_sparsity` lists them). The sparsity follows the
    target's schedule, then the masks are fixed, exactly as many zeros per kernel as allocated, and the rest of the run
    recovers what was lost. The best epoch is chosen among those with final masks. Resumes from `run_dir` as `fit`
    does.

    Args:
        model: plain functional or Sequential model, nested models included.
        train: (images, labels), as `fit` takes them.
        dev: likewise; chooses the best epoch.
        spec: how the model wants its images.
        config: of the run: a lower learning rate than in base training keeps what was learned.
        run_dir: folder of this run alone.
        fit: `cxr_compress.train.fit`, or a partial of it that fixes the weights of the loss or a teacher.
        findings: names of the label columns.
        target: how many zeros, where, in which pattern, on which curve.
        target_sparsity: short for `SparsityTarget(sparsity=...)`.
        steps: when weights are zeroed; None plans it from `ramp_fraction`. The pattern 2:4 has its own.
        ramp_fraction: share of the run until the target is reached.
        progress: takes lines of progress; None is silent.

    Returns:
        A plain uncompiled `keras.Model` with the layers of `model`.

    Raises:
        CompressionError: the target is out of range, or the run is too short to reach it.
        UnsupportedLayerError: the model is subclassed or has nothing to prune.
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
        extra_callbacks=[tfmot().sparsity.keras.UpdatePruningStep(), ExactMasks(allocation, steps.end_step)],
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
        CompressionError: names the layers with too few.
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

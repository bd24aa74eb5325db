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
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.sparsity.masks import exact_mask, zeros_wanted
from cxr_compress.sparsity.measure import kernel_of, measure_sparsity, named_layers, prunable_layers
from cxr_compress.sparsity.schedule import PruningSteps, plan_steps
from cxr_compress.sparsity.tfmot import sparsity_api

Films = tuple[np.ndarray, np.ndarray]


class TrainingConfig(Protocol):
    """What pruning has to know of a training configuration (``train.FitConfig`` is one)."""

    @property
    def epochs(self) -> int:
        """Passes over the training films."""

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
    target_sparsity: float,
    steps: PruningSteps | None = None,
    ramp_fraction: float = 0.5,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Return a copy of ``model`` with the asked share of weights exactly zero, trained on; ``model`` is left as it is.

    Every Conv2D, Dense and SeparableConv2D (pointwise) kernel gets the same sparsity; the head, depthwise kernels,
    biases and batch norms are left out (``measure_sparsity`` lists them). The sparsity climbs from 0 to the target,
    then the masks are fixed, exactly ``target * weights`` zeros per kernel, and the rest of the run recovers what was
    lost. The best epoch is chosen among those with final masks. Resumes from ``run_dir`` as ``fit`` does.

    Args:
        model: Plain functional or Sequential model, nested models included.
        train: (images, labels), as ``fit`` takes them.
        dev: Likewise; chooses the best epoch.
        spec: How the model wants its films.
        config: Of the run: a lower learning rate than in base training keeps what was learned.
        run_dir: Folder of this run alone.
        fit: ``cxr_compress.train.fit``, or a partial of it that fixes the weights of the loss or a teacher.
        findings: Names of the label columns.
        target_sparsity: Share of zeros in (0, 1).
        steps: When weights are zeroed; None plans it from ``ramp_fraction``.
        ramp_fraction: Share of the run until the target is reached.
        progress: Takes lines of progress; None is silent.

    Returns:
        A plain uncompiled ``keras.Model`` with the layers of ``model``.

    Raises:
        CompressionError: The target is out of range, or the run is too short to reach it.
        UnsupportedLayerError: The model is subclassed or has nothing to prune.
    """
    steps_per_epoch = config.steps_per_epoch(len(train[0]))
    steps = steps or plan_steps(config.epochs, steps_per_epoch, ramp_fraction)
    _check(model, target_sparsity)
    steps.check(config.epochs, steps_per_epoch)
    wrapped = wrap_model(model, target_sparsity, steps)
    fit(
        wrapped,
        train,
        dev,
        spec,
        config,
        run_dir,
        findings=findings,
        extra_callbacks=[
            sparsity_api().UpdatePruningStep(),
            ExactMasks(target_sparsity, steps.end_step),
        ],
        best_from_epoch=steps.final_epoch(steps_per_epoch),
        facts={"target_sparsity": target_sparsity, "pruning": asdict(steps)},
        progress=progress,
    )
    return strip_model(wrapped, model, target_sparsity)


def wrap_model(model: Any, target_sparsity: float, steps: PruningSteps) -> Any:
    """Return a copy in which TF-MOT's wrapper zeroes the weights of each prunable layer as training goes on.

    Layers are wrapped one by one: TF-MOT wraps a whole model only if it knows every layer in it.
    """
    tfmot = sparsity_api()
    prunable = {id(layer) for layer in prunable_layers(model).values()}

    def wrap(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=wrap)
        copy = layer.__class__.from_config(layer.get_config())
        if id(layer) not in prunable:
            return copy
        # A schedule of its own for each layer: wrappers keep what they are given.
        schedule = tfmot.PolynomialDecay(0.0, target_sparsity, **asdict(steps))
        return tfmot.prune_low_magnitude(copy, pruning_schedule=schedule)

    wrapped = keras.models.clone_model(model, clone_function=wrap)
    _copy_weights(dict(named_layers(model)), _layers_by_original_name(wrapped))  # clone_model makes new random weights
    return wrapped


def strip_model(wrapped: Any, original: Any, target_sparsity: float) -> Any:
    """Return the plain model of a wrapped one, its masks applied and counted.

    ``tfmot.sparsity.keras.strip_pruning`` gives the same function, but of layers that belong to two models, which
    then have two inputs each; a clone of the original has only what a model file needs.

    Raises:
        CompressionError: A mask does not hold exactly the zeros that were asked for.
    """
    plain = keras.models.clone_model(original)
    layers = dict(named_layers(plain))
    _copy_weights(_layers_by_original_name(wrapped), layers)
    for name, wrapper in _wrappers(wrapped).items():
        kernel = kernel_of(layers[name])
        mask = _mask_of(wrapper).numpy()
        wanted = zeros_wanted(mask.size, target_sparsity)
        zeroed = int(np.count_nonzero(mask == 0))
        if zeroed != wanted:
            raise CompressionError(
                f"pruning left {zeroed} of {mask.size} weights of {name} zeroed, expected {wanted}: the run was not "
                "finished; train on in the same folder"
            )
        kernel.assign(kernel.numpy() * mask)
    return plain


class ExactMasks(keras.callbacks.Callback):
    """Replaces TF-MOT's masks by exact ones at the step where they become final.

    TF-MOT keeps all weights at its threshold or above, so ties keep too many; from ``end_step`` on it changes no mask.
    A run that resumes later finds the exact masks in its checkpoint and leaves them alone.
    """

    def __init__(self, target_sparsity: float, end_step: int) -> None:
        """Remember the share of zeros and the step, counted in training steps from 1, at which masks are final."""
        super().__init__()
        self.target_sparsity = target_sparsity
        self.end_step = end_step
        self._wrappers: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the wrapped layers whose masks are not final yet."""
        final = [wrapper for wrapper in _wrappers(self.model).values() if not self._is_exact(wrapper)]
        self._wrappers = final

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Fix the masks once, after TF-MOT's last update of them."""
        if not self._wrappers or any(int(wrapper.pruning_step) < self.end_step for wrapper in self._wrappers):
            return
        for wrapper in self._wrappers:
            mask = _mask_of(wrapper)
            mask.assign(exact_mask(kernel_of(wrapper.layer).numpy(), self.target_sparsity, held=mask.numpy()))
        self._wrappers = []

    def _is_exact(self, wrapper: Any) -> bool:
        mask = _mask_of(wrapper).numpy()
        final = int(wrapper.pruning_step) >= self.end_step
        return final and int(np.count_nonzero(mask == 0)) == zeros_wanted(mask.size, self.target_sparsity)


def _check(model: Any, target_sparsity: float) -> None:
    if not 0 < target_sparsity < 1:
        raise CompressionError(f"target_sparsity must be above 0 and below 1, got {target_sparsity}")
    if not (isinstance(model, keras.Sequential) or getattr(model, "_is_graph_network", False)):
        raise UnsupportedLayerError(
            f"weights are pruned in functional and Sequential models, got the subclassed {type(model).__name__}: "
            "rebuild it with the functional API"
        )
    if not measure_sparsity(model).layers:
        raise UnsupportedLayerError(
            f"{model.name} has no kernel to prune: apart from the head, it has no Conv2D, Dense or SeparableConv2D"
        )


def _is_wrapper(layer: Any) -> bool:
    return hasattr(layer, "pruning_vars")


def _wrappers(model: Any) -> dict[str, Any]:
    """Original name -> wrapper of each wrapped layer."""
    return {
        f"{name.removesuffix(layer.name)}{layer.layer.name}": layer
        for name, layer in named_layers(model)
        if _is_wrapper(layer)
    }


def _layers_by_original_name(wrapped: Any) -> dict[str, Any]:
    """Every layer, wrapped ones under the name of what they wrap; a wrapper's weights are those of what it wraps."""
    others = {name: layer for name, layer in named_layers(wrapped) if not _is_wrapper(layer)}
    return {**others, **_wrappers(wrapped)}


def _mask_of(wrapper: Any) -> Any:
    """The mask variable; prunable layers have one kernel each."""
    ((_, mask, _),) = wrapper.pruning_vars
    return mask


def _copy_weights(source: dict[str, Any], target: dict[str, Any]) -> None:
    for name, layer in source.items():
        target[name].set_weights(layer.get_weights())

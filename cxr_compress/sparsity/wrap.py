"""A model's prunable layers in TF-MOT's wrappers, and the plain model out of them again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.masked import kernel_of, named_layers, prunable_layers
from cxr_compress.sparsity.masks import exact_mask
from cxr_compress.sparsity.plan import Allocation, LayerTarget
from cxr_compress.sparsity.schedule import PruningSteps
from cxr_compress.sparsity.target import TWO_OF_FOUR, SparsityTarget
from cxr_compress.sparsity.tfmot import sparsity_api

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
    _copy_weights(dict(named_layers(model)), _layers_by_original_name(wrapped))  # clone_model makes new random weights
    return wrapped


def strip_model(wrapped: Any, original: Any, allocation: Allocation) -> Any:
    """Return the plain model of a wrapped one, its masks applied and counted.

    ``tfmot.sparsity.keras.strip_pruning`` gives the same function, but of layers that belong to two models, which
    then have two inputs each; a clone of the original has only what a model file needs.

    Raises:
        CompressionError: A mask does not hold exactly the zeros that were asked for.
    """
    plain = keras.models.clone_model(original)
    layers = dict(named_layers(plain))
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

    TF-MOT keeps all weights at its threshold or above, so ties keep too many; from ``end_step`` on it changes no mask.
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
        for name, layer in named_layers(model)
        if _is_wrapper(layer)
    }


def mask_of(wrapper: Any) -> Any:
    """The mask variable; prunable layers have one kernel each."""
    ((_, mask, _),) = wrapper.pruning_vars
    return mask


def _wrapped(layer: Any, share: LayerTarget, target: SparsityTarget, steps: PruningSteps) -> Any:
    tfmot = sparsity_api()
    if target.pattern == "2:4":
        once = tfmot.ConstantSparsity(TWO_OF_FOUR, begin_step=0)
        return tfmot.prune_low_magnitude(layer, pruning_schedule=once, sparsity_m_by_n=(2, 4))
    schedule = make_schedule(share.sparsity, target, steps)
    block = target.block if target.pattern == "block" else (1, 1)
    return tfmot.prune_low_magnitude(layer, pruning_schedule=schedule, block_size=block)


def make_schedule(sparsity: float, target: SparsityTarget, steps: PruningSteps) -> Any:
    """TF-MOT's schedule of one layer: wrappers keep what they are given, so each has its own."""
    tfmot = sparsity_api()
    if target.schedule == "constant":
        return tfmot.ConstantSparsity(sparsity, **asdict(steps))
    start = min(target.initial_sparsity, sparsity)
    power = target.power if target.schedule == "polynomial" else _CUBIC
    return tfmot.PolynomialDecay(start, sparsity, power=power, **asdict(steps))


def _is_wrapper(layer: Any) -> bool:
    return hasattr(layer, "pruning_vars")


def _layers_by_original_name(wrapped: Any) -> dict[str, Any]:
    """Every layer, wrapped ones under the name of what they wrap; a wrapper's weights are those of what it wraps."""
    others = {name: layer for name, layer in named_layers(wrapped) if not _is_wrapper(layer)}
    return {**others, **wrappers(wrapped)}


def _copy_weights(source: dict[str, Any], target: dict[str, Any]) -> None:
    for name, layer in source.items():
        target[name].set_weights(layer.get_weights())

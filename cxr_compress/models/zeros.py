"""Zeros that weight pruning made, kept through every later training: which they are, held, and checked.

The zeros are held by the optimizer: it applies a variable's constraint inside `apply_gradients`, so that no code
that reads the weights after a step (a running average, a checkpoint, the next forward pass) ever sees another value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path, traits_of


def zero_masks(model: Any) -> dict[str, np.ndarray]:
    """Return where the prunable kernels of a model are zero, to hand to `hold_zeros` or `check_zeros` later.

    Args:
        model: a plain functional or Sequential `keras.Model`, nested models included.

    Returns:
        Layer (of nested models with those models' names in front) -> float32 of its kernel's shape, 1 kept and 0
        zero, for every prunable kernel with a zero in it.
    """
    kernels = {name: kernel_of(layer).numpy() for name, layer in prunable_layers(model).items()}
    return {name: (kernel != 0).astype(np.float32) for name, kernel in kernels.items() if np.any(kernel == 0)}


def hold_zeros(pairs: Iterable[tuple[Any, np.ndarray]]) -> None:
    """Set the masked entries of variables to 0, and keep them there in every step of any Keras optimizer.

    It lasts as long as the variable does; another call on the same variable replaces its mask. A constraint that the
    layer itself brings still applies, before the mask. Neither a configuration, a clone nor a saved file knows of it.

    Args:
        pairs: variables, mixed-precision and replicated ones included, and their masks (1 kept, 0 zero).

    Raises:
        CompressionError: a mask has not the shape of its variable.
    """
    for variable, mask in pairs:
        if tuple(variable.shape) != np.shape(mask):
            raise CompressionError(
                f"the mask of {variable.name} has shape {np.shape(mask)}, the variable {tuple(variable.shape)}: take "
                "the masks from a model with the same widths"
            )
        held = _constrained_variable(variable)
        before = held.constraint.inner if isinstance(held.constraint, _Hold) else held.constraint
        held._constraint = _Hold(mask, before)
        # Only where something is left to do: in a replicated model an assignment asks every worker.
        value = variable.numpy()
        if np.any(value[mask == 0]):
            variable.assign(np.where(mask == 0, value.dtype.type(0), value))


def check_zeros(model: Any, masks: Mapping[str, np.ndarray]) -> None:
    """Fail when a zero of the masks is no zero in the model.

    Args:
        model: as for `zero_masks`.
        masks: what `zero_masks` gave before.

    Raises:
        CompressionError: names each layer that lost zeros, or that is not there with the mask's shape.
    """
    kernels = {name: kernel_of(layer).numpy() for name, layer in prunable_layers(model).items()}
    for name, mask in masks.items():
        if name not in kernels or kernels[name].shape != mask.shape:
            instead = f"shape {kernels[name].shape}" if name in kernels else "no such layer"
            raise CompressionError(
                f"zeros of shape {mask.shape} were kept for {name}, {model.name} has {instead}: take the masks again "
                "after every rebuild"
            )
    lost = {name: int(np.count_nonzero(kernels[name][mask == 0])) for name, mask in masks.items()}
    lines = [f"{count} of {np.count_nonzero(masks[name] == 0)} in {name}" for name, count in lost.items() if count]
    if lines:
        raise CompressionError(
            f"{model.name} lost zeros that weight pruning made: {', '.join(lines)}; train it with its masks held"
        )


def prunable_layers(model: Any) -> dict[str, Any]:
    """Return name -> layer for every layer with a kernel that weight pruning may touch, in the model's order."""
    heads = head_names(model)
    return {
        name: layer for name, layer in layers_by_path(model).items() if traits_of(layer).prunable and name not in heads
    }


def kernel_of(layer: Any) -> Any:
    """Return the variable that weight pruning touches in a prunable layer."""
    return getattr(layer, traits_of(layer).kernel)


def head_names(model: Any) -> set[str]:
    """Names of the layers that make the outputs: from each output upwards, the first layers that hold a kernel."""
    return _heads_above(model.outputs, "", set())


def _constrained_variable(variable: Any) -> Any:
    """Return what stores a constraint: the variable inside a mixed-precision one, the first of a mirrored one."""
    variable = getattr(variable, "_variable", variable)
    return getattr(variable, "_primary", variable)


def variable_name(name: str) -> str:
    """Return "kernel" for "block/conv/kernel:0"."""
    return name.rsplit("/", 1)[-1].split(":", maxsplit=1)[0]


class _Hold:
    """A variable constraint: 0 where the mask says so, whatever the optimizer made of it."""

    def __init__(self, mask: np.ndarray, inner: Any | None) -> None:
        self.inner = inner
        # Made outside of any traced function, so that those capture it instead of copying it into their graphs.
        with tf.init_scope():
            self._keep = tf.constant(np.asarray(mask) != 0)

    def __call__(self, value: Any) -> Any:
        value = tf.convert_to_tensor(value if self.inner is None else self.inner(value))
        # Not a product: 0 times infinity is no 0, and -0.0 would deflate worse than 0.0.
        return tf.where(self._keep, value, tf.zeros((), value.dtype))


def _heads_above(tensors: Sequence[Any], prefix: str, seen: set[int]) -> set[str]:
    names: set[str] = set()
    for tensor in tensors:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        node = tensor.node
        if isinstance(node.layer, keras.Model):
            above = _heads_above(node.layer.outputs, f"{prefix}{node.layer.name}/", seen)
        else:
            above = {f"{prefix}{node.layer.name}"} if _has_kernel(node.layer) else set()
        names |= above or _heads_above([] if node.is_input else node.keras_inputs, prefix, seen)
    return names


def _has_kernel(layer: Any) -> bool:
    return any(variable_name(weight.name).endswith("kernel") for weight in layer.weights)


@contextlib.contextmanager
def zeros_held(model: Any, masks: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Within it no optimizer step changes the zeros of the masks; after it the model is as free as it was before.

    Args:
        model: what is trained; its weights are already zero where the masks say so.
        masks: layer -> float32 mask, as `models.zeros.zero_masks` gives them.
    """
    layers = prunable_layers(model) if masks else {}
    kernels = {name: kernel_of(layers[name]) for name in masks}
    stores = [_constrained_variable(kernel) for kernel in kernels.values()]
    before = [store.constraint for store in stores]
    hold_zeros((kernels[name], mask) for name, mask in masks.items())
    try:
        yield
    finally:
        for store, constraint in zip(stores, before, strict=True):
            store._constraint = constraint

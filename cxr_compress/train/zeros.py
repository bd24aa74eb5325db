"""Zeros of weight pruning that stay zero while a model is trained on, and only that long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cxr_compress.models.masked import constrained_variable, hold_zeros, kernel_of, prunable_layers


@contextlib.contextmanager
def zeros_held(model: Any, masks: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Within it no optimiser step changes the zeros of the masks; after it the model is as free as it was before.

    Args:
        model: What is trained; its weights are already zero where the masks say so.
        masks: Layer -> float32 mask, as ``models.masked.zero_masks`` gives them.
    """
    layers = prunable_layers(model) if masks else {}
    kernels = {name: kernel_of(layers[name]) for name in masks}
    stores = [constrained_variable(kernel) for kernel in kernels.values()]
    before = [store.constraint for store in stores]
    hold_zeros((kernels[name], mask) for name, mask in masks.items())
    try:
        yield
    finally:
        for store, constraint in zip(stores, before, strict=True):
            store._constraint = constraint

"""What was asked of each kernel beside what a model has: the per-layer table of a pruning run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.models.masked import kernel_of, prunable_layers
from cxr_compress.sparsity.plan import Allocation


@dataclass(frozen=True)
class LayerOutcome:
    """One kernel after pruning.

    Attributes:
        name: Of the layer.
        weights: In its kernel.
        zeros_asked: What it was allocated before training.
        zeros: What it has.
        threshold: Magnitude below which weights were to go, where a threshold decided; else None.
        still_below: Weights that are not zero but below the threshold: they were above it when the run began, and
            training moved them; None without a threshold.
    """

    name: str
    weights: int
    zeros_asked: int
    zeros: int
    threshold: float | None
    still_below: int | None

    @property
    def sparsity(self) -> float:
        """Zeros per weight, in [0, 1]."""
        return self.zeros / self.weights


def layer_outcomes(model: Any, allocation: Allocation) -> tuple[LayerOutcome, ...]:
    """Compare a pruned model with what was allocated, one entry per prunable kernel in the model's order.

    Args:
        model: What ``prune_weights`` returned, or a later stage's model of the same layers.
        allocation: What ``allocate`` said of the model before pruning.
    """
    kernels = {name: kernel_of(layer).numpy() for name, layer in prunable_layers(model).items()}
    outcomes = []
    for layer in allocation.layers:
        magnitude = np.abs(kernels[layer.name])
        zeros = int(np.count_nonzero(magnitude == 0))
        below = None if layer.below is None else int(np.count_nonzero(magnitude < layer.below)) - zeros
        outcomes.append(LayerOutcome(layer.name, magnitude.size, layer.zeros, zeros, layer.below, below))
    return tuple(outcomes)

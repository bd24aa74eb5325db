"""Weight pruning with TF-MOT: the smallest weights become exact zeros. Importing this loads TensorFlow."""

from __future__ import annotations

from cxr_compress.sparsity.allocate import Allocation, LayerSparsity, LayerTarget, allocate
from cxr_compress.sparsity.masks import SparsityTarget
from cxr_compress.sparsity.measure import (
    LayerOutcome,
    SizeStatement,
    SparsityReport,
    layer_outcomes,
    measure_sparsity,
    size_statement,
)
from cxr_compress.sparsity.prune import PruningSteps, check_allocation, plan_steps, prune_weights

__all__ = [
    "Allocation",
    "LayerOutcome",
    "LayerSparsity",
    "LayerTarget",
    "PruningSteps",
    "SizeStatement",
    "SparsityReport",
    "SparsityTarget",
    "allocate",
    "check_allocation",
    "layer_outcomes",
    "measure_sparsity",
    "plan_steps",
    "prune_weights",
    "size_statement",
]

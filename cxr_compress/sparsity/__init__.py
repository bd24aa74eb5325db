"""Weight pruning with TF-MOT: the smallest weights become exact zeros. Importing this loads TensorFlow."""

from __future__ import annotations

from cxr_compress.sparsity.measure import LayerSparsity, SparsityReport, measure_sparsity
from cxr_compress.sparsity.outcome import LayerOutcome, layer_outcomes
from cxr_compress.sparsity.plan import Allocation, LayerTarget, allocate
from cxr_compress.sparsity.prune import check_allocation, prune_weights
from cxr_compress.sparsity.schedule import PruningSteps, plan_steps
from cxr_compress.sparsity.size import SizeStatement, size_statement
from cxr_compress.sparsity.target import SparsityTarget
from cxr_compress.sparsity.xnnpack import XnnpackSparse, xnnpack_sparse

__all__ = [
    "Allocation",
    "LayerOutcome",
    "LayerSparsity",
    "LayerTarget",
    "PruningSteps",
    "SizeStatement",
    "SparsityReport",
    "SparsityTarget",
    "XnnpackSparse",
    "allocate",
    "check_allocation",
    "layer_outcomes",
    "measure_sparsity",
    "plan_steps",
    "prune_weights",
    "size_statement",
    "xnnpack_sparse",
]

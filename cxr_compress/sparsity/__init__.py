"""Weight pruning with TF-MOT: the smallest weights become exact zeros. Importing this loads TensorFlow."""

from __future__ import annotations

from cxr_compress.sparsity.measure import LayerSparsity, SparsityReport, measure_sparsity
from cxr_compress.sparsity.prune import prune_weights
from cxr_compress.sparsity.schedule import PruningSteps, plan_steps

__all__ = ["LayerSparsity", "PruningSteps", "SparsityReport", "measure_sparsity", "plan_steps", "prune_weights"]

"""Structured pruning: find the filters that may go, choose them within a budget, and build the pruned model.

Four steps, each of which returns plain data or a new model: `analyze_channels`, `score_channels`, `select_channels`,
`remove_channels`. The first use of a name loads TensorFlow where it needs that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cxr_compress.structured.analysis import ChannelAnalysis, ChannelGroup
from cxr_compress.structured.budget import Budget
from cxr_compress.structured.cost import ModelCost
from cxr_compress.structured.criteria.base import register_criterion, score_channels
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.select import select_channels
from cxr_compress.structured.sensitivity_curves import Curve, Sensitivity

if TYPE_CHECKING:
    from cxr_compress.structured.analyze import KernelSurvey, analyze_channels, measure_cost, survey_kernels
    from cxr_compress.structured.rebuild import remove_channels, remove_iteratively
    from cxr_compress.structured.repair.recalibrate import NormStatistics, measure_batch_norms, recalibrate_batch_norm
    from cxr_compress.structured.repair.reconstruct import (
        ReconstructionReport,
        images_that_fit,
        reconstruct_consumers,
    )
    from cxr_compress.structured.repair.variations import vary_images
    from cxr_compress.structured.rules.base import (
        ConfigSize,
        KernelUse,
        LayerFlow,
        LayerNode,
        WeightAxis,
        register_rule,
    )
    from cxr_compress.structured.sensitivity import measure_sensitivity

_MODULES = {
    "analyze": ("KernelSurvey", "analyze_channels", "measure_cost", "survey_kernels"),
    "rebuild": ("remove_channels", "remove_iteratively"),
    "repair.recalibrate": ("NormStatistics", "measure_batch_norms", "recalibrate_batch_norm"),
    "repair.reconstruct": ("ReconstructionReport", "images_that_fit", "reconstruct_consumers"),
    "repair.variations": ("vary_images",),
    "rules.base": ("ConfigSize", "KernelUse", "LayerFlow", "LayerNode", "WeightAxis", "register_rule"),
    "sensitivity": ("measure_sensitivity",),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Budget",
    "ChannelAnalysis",
    "ChannelGroup",
    "ChannelPlan",
    "ConfigSize",
    "Curve",
    "KernelSurvey",
    "KernelUse",
    "LayerFlow",
    "LayerNode",
    "ModelCost",
    "NormStatistics",
    "ReconstructionReport",
    "Sensitivity",
    "WeightAxis",
    "analyze_channels",
    "images_that_fit",
    "measure_batch_norms",
    "measure_cost",
    "measure_sensitivity",
    "recalibrate_batch_norm",
    "reconstruct_consumers",
    "register_criterion",
    "register_rule",
    "remove_channels",
    "remove_iteratively",
    "score_channels",
    "select_channels",
    "survey_kernels",
    "vary_images",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: flags that list the criteria should not wait for TensorFlow."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)

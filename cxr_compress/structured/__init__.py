"""Structured pruning: find the filters that may go, choose them within a budget, and build the thinner model.

Four steps, each of which returns plain data or a new model: `analyze_channels`, `score_channels`, `select_channels`,
`remove_channels`.
"""

from cxr_compress.structured.analyze import analyze_channels, measure_cost
from cxr_compress.structured.channels import ChannelAnalysis, ChannelGroup
from cxr_compress.structured.cost import ModelCost
from cxr_compress.structured.flow import ConfigSize, KernelUse, LayerFlow, LayerNode, WeightAxis, register_rule
from cxr_compress.structured.importance import score_channels
from cxr_compress.structured.iterate import remove_iteratively
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.rebuild import remove_channels
from cxr_compress.structured.reconstruct import recalibrate_batch_norm
from cxr_compress.structured.select import Budget, select_channels

__all__ = [
    "Budget",
    "ChannelAnalysis",
    "ChannelGroup",
    "ChannelPlan",
    "ConfigSize",
    "KernelUse",
    "LayerFlow",
    "LayerNode",
    "ModelCost",
    "WeightAxis",
    "analyze_channels",
    "measure_cost",
    "recalibrate_batch_norm",
    "register_rule",
    "remove_channels",
    "remove_iteratively",
    "score_channels",
    "select_channels",
]

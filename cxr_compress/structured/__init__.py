"""Structured pruning: find the filters that may go, choose them within a budget, and build the thinner model.

Four steps, each of which returns plain data or a new model: `analyze_channels`, `score_channels`, `select_channels`,
`remove_channels`.
"""

from cxr_compress.structured.analysis import ChannelAnalysis, ChannelGroup
from cxr_compress.structured.analyze import analyze_channels, measure_cost
from cxr_compress.structured.budget import Budget
from cxr_compress.structured.cost import ModelCost
from cxr_compress.structured.importance import score_channels
from cxr_compress.structured.iterate import remove_iteratively
from cxr_compress.structured.measured_parts import KernelSurvey, survey_kernels
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.rebuild import remove_channels
from cxr_compress.structured.repair.recalibrate import NormStatistics, measure_batch_norms, recalibrate_batch_norm
from cxr_compress.structured.repair.reconstruct import ReconstructionReport, reconstruct_consumers
from cxr_compress.structured.rules.base import ConfigSize, KernelUse, LayerFlow, LayerNode, WeightAxis, register_rule
from cxr_compress.structured.select import select_channels
from cxr_compress.structured.sensitivity import measure_sensitivity
from cxr_compress.structured.sensitivity_curves import Curve, Sensitivity

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
    "measure_batch_norms",
    "measure_cost",
    "measure_sensitivity",
    "recalibrate_batch_norm",
    "reconstruct_consumers",
    "register_rule",
    "remove_channels",
    "remove_iteratively",
    "score_channels",
    "select_channels",
    "survey_kernels",
]

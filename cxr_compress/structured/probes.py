"""Which kinds of kernel a model runs and between which widths: what there is to time for a budget on latency."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from cxr_compress.device.kernel_kind import LayerUse, ProbeSpec
from cxr_compress.structured.channels import ChannelAnalysis
from cxr_compress.structured.measured import FileCounts

# Thinner than this few layers get; the fit goes on below in straight lines.
_LEAST_SHARE = 1 / 8


@dataclass(frozen=True)
class KernelSurvey:
    """What the uncut model runs, as plain data.

    Attributes:
        probes: each kind of kernel once, with the widths that a thinner model may give it.
        uses: every use of a kernel.
        moved: elements that layers without a kernel read or write.
        file_counts: what the bytes of the model's file are split by.
    """

    probes: tuple[ProbeSpec, ...]
    uses: tuple[LayerUse, ...]
    moved: int
    file_counts: FileCounts


def survey_kernels(analysis: ChannelAnalysis) -> KernelSurvey:
    """List the kinds of kernel of an analysed model; widths reach down to an eighth of every group that may shrink."""
    whole = np.ones(analysis.units, dtype=np.bool_)
    least = whole.copy()
    for group in analysis.groups.values():
        least[group.start + ceil(group.channels * _LEAST_SHARE) : group.start + group.channels] = False
    model, counts = analysis.cost_model, analysis.cost_model.counts(whole)
    measured = model.measured
    return KernelSurvey(
        probes=measured.probe_specs(counts, model.counts(least)),
        uses=measured.uses(counts),
        moved=measured.moved(counts),
        file_counts=measured.file_counts(counts),
    )

"""From scores and a budget to a plan: which channels of which group stay.

Every group gives a row of steps, each of which takes its lowest-scored channels down to the next multiple of
`round_to`; where whole layers may go, so does each block of them. All steps stand in one fixed order, and the plan is
the shortest prefix of it that meets the budget; cost falls with every step, so bisection finds that prefix. The budget
is therefore met from below, within one step. Only `scope="latency"` counts anew on the way what a step saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.errors import CompressionError
from cxr_compress.structured.analysis import ChannelAnalysis, path_matcher
from cxr_compress.structured.budget import Budget, unreachable
from cxr_compress.structured.candidates import Candidates, Channels, FloatVector, Step
from cxr_compress.structured.cost import BoolArray
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.sensitivity_curves import Sensitivity

SCOPES = ("global", "local", "sensitivity", "latency")


def select_channels(
    analysis: ChannelAnalysis,
    scores: Mapping[str, npt.NDArray[np.float64]],
    budget: Budget,
    *,
    scope: str = "global",
    round_to: int = 8,
    min_channels: int = 1,
    max_removed_fraction: float = 1.0,
    overrides: Mapping[str, float] | None = None,
    widths: Mapping[str, int] | None = None,
    sensitivity: Sensitivity | None = None,
    cost_table: CostTable | None = None,
    layers: bool = False,
) -> ChannelPlan:
    """Choose the channels to keep so that the model just meets a budget.

    Args:
        analysis: the model's channels.
        scores: by group, (channels,) higher means keep; see `score_channels`.
        budget: what the pruned model may cost.
        scope: "global" ranks the channels of all groups together; "local" takes the same share of every group;
            "sensitivity" takes first what adds the least measured error for what it frees of the tightest bound, and
            scores rank inside a group only. Errors of different groups are taken to add up (Li 2016, section 3.2, sets
            the share of each layer by the same one-by-one measurement, by hand), and savings are counted with all
            other groups whole. The groups it likes best may lose almost all: keep `max_removed_fraction` below 1.
            "latency" takes first what loses the least for each millisecond that it saves by the cost table, counted
            anew as the model gets smaller; what is lost is the measured error where `sensitivity` is given, else the
            sum of the scores, which must then compare between groups (`normalizer="none"`).
        round_to: groups that lose channels keep a multiple of this. Runtimes compute in blocks of 4 or 8 channels, so
            odd widths cost time without giving accuracy; smaller values meet a budget more closely.
        min_channels: no group goes below this.
        max_removed_fraction: no group loses more than this share; guards global mode against emptied layers.
        overrides: other shares for some groups: regular expression -> max_removed_fraction of every group with a
            member whose whole path it matches; the last match counts.
        widths: by group, how many channels it started with, where the model was pruned before: shares are of those.
        sensitivity: of this model, for scope="sensitivity", and "latency"; see `measure_sensitivity`.
        cost_table: measured costs of the original model, for budgets on tflite_bytes and latency_ms. Where it is given,
            the plan's costs hold the predicted bytes and milliseconds too.
        layers: also take whole layers, where the wiring allows it (`ChannelAnalysis.blocks`): dense layers, branches of
            residual blocks. With "local" the same share of those of each image size as of the channels; with "global"
            they compete by their importance over that of the mean block. It is the error measured without them where
            `sensitivity` is given, else the sum of their scores. Of those of one image size no larger share goes than
            `max_removed_fraction`: each alone hardly shows, all together do.

    Raises:
        BudgetError: the budget lies below what can be reached; the message says what can be, and what is in the way.
        CompressionError: scores that do not fit the groups, options outside their range, or an override whose pattern
            is no regular expression or matches no layer.
    """
    if scope not in SCOPES:
        raise CompressionError(f"expected scope to be one of {', '.join(SCOPES)}; got {scope!r}")
    floors = _floors(analysis, _Floor(round_to, min_channels, max_removed_fraction), overrides or {})
    check_scores(analysis, scores)
    if cost_table is not None:
        analysis = analysis.priced(cost_table)
    limits = budget.limits(analysis.baseline)
    constraints: dict[str, Any] = {
        "round_to": round_to,
        "min_channels": min_channels,
        "max_removed_fraction": max_removed_fraction,
        "overrides": dict(overrides or {}),
    }
    candidates = Candidates(
        analysis,
        scores,
        sensitivity,
        _rows(analysis, scores, floors, widths or {}),
        _blocks(analysis, scores, sensitivity, floors) if layers else {},
        max_removed_fraction,
    )
    if scope == "latency":
        keep = candidates.by_latency(lambda keep: not _exceeded(analysis, keep, limits))
        missed = _exceeded(analysis, keep, limits)
        if missed:
            raise unreachable(analysis, keep, missed, constraints)
    else:
        steps = candidates.steps(scope, limits)
        keep = _keep_after(analysis, steps[: _shortest_prefix(analysis, steps, limits, constraints)])
    settings = {"scope": scope, **({"layers": True} if layers else {}), **constraints, "budget": budget.settings()}
    return ChannelPlan.of(analysis, keep, settings)


@dataclass(frozen=True)
class _Floor:
    """How far down a group may go."""

    round_to: int
    min_channels: int
    max_removed_fraction: float

    def __post_init__(self) -> None:
        if self.round_to < 1 or self.min_channels < 1:
            raise CompressionError(
                f"expected round_to and min_channels of 1 or more; got {self.round_to} and {self.min_channels}"
            )
        if not 0 <= self.max_removed_fraction <= 1:
            raise CompressionError(f"expected max_removed_fraction in [0, 1]; got {self.max_removed_fraction}")

    def widths(self, channels: int, started: int) -> list[int]:
        """The widths that a group passes through, from its own down to the smallest allowed of what it started with."""
        # Rounded before the ceiling: (1 - 0.9) * 10 is 1.0000000000000002 in floating point.
        share = ceil(round(started * (1 - self.max_removed_fraction), 9))
        floor = max(1, self.min_channels, share)
        smallest = self.round_to * ceil(floor / self.round_to)
        top = self.round_to * ((channels - 1) // self.round_to)
        return [channels, *range(top, smallest - 1, -self.round_to)]


def _floors(analysis: ChannelAnalysis, usual: _Floor, overrides: Mapping[str, float]) -> dict[str, _Floor]:
    """How far down each group may go."""
    floors = dict.fromkeys(analysis.groups, usual)
    for pattern, share in overrides.items():
        matches = path_matcher(pattern, "overrides")
        matched = [name for name, group in analysis.groups.items() if any(map(matches, group.members))]
        if not matched:
            raise CompressionError(f"override {pattern!r} matches no layer whose filters may go; see analyze_channels")
        floors.update(dict.fromkeys(matched, replace(usual, max_removed_fraction=share)))
    return floors


def _rows(
    analysis: ChannelAnalysis,
    scores: Mapping[str, FloatVector],
    floors: Mapping[str, _Floor],
    started: Mapping[str, int],
) -> dict[str, list[Channels]]:
    """By group, the channels that go in each of its steps, the lowest-scored first."""
    rows = {}
    for name, group in analysis.groups.items():
        weakest = np.argsort(scores[name], kind="stable")
        widths = floors[name].widths(group.channels, started.get(name, group.channels))
        rows[name] = [weakest[group.channels - before : group.channels - after] for before, after in pairwise(widths)]
    return rows


def _blocks(
    analysis: ChannelAnalysis,
    scores: Mapping[str, FloatVector],
    sensitivity: Sensitivity | None,
    floors: Mapping[str, _Floor],
) -> dict[str, float]:
    """By name, the importance of each block of layers that may go: of none whose channels are to stay."""
    blocks = {}
    for name, block in analysis.blocks.items():
        if all(floors[group].max_removed_fraction > 0 for group in block.groups):
            summed = sum(float(scores[group].sum()) for group in block.groups)
            blocks[name] = summed if sensitivity is None else sensitivity.block(name)
    return blocks


def _keep_after(analysis: ChannelAnalysis, steps: list[Step]) -> BoolArray:
    keep = np.ones(analysis.set_count, dtype=np.bool_)
    for step in steps:
        keep[step.sets] = False
    return keep


def _shortest_prefix(
    analysis: ChannelAnalysis, steps: list[Step], limits: Mapping[str, float], constraints: Mapping[str, object]
) -> int:
    """How many steps it takes until every limit holds.

    Raises:
        BudgetError: not even all of them are enough.
    """

    def exceeded(count: int) -> dict[str, float]:
        return _exceeded(analysis, _keep_after(analysis, steps[:count]), limits)

    low, high = 0, len(steps)
    missed = exceeded(high)
    if missed:
        raise unreachable(analysis, _keep_after(analysis, steps), missed, constraints)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if exceeded(middle) else (low, middle)
    return low


def _exceeded(analysis: ChannelAnalysis, keep: BoolArray, limits: Mapping[str, float]) -> dict[str, float]:
    """The limits that what is kept still exceeds."""
    cost = analysis.cost_model.cost(keep).to_dict()
    return {name: limit for name, limit in limits.items() if cost[name] > limit}


def check_scores(analysis: ChannelAnalysis, scores: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Refuse scores that are not one number, none NaN, per channel of every group.

    Raises:
        CompressionError: scores that do not fit.
    """
    for name, group in analysis.groups.items():
        if name not in scores or scores[name].shape != (group.channels,) or np.isnan(scores[name]).any():
            got = scores[name].shape if name in scores else "nothing"
            raise CompressionError(f"expected {group.channels} scores without NaN for group {name!r}; got {got}")

"""From scores and a budget to a plan: which channels of which group stay.

Every group gives a row of steps, each of which takes its lowest-scored channels down to the next multiple of
`round_to`. All steps stand in one fixed order, and the plan is the shortest prefix of it that meets the budget; cost
falls with every step, so bisection finds that prefix. The budget is therefore met from below, within one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.errors import CompressionError
from cxr_compress.structured.analysis import ChannelAnalysis, ChannelGroup, path_matcher
from cxr_compress.structured.budget import Budget, unreachable
from cxr_compress.structured.cost import BoolArray
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.sensitivity_curves import Sensitivity

FloatVector = npt.NDArray[np.float64]
Channels = npt.NDArray[np.int64]

# (group, its scores, the channels that go in each of its steps) -> the rank of each step, never falling.
Ranker = Callable[[ChannelGroup, FloatVector, Sequence[Channels]], list[float]]


def by_score(group: ChannelGroup, scores: FloatVector, steps: Sequence[Channels]) -> list[float]:
    """The mean score of what goes: all groups compete."""
    return [float(scores[gone].mean()) for gone in steps]


def by_share(group: ChannelGroup, scores: FloatVector, steps: Sequence[Channels]) -> list[float]:
    """The share of the group that is gone after the step: all groups lose alike."""
    return (np.cumsum([len(gone) for gone in steps]) / group.channels).tolist() if steps else []


def by_sensitivity(
    sensitivity: Sensitivity, saving: Callable[[ChannelGroup, Sequence[Channels]], Sequence[float]]
) -> Ranker:
    """The measured error that a step adds, over what it saves.

    Args:
        sensitivity: of the groups.
        saving: what each of a group's steps frees of the budget, 0 or more, in one unit for all groups.
    """

    def rank(group: ChannelGroup, scores: FloatVector, steps: Sequence[Channels]) -> list[float]:
        shares = np.cumsum([0, *(len(gone) for gone in steps)]) / group.channels
        errors = np.diff(sensitivity.curve(group.name, group.channels).error_at(shares))
        return removal_ranks(errors, saving(group, steps))

    return rank


def removal_ranks(errors: Sequence[float] | FloatVector, savings: Sequence[float] | FloatVector) -> list[float]:
    """The rank of each step of a group that is taken in steps: error per saving, never falling from step to step.

    A step that looks dear but opens the way to cheap ones is ranked together with them: the ranks are the slopes of
    the lower convex hull of error over saving. Taken in the order of their ranks, the steps of all groups then give
    the least summed error for what they save, up to the one step that the budget cuts (the greedy solution of a
    continuous knapsack), and a group's own steps stay in their order.

    Args:
        errors: (steps,) what each step adds to the error, 0 or more.
        savings: (steps,) what each frees, 0 or more, in one unit for all groups.
    """
    pools: list[tuple[float, float, int]] = []
    for error, saving in zip(errors, savings, strict=True):
        pool = (float(error), float(saving), 1)
        while pools and _slope(pools[-1]) > _slope(pool):
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    return [_slope(pool) for pool in pools for _ in range(pool[2])]


def _slope(pool: tuple[float, float, int]) -> float:
    error, saving, _ = pool
    if error == 0:
        return 0.0
    return error / saving if saving > 0 else float("inf")


SCOPES = ("global", "local", "sensitivity")


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
        round_to: groups that lose channels keep a multiple of this. Runtimes compute in blocks of 4 or 8 channels, so
            odd widths cost time without giving accuracy; smaller values meet a budget more closely.
        min_channels: no group goes below this.
        max_removed_fraction: no group loses more than this share; guards global mode against emptied layers.
        overrides: other shares for some groups: regular expression -> max_removed_fraction of every group with a
            member whose whole path it matches; the last match counts.
        widths: by group, how many channels it started with, where the model was pruned before: shares are of those.
        sensitivity: of this model, for scope="sensitivity"; see `measure_sensitivity`.
        cost_table: measured costs of the original model, for budgets on tflite_bytes and latency_ms. Where it is given,
            the plan's costs hold the predicted bytes and milliseconds too.

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
    ranker = _ranker(analysis, scope, sensitivity, limits)
    steps = _ordered_steps(analysis, scores, ranker, floors, widths or {})
    constraints = {
        "round_to": round_to,
        "min_channels": min_channels,
        "max_removed_fraction": max_removed_fraction,
        "overrides": dict(overrides or {}),
    }
    keep = _keep_after(analysis, steps[: _shortest_prefix(analysis, steps, limits, constraints)])
    return ChannelPlan.of(analysis, keep, {"scope": scope, **constraints, "budget": budget.settings()})


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


@dataclass(frozen=True, eq=False)
class _Step:
    """The removal of a group's next channels; `channel sets` are theirs."""

    rank: float
    sets: npt.NDArray[np.int64]


def _ranker(
    analysis: ChannelAnalysis, scope: str, sensitivity: Sensitivity | None, limits: Mapping[str, float]
) -> Ranker:
    """How the steps of a scope are ranked."""
    if scope != "sensitivity":
        return by_score if scope == "global" else by_share
    if sensitivity is None:
        raise CompressionError('scope "sensitivity" needs sensitivity=...; measure it with measure_sensitivity')
    whole = analysis.baseline.to_dict()
    tightest = min(limits, key=lambda name: limits[name] / whole[name])

    def saving(group: ChannelGroup, steps: Sequence[npt.NDArray[np.int64]]) -> list[float]:
        keep = np.ones(analysis.set_count, dtype=np.bool_)
        costs = [whole[tightest]]
        for gone in steps:
            keep[group.start + gone] = False
            costs.append(analysis.cost_model.cost(keep).to_dict()[tightest])
        return [before - after for before, after in pairwise(costs)]

    return by_sensitivity(sensitivity, saving)


def _ordered_steps(
    analysis: ChannelAnalysis,
    scores: Mapping[str, npt.NDArray[np.float64]],
    ranker: Ranker,
    floors: Mapping[str, _Floor],
    started: Mapping[str, int],
) -> list[_Step]:
    """The steps of all groups in the order they are taken; equal ranks go in model order."""
    steps = [
        step
        for name, group in analysis.groups.items()
        for step in _group_steps(
            group, scores[name], ranker, floors[name].widths(group.channels, started.get(name, group.channels))
        )
    ]
    return sorted(steps, key=lambda step: step.rank)


def _group_steps(
    group: ChannelGroup, scores: npt.NDArray[np.float64], ranker: Ranker, widths: Sequence[int]
) -> list[_Step]:
    """One group's steps. Ranks never fall from step to step, so sorting keeps their order."""
    weakest = np.argsort(scores, kind="stable")
    gone = [weakest[group.channels - before : group.channels - after] for before, after in pairwise(widths)]
    ranks = ranker(group, scores, gone)
    return [_Step(rank, group.start + part) for rank, part in zip(ranks, gone, strict=True)]


def _keep_after(analysis: ChannelAnalysis, steps: list[_Step]) -> BoolArray:
    keep = np.ones(analysis.set_count, dtype=np.bool_)
    for step in steps:
        keep[step.sets] = False
    return keep


def _shortest_prefix(
    analysis: ChannelAnalysis, steps: list[_Step], limits: Mapping[str, float], constraints: Mapping[str, object]
) -> int:
    """How many steps it takes until every limit holds.

    Raises:
        BudgetError: not even all of them are enough.
    """

    def exceeded(count: int) -> dict[str, float]:
        cost = analysis.cost_model.cost(_keep_after(analysis, steps[:count])).to_dict()
        return {name: limit for name, limit in limits.items() if cost[name] > limit}

    low, high = 0, len(steps)
    missed = exceeded(high)
    if missed:
        raise unreachable(analysis, _keep_after(analysis, steps), missed, constraints)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if exceeded(middle) else (low, middle)
    return low


def check_scores(analysis: ChannelAnalysis, scores: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Refuse scores that are not one number, none NaN, per channel of every group.

    Raises:
        CompressionError: scores that do not fit.
    """
    for name, group in analysis.groups.items():
        if name not in scores or scores[name].shape != (group.channels,) or np.isnan(scores[name]).any():
            got = scores[name].shape if name in scores else "nothing"
            raise CompressionError(f"expected {group.channels} scores without NaN for group {name!r}; got {got}")

"""From scores and a budget to a plan: which channels of which group stay.

Every group gives a row of steps, each of which takes its lowest-scored channels down to the next multiple of
`round_to`. All steps stand in one fixed order, and the plan is the shortest prefix of it that meets the budget; cost
falls with every step, so bisection finds that prefix. The budget is therefore met from below, within one step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import ceil

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import BudgetError, CompressionError
from cxr_compress.structured.channels import ChannelAnalysis, ChannelGroup
from cxr_compress.structured.cost import BoolArray, ModelCost
from cxr_compress.structured.plan import ChannelPlan

SCOPES = ("global", "local")


@dataclass(frozen=True)
class Budget:
    """What the thinner model may cost at most; all that are given hold.

    A float in (0, 1] is a fraction of the starting model, an int (or a float above 1) an absolute number.

    Attributes:
        macs: multiply-accumulates for one image.
        params: weights.
        tflite_bytes: bytes of the int8 file; needs a table of measured costs.
        latency_ms: milliseconds per image; needs a table of measured costs.
    """

    macs: float | None = None
    params: float | None = None
    tflite_bytes: float | None = None
    latency_ms: float | None = None

    def limits(self, baseline: ModelCost) -> dict[str, int]:
        """The absolute limit of each cost that is bounded.

        Raises:
            BudgetError: nothing is bounded, a bound is not positive, or it needs measured costs.
        """
        for name in ("tflite_bytes", "latency_ms"):
            if getattr(self, name) is not None:
                raise BudgetError(f"a budget on {name} needs a table of measured costs; bound macs or params instead")
        given = {name: value for name in ("macs", "params") if (value := getattr(self, name)) is not None}
        if not given:
            raise BudgetError("expected a budget on macs or params, got none")
        return {name: _absolute(name, value, getattr(baseline, name)) for name, value in given.items()}


def _absolute(name: str, value: float, whole: int) -> int:
    if not value > 0:
        raise BudgetError(f"expected a budget on {name} above 0: a fraction up to 1.0 or a whole number; got {value}")
    return int(value * whole) if isinstance(value, float) and value <= 1 else int(value)


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
) -> ChannelPlan:
    """Choose the channels to keep so that the model just meets a budget.

    Args:
        analysis: the model's channels.
        scores: by group, (channels,) higher means keep; see `score_channels`.
        budget: what the thin model may cost.
        scope: "global" ranks the channels of all groups together; "local" takes the same share of every group.
        round_to: groups that lose channels keep a multiple of this. Runtimes compute in blocks of 4 or 8 channels, so
            odd widths cost time without giving accuracy; smaller values meet a budget more closely.
        min_channels: no group goes below this.
        max_removed_fraction: no group loses more than this share; guards global mode against emptied layers.
        overrides: other shares for some groups: regular expression -> max_removed_fraction of every group with a
            member whose whole path it matches; the last match counts.

    Raises:
        BudgetError: the budget lies below what can be reached; the message says what can be.
        CompressionError: scores that do not fit the groups, or options outside their range.
    """
    if scope not in SCOPES:
        raise CompressionError(f"expected scope to be one of {', '.join(SCOPES)}; got {scope!r}")
    floors = _floors(analysis, _Floor(round_to, min_channels, max_removed_fraction), overrides or {})
    _check_scores(analysis, scores)
    limits = budget.limits(analysis.baseline)
    steps = _ordered_steps(analysis, scores, scope, floors)
    count = _shortest_prefix(analysis, steps, limits)
    keep = _keep_after(analysis, steps[:count])
    kept = {
        name: tuple(np.flatnonzero(keep[group.units]).tolist())
        for name, group in analysis.groups.items()
        if not keep[group.units].all()
    }
    return ChannelPlan(
        kept=kept,
        channels={name: analysis.groups[name].channels for name in kept},
        exclude=analysis.exclude,
        settings={
            "scope": scope,
            "round_to": round_to,
            "min_channels": min_channels,
            "max_removed_fraction": max_removed_fraction,
            "overrides": dict(overrides or {}),
            "budget": {name: value for name, value in asdict(budget).items() if value is not None},
        },
        before=analysis.baseline,
        after=analysis.cost_model.cost(keep),
    )


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

    def widths(self, channels: int) -> list[int]:
        """The widths that a group passes through, from its own down to the smallest allowed."""
        # Rounded before the ceiling: (1 - 0.9) * 10 is 1.0000000000000002 in floating point.
        share = ceil(round(channels * (1 - self.max_removed_fraction), 9))
        floor = max(1, self.min_channels, share)
        smallest = self.round_to * ceil(floor / self.round_to)
        top = self.round_to * ((channels - 1) // self.round_to)
        return [channels, *range(top, smallest - 1, -self.round_to)]


def _floors(analysis: ChannelAnalysis, usual: _Floor, overrides: Mapping[str, float]) -> dict[str, _Floor]:
    """How far down each group may go."""
    floors = dict.fromkeys(analysis.groups, usual)
    for pattern, share in overrides.items():
        matched = [
            name
            for name, group in analysis.groups.items()
            if any(re.fullmatch(pattern, member) for member in group.members)
        ]
        if not matched:
            raise CompressionError(f"override {pattern!r} matches no layer whose filters may go; see analyze_channels")
        floors.update(dict.fromkeys(matched, replace(usual, max_removed_fraction=share)))
    return floors


@dataclass(frozen=True, eq=False)
class _Step:
    """The removal of a group's next channels; `units` are theirs."""

    rank: float
    units: npt.NDArray[np.int64]


def _ordered_steps(
    analysis: ChannelAnalysis, scores: Mapping[str, npt.NDArray[np.float64]], scope: str, floors: Mapping[str, _Floor]
) -> list[_Step]:
    """The steps of all groups in the order they are taken; equal ranks go in model order."""
    steps = [
        step
        for name, group in analysis.groups.items()
        for step in _group_steps(group, scores[name], scope, floors[name])
    ]
    return sorted(steps, key=lambda step: step.rank)


def _group_steps(group: ChannelGroup, scores: npt.NDArray[np.float64], scope: str, floor: _Floor) -> list[_Step]:
    """One group's steps. Ranks never fall from step to step, so sorting keeps their order."""
    weakest = np.argsort(scores, kind="stable")
    widths = floor.widths(group.channels)
    steps = []
    for before, after in pairwise(widths):
        gone = weakest[group.channels - before : group.channels - after]
        share = (group.channels - after) / group.channels
        steps.append(_Step(float(scores[gone].mean()) if scope == "global" else share, group.start + gone))
    return steps


def _keep_after(analysis: ChannelAnalysis, steps: list[_Step]) -> BoolArray:
    keep = np.ones(analysis.units, dtype=np.bool_)
    for step in steps:
        keep[step.units] = False
    return keep


def _shortest_prefix(analysis: ChannelAnalysis, steps: list[_Step], limits: dict[str, int]) -> int:
    """How many steps it takes until every limit holds."""

    def excess(count: int) -> dict[str, tuple[int, int]]:
        cost = analysis.cost_model.cost(_keep_after(analysis, steps[:count])).to_dict()
        return {name: (limit, cost[name]) for name, limit in limits.items() if cost[name] > limit}

    low, high = 0, len(steps)
    missed = excess(high)
    if missed:
        parts = "; ".join(
            f"at most {limit:,} {name}, reachable are {least:,}" for name, (limit, least) in missed.items()
        )
        raise BudgetError(
            f"the budget cannot be reached: {parts} (with round_to, min_channels and max_removed_fraction as set, "
            f"{len(analysis.frozen)} groups frozen): raise the budget or loosen those"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if excess(middle) else (low, middle)
    return low


def _check_scores(analysis: ChannelAnalysis, scores: Mapping[str, npt.NDArray[np.float64]]) -> None:
    for name, group in analysis.groups.items():
        if name not in scores or scores[name].shape != (group.channels,) or np.isnan(scores[name]).any():
            found = scores[name].shape if name in scores else "nothing"
            raise CompressionError(f"expected {group.channels} scores without NaN for group {name!r}; got {found}")

"""The order in which groups give up their channels: a rank for each step of each group, smaller goes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cxr_compress.structured.channels import ChannelGroup
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

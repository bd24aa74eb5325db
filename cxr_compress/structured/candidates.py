"""What may go of a model, and how the scopes rank it: the steps of every group, and blocks of whole layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import floor

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import BudgetError, CompressionError
from cxr_compress.structured.analysis import ChannelAnalysis, ChannelGroup
from cxr_compress.structured.budget import NEEDED
from cxr_compress.structured.cost import BoolArray
from cxr_compress.structured.latency import LatencyOrder, Layers, Met, Removal, removal_ranks
from cxr_compress.structured.sensitivity_curves import Sensitivity

FloatVector = npt.NDArray[np.float64]
Channels = npt.NDArray[np.int64]

# (group, its scores, the channels that go in each of its steps) -> the rank of each step, never falling.
Ranker = Callable[[ChannelGroup, FloatVector, Sequence[Channels]], list[float]]
# (group, the channels that go in each of its steps) -> what each frees.
Saving = Callable[[ChannelGroup, Sequence[Channels]], Sequence[float]]


def by_score(group: ChannelGroup, scores: FloatVector, steps: Sequence[Channels]) -> list[float]:
    """The mean score of what goes: all groups compete."""
    return [float(scores[gone].mean()) for gone in steps]


def by_share(group: ChannelGroup, scores: FloatVector, steps: Sequence[Channels]) -> list[float]:
    """The share of the group that is gone after the step: all groups lose alike."""
    return (np.cumsum([len(gone) for gone in steps]) / group.channels).tolist() if steps else []


def by_sensitivity(sensitivity: Sensitivity, saving: Saving) -> Ranker:
    """The measured error that a step adds, over what it saves.

    Args:
        sensitivity: of the groups.
        saving: what each of a group's steps frees of the budget, 0 or more, in one unit for all groups.
    """

    def rank(group: ChannelGroup, scores: FloatVector, steps: Sequence[Channels]) -> list[float]:
        errors = sensitivity.curve(group.name, group.channels).added(list(map(len, steps)))
        return removal_ranks(errors, saving(group, steps))

    return rank


@dataclass(frozen=True, eq=False)
class Step:
    """The removal of a group's next channels, or of a block; `sets` are the numbers of their channel sets."""

    rank: float
    sets: Channels


# Stands for a group where blocks are ranked; its steps name channel sets of the whole model.
_BLOCKS = ChannelGroup("", 0, (), (), 0)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may go.

    Attributes:
        analysis: of the model, priced where measured costs are bounded.
        scores: as `select_channels`.
        sensitivity: as `select_channels`.
        rows: by group, the channels that go in each of its steps.
        blocks: by name of a block of layers, its importance.
        most: the largest share of the blocks of one image size that may go.
    """

    analysis: ChannelAnalysis
    scores: Mapping[str, FloatVector]
    sensitivity: Sensitivity | None
    rows: Mapping[str, Sequence[Channels]]
    blocks: Mapping[str, float]
    most: float

    def steps(self, scope: str, limits: Mapping[str, float]) -> list[Step]:
        """The steps of all groups, then of all blocks, in the order they are taken; equal ranks go in model order.

        Args:
            scope: any but "latency", which has no order that is fixed beforehand.
            limits: by cost.
        """
        groups, saving = self.analysis.groups, self._saving(limits) if scope == "sensitivity" else None
        ranker = self._ranker(scope, saving)
        # Ranks never fall from step to step of a group, so sorting keeps their order.
        steps = [
            Step(rank, groups[name].start + part)
            for name, row in self.rows.items()
            for rank, part in zip(ranker(groups[name], self.scores[name], row), row, strict=True)
        ]
        steps += [Step(rank, self._sets_of(name)) for name, rank in self._block_ranks(ranker, saving).items()]
        return sorted(steps, key=lambda step: step.rank)

    def _block_ranks(self, ranker: Ranker, saving: Saving | None) -> dict[str, float]:
        """By name of each block that may go, its rank."""
        ranks: dict[str, float] = {}
        mean = float(np.mean([*self.blocks.values()])) if self.blocks else 0.0
        for positions, names in self._stages().items():
            allowed = names[: self._allowed(positions)]
            if saving is not None:
                # A block has one step, so its rank is that of the step alone.
                ranks |= {
                    name: removal_ranks([self.blocks[name]], saving(_BLOCKS, [self._sets_of(name)]))[0]
                    for name in allowed
                }
            else:
                # Blocks compete as the channels of one more group do.
                importances = np.array([self.blocks[name] for name in allowed]) / (mean or 1.0)
                places = [np.array([place]) for place in range(len(allowed))]
                stage = replace(_BLOCKS, channels=self._count(positions))
                ranks |= dict(zip(allowed, ranker(stage, importances, places), strict=True))
        return ranks

    def _stages(self) -> dict[int, list[str]]:
        """By positions, the blocks that may go together, the least important first."""
        stages: dict[int, list[str]] = {}
        for name in self._possible_together():
            stages.setdefault(self.analysis.blocks[name].positions, []).append(name)
        return stages

    def _count(self, positions: int) -> int:
        """How many blocks of these positions there are, those that are to stay too."""
        return sum(block.positions == positions for block in self.analysis.blocks.values())

    def _allowed(self, positions: int) -> int:
        """How many of them may go."""
        return floor(round(self._count(positions) * self.most, 9))

    def by_latency(self, met: Met) -> BoolArray:
        """What stays when channels and layers go by what they lose for the time that they save, until limits are met.

        Args:
            met: whether what is kept meets the limits.

        Raises:
            BudgetError: no layer times.
        """
        analysis, model = self.analysis, self.analysis.cost_model
        if analysis.baseline.latency_ms is None:
            raise BudgetError(f'scope "latency" needs {NEEDED["latency_ms"]}')
        steps = {
            name: [
                Removal(group.start + gone, loss)
                for gone, loss in zip(self.rows[name], self._losses(group), strict=True)
            ]
            for name, group in analysis.groups.items()
        }
        layers = [
            Layers(Removal(self._sets_of(name), loss), analysis.blocks[name].groups, analysis.blocks[name].positions)
            for name, loss in self.blocks.items()
        ]
        allowed = {stage.stage: self._allowed(stage.stage) for stage in layers}
        order = LatencyOrder(lambda keep: model.cost(keep).latency_ms or 0.0, model.buildable, steps, layers, allowed)
        return order.until(met, np.ones(analysis.set_count, dtype=np.bool_))

    def _losses(self, group: ChannelGroup) -> FloatVector:
        """(steps,) What each of a group's steps loses."""
        row = self.rows[group.name]
        if self.sensitivity is None:
            return np.array([float(np.maximum(self.scores[group.name][gone], 0).sum()) for gone in row])
        return self.sensitivity.curve(group.name, group.channels).added(list(map(len, row)))

    def _ranker(self, scope: str, saving: Saving | None) -> Ranker:
        """How the steps of a scope are ranked."""
        if saving is None:
            return by_score if scope == "global" else by_share
        if self.sensitivity is None:
            raise CompressionError('scope "sensitivity" needs sensitivity=...; measure it with measure_sensitivity')
        return by_sensitivity(self.sensitivity, saving)

    def _saving(self, limits: Mapping[str, float]) -> Saving:
        """What a group's steps free of the cost whose limit is the tightest, all other groups whole."""
        whole = self.analysis.baseline.to_dict()
        tightest = min(limits, key=lambda name: limits[name] / whole[name])

        def saving(group: ChannelGroup, steps: Sequence[Channels]) -> list[float]:
            keep = np.ones(self.analysis.set_count, dtype=np.bool_)
            costs = [whole[tightest]]
            for gone in steps:
                keep[group.start + gone] = False
                costs.append(self.analysis.cost_model.cost(keep).to_dict()[tightest])
            return [before - after for before, after in pairwise(costs)]

        return saving

    def _sets_of(self, block: str) -> Channels:
        """The numbers of the channel sets that go with a block."""
        groups = (self.analysis.groups[name] for name in self.analysis.blocks[block].groups)
        return np.concatenate([np.arange(group.start, group.start + group.channels) for group in groups])

    def _possible_together(self) -> list[str]:
        """The blocks, the least important first, without those that no longer may go once the ones before them have."""
        keep, possible = np.ones(self.analysis.set_count, dtype=np.bool_), []
        for name in sorted(self.blocks, key=self.blocks.__getitem__):
            without = keep.copy()
            without[self._sets_of(name)] = False
            if self.analysis.cost_model.buildable(without):
                keep = without
                possible.append(name)
        return possible

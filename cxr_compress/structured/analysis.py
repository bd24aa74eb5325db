"""What the analysis of a model's channels found, as plain data: groups, protected groups, slices and the cost model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from cxr_compress.device.cost_table import CostTable
from cxr_compress.errors import CompressionError
from cxr_compress.structured.cost import BoolArray, CostModel, IntArray, ModelCost
from cxr_compress.structured.wiring import Wiring

Role = Literal["produce", "consume", "follow"]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that may be removed, one decision per channel for all its members.

    Attributes:
        name: the first layer that makes the channels.
        channels: how many there are.
        members: the layers whose filters these are; more than one where an Add ties them.
        consumers: the layers that sum over them, as far as they are known.
        start: the first of the group's channel sets in the analysis.
    """

    name: str
    channels: int
    members: tuple[str, ...]
    consumers: tuple[str, ...]
    start: int

    @property
    def sets(self) -> slice:
        """The group's run in a vector over all channel sets."""
        return slice(self.start, self.start + self.channels)


@dataclass(frozen=True)
class RemovableBlock:
    """Layers that may go as a whole: a dense layer with its bottleneck, the branch of a residual block.

    Attributes:
        name: the first group that takes the others with it when it keeps no channel.
        groups: the groups that keep no channel then.
        layers: the layers with weights that go.
        positions: how many positions their smallest output has: blocks of one size are of one stage of the network.
    """

    name: str
    groups: tuple[str, ...]
    layers: tuple[str, ...]
    positions: int


@dataclass(frozen=True, eq=False)
class AxisSlice:
    """An axis of a weight and the channel set of each of its channels; see `rules.base.WeightAxis`."""

    weight: int
    axis: int
    sets: IntArray
    role: Role


@dataclass(frozen=True, eq=False)
class SizeSlice:
    """A number in a layer's config and the channel sets that it counts."""

    keys: tuple[str | int, ...]
    sets: IntArray


@dataclass(frozen=True, eq=False)
class LayerSlices:
    """Everything of one layer that gets smaller when channel sets go."""

    path: str
    axes: tuple[AxisSlice, ...]
    sizes: tuple[SizeSlice, ...]


@dataclass(frozen=True, eq=False)
class ChannelAnalysis:
    """Which channels of a model may be removed, what hangs on each, and what the rest would cost.

    Attributes:
        groups: by name, in model order: the channels that may be removed.
        protected: by name: why a group's channels must stay. Inputs and outputs of the model always must.
        layers: by path: the weights and config entries that follow channels.
        exclude: the patterns of layers that were to be left alone.
        set_count: how many channel sets there are: the length of a keep vector.
        cost_model: what a keep vector costs.
        allow_inexact: whether channels were let go that a layer takes statistics over.
        protected_sets: by name of a protected group: its run in a vector over all channel sets.
        wiring: which layers go as a whole where a group keeps no channel.
    """

    groups: dict[str, ChannelGroup]
    protected: dict[str, str]
    layers: dict[str, LayerSlices]
    exclude: tuple[str, ...]
    set_count: int
    cost_model: CostModel
    allow_inexact: bool = False
    protected_sets: dict[str, slice] = field(default_factory=dict)
    wiring: Wiring = field(default_factory=Wiring)

    @property
    def frozen(self) -> dict[str, str]:
        """Another name of `protected`, from before "frozen" was left to what Keras means by it: weights not trained."""
        return self.protected

    def priced(self, table: CostTable) -> ChannelAnalysis:
        """The same analysis, whose costs also hold what a table of measured costs predicts of bytes and latency."""
        return replace(self, cost_model=self.cost_model.priced(table))

    @cached_property
    def baseline(self) -> ModelCost:
        """What the model costs as it is."""
        return self.cost_model.cost(np.ones(self.set_count, dtype=np.bool_))

    def keep_vector(self, kept: Mapping[str, Sequence[int]]) -> BoolArray:
        """(set_count,) True where a channel set stays: all but those of the named groups that are not listed as kept.

        A group that keeps none takes whole layers with it, and the groups that these alone make or read.

        Raises:
            CompressionError: a group that the model does not have, a channel outside of it, or a group that keeps none
                though the model cannot do without it.
        """
        keep = np.ones(self.set_count, dtype=np.bool_)
        for name, channels in kept.items():
            group = self._group(name)
            wrong = [index for index in channels if not 0 <= index < group.channels]
            if wrong:
                raise CompressionError(
                    f"group {name!r} has {group.channels} channels, numbered from 0; the plan keeps {wrong[0]}: "
                    "make the plan from this model"
                )
            keep[group.sets] = False
            keep[group.start + np.asarray(channels, dtype=np.int64)] = True
        return self.settled(keep)

    def settled(self, keep: BoolArray) -> BoolArray:
        """The channel sets that stay of these: without those that go with the groups that keep none.

        Raises:
            CompressionError: the model cannot do without such a group, named in the message.
        """
        empty = [group for group in self.groups.values() if not keep[group.sets].any()]
        if not empty:
            return keep
        left = self.wiring.settle(keep)
        if not left.problem:
            return left.keep
        alone = ((group, self.wiring.settle(self._without(group)).problem) for group in empty)
        group, problem = next(((one, why) for one, why in alone if why), (empty[-1], left.problem))
        raise CompressionError(
            f"group {group.name!r} would keep none of its {group.channels} channels, but {problem}: keep at least one, "
            "or leave the group out to keep them all"
        )

    def _without(self, group: ChannelGroup) -> BoolArray:
        keep = np.ones(self.set_count, dtype=np.bool_)
        keep[group.sets] = False
        return keep

    @cached_property
    def blocks(self) -> dict[str, RemovableBlock]:
        """By name: the layers that may go as a whole, in model order."""
        blocks: dict[frozenset[str], RemovableBlock] = {}
        for group in self.groups.values():
            left = self.wiring.settle(self._without(group))
            layers = self.wiring.gone(left)
            if not left.problem and layers not in blocks:
                groups = tuple(name for name, other in self.groups.items() if not left.keep[other.sets].any())
                weighted = tuple(filter(layers.__contains__, self.layers))
                blocks[layers] = RemovableBlock(group.name, groups, weighted, self.wiring.fewest_positions(left))
        return {block.name: block for block in blocks.values()}

    def _group(self, name: str) -> ChannelGroup:
        if name in self.groups:
            return self.groups[name]
        why = f"is protected: {self.protected[name]}" if name in self.protected else "is not in this model"
        raise CompressionError(f"expected groups that may be pruned; {name!r} {why}")


def path_matcher(pattern: str, option: str) -> Callable[[str], bool]:
    """Whether a layer's whole path matches a pattern; `option` names for the user where the pattern came from.

    Raises:
        CompressionError: the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CompressionError(
            f"{option}: expected regular expressions over layer paths, got {pattern!r}: {error}; put a backslash in "
            "front of characters that stand for themselves"
        ) from error
    return lambda path: compiled.fullmatch(path) is not None

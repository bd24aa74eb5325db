"""Symbolic channel layouts: which filter every channel of every tensor comes from.

A filter is a number. A tensor's channel axis is an array of such numbers, so a Concatenate joins arrays, a Flatten
tiles one, a depthwise multiplier repeats one, and an Add says that two arrays mean the same channels. Nothing here
knows a framework or looks at a weight: which channels stand and fall together is a property of the wiring alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ChannelLayout:
    """The channel axis of one tensor.

    Attributes:
        ids: (channels,) int32, the filter that each channel comes from; one filter may stand at several places.
    """

    ids: IntArray

    def __len__(self) -> int:
        return len(self.ids)

    def repeat(self, times: int) -> ChannelLayout:
        """Every channel `times` times in a row: the output of a depthwise convolution with a multiplier."""
        return self if times == 1 else ChannelLayout(np.repeat(self.ids, times))

    def tile(self, times: int) -> ChannelLayout:
        """The whole axis `times` times over: a channels-last Flatten of that many positions."""
        return self if times == 1 else ChannelLayout(np.tile(self.ids, times))


def join(layouts: Sequence[ChannelLayout]) -> ChannelLayout:
    """The layouts one after the other: the output of a Concatenate along the channel axis."""
    return ChannelLayout(np.concatenate([layout.ids for layout in layouts]))


@dataclass(frozen=True)
class GroupSpan:
    """Layers whose filters are tied to one another, directly or through other layers.

    Attributes:
        owners: the layers that make the channels, in model order; the first one names the group.
        start: the first channel set of the group.
        stop: one past its last channel set.
        reason: why no channel of the group may go; empty when they may.
    """

    owners: tuple[str, ...]
    start: int
    stop: int
    reason: str

    @property
    def name(self) -> str:
        """The group's name: the first layer that makes its channels."""
        return self.owners[0]


@dataclass(frozen=True, eq=False)
class Partition:
    """The solved space.

    A *channel set* is a set of filters that are kept or removed together; a group owns a run of channel sets.

    Attributes:
        set_of: (filters,) int32, the channel set that each filter belongs to.
        groups: every group, protected ones too, in model order.
    """

    set_of: IntArray
    groups: tuple[GroupSpan, ...]

    @property
    def set_count(self) -> int:
        """How many channel sets there are in all."""
        return self.groups[-1].stop if self.groups else 0


@dataclass
class ChannelSpace:
    """Collects the filters of a model and what its wiring says about them; `solve` finds channel sets and groups."""

    _owners: list[str] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    _total: int = 0
    _ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    _protected: list[tuple[IntArray, str]] = field(default_factory=list)

    def allocate(self, owner: str, size: int) -> ChannelLayout:
        """The layout of `size` new filters that the layer `owner` makes."""
        ids = np.arange(self._total, self._total + size, dtype=np.int32)
        self._owners.append(owner)
        self._sizes.append(size)
        self._total += size
        return ChannelLayout(ids)

    def tie(self, first: ChannelLayout, second: ChannelLayout) -> None:
        """State that channel i of both layouts must be kept or removed together.

        Raises:
            ValueError: the layouts differ in length; tying them would silently pair the wrong channels.
        """
        if len(first) != len(second):
            raise ValueError(f"expected layouts of one length, got {len(first)} and {len(second)} channels")
        if first.ids is not second.ids:
            self._ties.append((first.ids, second.ids))

    def protect(self, layout: ChannelLayout, reason: str) -> None:
        """Keep every channel of `layout`, and of all groups it reaches, for this reason."""
        self._protected.append((layout.ids, reason))

    def solve(self) -> Partition:
        """The channel sets and groups that follow from all ties and protections so far."""
        set_roots = _components(self._total, self._ties)
        owner_of = np.repeat(np.arange(len(self._owners), dtype=np.int32), self._sizes)
        group_roots = _components(len(self._owners), [(owner_of, owner_of[set_roots])])
        group_of_id = group_roots[owner_of]
        reasons = self._reasons(group_of_id)
        set_of, spans = _number_sets(set_roots, group_of_id, group_roots)
        owners: dict[int, dict[str, None]] = {root: {} for root in spans}
        for name, root in zip(self._owners, group_roots.tolist(), strict=True):
            owners[root][name] = None
        groups = [
            GroupSpan(tuple(owners[root]), start, stop, "; ".join(reasons.get(root, ())))
            for root, (start, stop) in spans.items()
        ]
        return Partition(set_of, tuple(groups))

    def _reasons(self, group_of_id: IntArray) -> dict[int, list[str]]:
        """The distinct reasons of each protected group, in the order they were given."""
        reasons: dict[int, list[str]] = {}
        for ids, reason in self._protected:
            for root in np.unique(group_of_id[ids]).tolist():
                known = reasons.setdefault(root, [])
                if reason not in known:
                    known.append(reason)
        return reasons


def _components(size: int, edges: Sequence[tuple[IntArray, IntArray]]) -> IntArray:
    """The smallest number that each of `size` numbers is connected to, by label propagation with pointer jumping."""
    labels = np.arange(size, dtype=np.int32)
    if not edges:
        return labels
    first = np.concatenate([edge[0] for edge in edges])
    second = np.concatenate([edge[1] for edge in edges])
    while True:
        low = np.minimum(labels[first], labels[second])
        before = labels.copy()
        # The label's own entry is lowered too: without it two trees that meet at their leaves would never merge.
        np.minimum.at(labels, labels[first], low)
        np.minimum.at(labels, labels[second], low)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


def _number_sets(
    set_roots: IntArray, group_of_id: IntArray, group_roots: IntArray
) -> tuple[IntArray, dict[int, tuple[int, int]]]:
    """Number the channel sets so that each group owns one run; groups and sets go in the order the model makes them."""
    roots = _roots(set_roots)
    order = np.lexsort((roots, group_of_id[roots]))
    ordered = roots[order]
    number = np.empty(len(set_roots), dtype=np.int32)
    number[ordered] = np.arange(len(ordered), dtype=np.int32)
    group_of_set = group_of_id[ordered]
    groups = _roots(group_roots)
    starts, stops = (np.searchsorted(group_of_set, groups, side).tolist() for side in ("left", "right"))
    return number[set_roots], dict(zip(groups.tolist(), zip(starts, stops, strict=True), strict=True))


def _roots(labels: IntArray) -> IntArray:
    """The distinct labels in rising order; each is the smallest number that bears it."""
    return np.flatnonzero(labels == np.arange(len(labels))).astype(np.int32)

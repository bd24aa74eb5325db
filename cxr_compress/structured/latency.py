"""The order of removal that costs the least importance for the milliseconds it saves, whole layers included.

A layer costs time however thin it is: at the small end, what a channel saves shrinks and what a layer saves does not.
Savings are therefore not counted once but again and again, from where the removal has come to:

1. Of every group, the steps that are left; of every block of layers, all that is left of it: what each loses and saves.
2. Inside a group the steps are pooled to the lower convex hull of loss over saving, so that they stay in their order.
3. The cheapest are taken, by loss over saving, until a twentieth of the time is gone; then savings are counted anew.

That is the greedy solution of a knapsack whose prices change slowly. Sun et al. 2025 (MDP, arXiv 2504.02168) solve the
same choice as an integer programme; `tests/structured/test_latency.py` holds this one against the best there is, on
networks small enough to try everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cxr_compress.structured.cost import BoolArray

Channels = npt.NDArray[np.int64]

Met = Callable[[BoolArray], bool]

# How many ends are compared, of ways that differ in the layers that went last.
_WAYS = 8
# How much of the time goes before savings are counted anew: less follows the prices closer and takes longer.
_ROUND = 0.95


@dataclass(frozen=True, eq=False)
class Removal:
    """What goes at once.

    Attributes:
        sets: the numbers of the channel sets.
        loss: the importance that is lost with them, 0 or more.
    """

    sets: Channels
    loss: float


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers that go as a whole.

    Attributes:
        removal: all of their channels.
        groups: whose steps are then of no use any more.
        stage: of the network, of whose layers only so many may go.
    """

    removal: Removal
    groups: tuple[str, ...]
    stage: int


def removal_ranks(errors: Sequence[float] | npt.NDArray[np.float64], savings: Sequence[float]) -> list[float]:
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


@dataclass(eq=False)
class _Way:
    """How far one way of removing has come.

    Attributes:
        keep: (set_count,) what is left.
        steps: by group, the steps that are left.
        layers: what may still go as a whole.
        allowed: by stage, how many of its layers may still go.
        lost: by group, the importance that its steps have taken.
        whole: the importance that went with whole layers, over and above what steps of their groups had taken.
        last: by group, its last step, which can be given back.
        before: of layers that went: what of them was left then, and what they were.
    """

    keep: BoolArray
    steps: dict[str, list[Removal]]
    layers: list[Layers]
    allowed: dict[int, int]
    lost: dict[str, float]
    whole: float = 0.0
    last: dict[str, Removal] = field(default_factory=dict)
    before: list[tuple[Channels, float]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """All importance that is lost."""
        return sum(self.lost.values()) + self.whole

    def without(self, layers: Layers) -> _Way:
        """The same way, on which these layers never go."""
        return _Way(
            self.keep.copy(),
            {name: list(steps) for name, steps in self.steps.items()},
            [other for other in self.layers if other is not layers],
            dict(self.allowed),
            dict(self.lost),
            self.whole,
            dict(self.last),
            list(self.before),
        )

    def take_step(self, name: str) -> None:
        """Take the next step of a group."""
        step = self.last[name] = self.steps[name].pop(0)
        self.keep[step.sets] = False
        self.lost[name] += step.loss

    def further(self, layers: Layers) -> float:
        """What layers lose when they go now, as a whole."""
        return max(0.0, layers.removal.loss - sum(self.lost[name] for name in layers.groups))

    def take_layers(self, layers: Layers) -> None:
        """Take layers as a whole."""
        sets, loss = layers.removal.sets, self.further(layers)
        self.before.append((sets[self.keep[sets]], loss))
        self.layers.remove(layers)
        self.allowed[layers.stage] -= 1
        self.keep[sets] = False
        self.whole += loss
        for name in layers.groups:
            self.steps[name].clear()
            self.last.pop(name, None)


class LatencyOrder:
    """Takes removals by what they lose for the milliseconds that they save.

    Args:
        milliseconds: (set_count,) what is kept -> predicted time.
        possible: whether a model can be built of what is kept.
        groups: by name, the steps of each group, in their order.
        layers: what may go as a whole.
        allowed: by stage, how many of its layers may go.
    """

    def __init__(
        self,
        milliseconds: Callable[[BoolArray], float],
        possible: Callable[[BoolArray], bool],
        groups: Mapping[str, Sequence[Removal]],
        layers: Sequence[Layers],
        allowed: Mapping[int, int],
    ) -> None:
        self._milliseconds, self._possible = milliseconds, possible
        self._groups, self._layers, self._allowed = groups, layers, allowed

    def until(self, met: Met, keep: BoolArray) -> BoolArray:
        """What is kept when the limits are met, or when nothing is left to take.

        Layers go all at once, often further than the limits ask. Where they are the last to go, the way without them is
        tried too, and the one that loses less is taken.

        Args:
            met: whether what is kept meets them.
            keep: (set_count,) what is there at first.
        """
        steps = {name: list(steps) for name, steps in self._groups.items()}
        start = _Way(keep.copy(), steps, list(self._layers), dict(self._allowed), dict.fromkeys(steps, 0.0))
        ends: list[_Way] = []
        ways = [start]
        while ways and len(ends) < _WAYS:
            other = self._follow(ways[0], met)
            ends.append(self._with_spare(met, ways.pop(0)))
            ways += [] if other is None else [other]
        meeting = [end for end in ends if met(end.keep)]
        return min(meeting or ends[:1], key=lambda end: end.loss).keep

    def _follow(self, way: _Way, met: Met) -> _Way | None:
        """Go one way to its end; gives the way that turned off before layers that were the last to go."""
        other = None
        while not met(way.keep):
            goal, taken = _ROUND * self._milliseconds(way.keep), False
            for _, name, layers in self._ranked(way):
                if layers is None and way.steps[name]:
                    way.take_step(name)
                    taken = True
                elif layers is not None and self._may_go(way, layers):
                    other = way.without(layers)
                    way.take_layers(layers)
                    taken = True
                    if met(way.keep):
                        return other
                if taken and (met(way.keep) or self._milliseconds(way.keep) <= goal):
                    break
            if not taken:
                return None
        return None

    def _ranked(self, way: _Way) -> list[tuple[float, str, Layers | None]]:
        """All that may be taken, the least loss per saving first; equal ones in model order."""
        now = self._milliseconds(way.keep)
        ranked: list[tuple[float, str, Layers | None]] = []
        for name, steps in way.steps.items():
            without, times = way.keep.copy(), [now]
            for step in steps:
                without[step.sets] = False
                times.append(self._milliseconds(without))
            savings = [before - after for before, after in pairwise(times)]
            ranked += [(rank, name, None) for rank in removal_ranks([step.loss for step in steps], savings)]
        for layers in way.layers:
            if self._may_go(way, layers):
                saving = now - self._milliseconds(_less(way.keep, layers.removal.sets))
                ranked.append((_slope((way.further(layers), saving, 1)), layers.groups[0], layers))
        return sorted(ranked, key=lambda entry: entry[0])

    def _may_go(self, way: _Way, layers: Layers) -> bool:
        """Whether the network can do without these layers too."""
        return way.allowed[layers.stage] > 0 and self._possible(_less(way.keep, layers.removal.sets))

    def _with_spare(self, met: Met, way: _Way) -> _Way:
        """Give back what the limits leave room for, the dearest first: layers, and of each group its last step."""
        steps = [(step.sets, step.loss) for step in way.last.values()]
        for sets, loss in sorted([*way.before, *steps], key=lambda removal: -removal[1]):
            more = way.keep.copy()
            more[sets] = True
            if met(more):
                way.keep = more
                way.whole -= loss
        return way


def _less(keep: BoolArray, sets: Channels) -> BoolArray:
    without = keep.copy()
    without[sets] = False
    return without

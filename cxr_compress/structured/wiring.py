"""Which whole layers go once a group keeps no channel: the calls of a model as plain data, and what is left of them.

A tensor of which no channel is kept carries nothing, and neither does what is computed from it alone: a convolution
without inputs gives a constant, which goes with it, just as the constant that a removed filter's batch norm gives does.
Where such a tensor meets others it is left out: a Concatenate loses that part, an Add that term, and either is gone
itself when one input is left. So a dense layer vanishes with its bottleneck and its place in every later
concatenation, and a residual block becomes its shortcut. What nobody reads any more goes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from cxr_compress.structured.layout import GroupSpan, IntArray

BoolArray = npt.NDArray[np.bool_]
# How a layer treats an input that carries nothing: it carries nothing either (""), or goes on without it.
Merge = Literal["", "sum", "parts"]
# The path of a layer and the number of one of its calls, as the config of its model lists them.
CallKey = tuple[str, int]

_GONE = -1


@dataclass(frozen=True)
class WiredCall:
    """One call of one layer.

    Attributes:
        key: which call it is; the calls in a nested model have the same key each time that model is called.
        inputs: the numbers of the tensors that it reads.
        outputs: the numbers of those that it makes.
        merge: how it treats an input that carries nothing.
    """

    key: CallKey
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    merge: Merge


@dataclass(frozen=True, eq=False)
class Survivors:
    """What is left of a model that keeps some channel sets.

    Attributes:
        keep: (set_count,) what was asked for, without what goes with it.
        allowed: (set_count,) True for all but the channel sets of groups that keep none.
        lives: (calls,) whether a call still runs.
        stands: (tensors,) the tensor that is read in place of each, itself where it lives; -1 where nothing is.
        read: (tensors,) whether a tensor is made and needed.
        problem: why the model cannot be built; empty when it can.
    """

    keep: BoolArray
    allowed: BoolArray
    lives: BoolArray
    stands: IntArray
    read: BoolArray
    problem: str


@dataclass(frozen=True, eq=False)
class Wiring:
    """A model's calls, in the order in which they run.

    Attributes:
        calls: call number i runs at step i + 1.
        tensors: by tensor, the channel sets of its channel axis; the model's inputs among them.
        positions: by tensor, how many times it holds every channel.
        results: the numbers of the model's outputs.
        groups: all groups, the protected ones with their reason.
    """

    calls: tuple[WiredCall, ...] = ()
    tensors: tuple[IntArray, ...] = ()
    positions: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    groups: tuple[GroupSpan, ...] = ()

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The paths of all layers that are called, each once."""
        return tuple(dict.fromkeys(call.key[0] for call in self.calls))

    @cached_property
    def _axis_of(self) -> _Axes:
        return _Axes.of(self.tensors)

    @cached_property
    def _roots(self) -> frozenset[int]:
        """The outputs, and what nobody reads in the whole model either: a call is not idle for its sake."""
        readers = {tensor for call in self.calls for tensor in call.inputs}
        made = {tensor for call in self.calls for tensor in call.outputs}
        return frozenset(self.results) | (made - readers)

    def settle(self, keep: BoolArray) -> Survivors:
        """What is left of the model that keeps these channel sets, and why it cannot be built, where it cannot.

        Args:
            keep: (set_count,) True where a channel set stays.
        """
        allowed = np.ones_like(keep)
        for group in self.groups:
            allowed[group.start : group.stop] = keep[group.start : group.stop].any()
        while True:
            keep = keep & allowed
            stands = self._stands(self._axis_of.kept(keep) == 0)
            lives, read = self._read(stands)
            alive = {call.key[0] for call, living in zip(self.calls, lives, strict=True) if living}
            called = set(self.layers)
            without_makers = [
                group
                for group in self.groups
                if keep[group.start : group.stop].any()
                and all(owner in called and owner not in alive for owner in group.owners)
            ]
            if not without_makers:
                left = Survivors(keep, allowed, lives, stands, read, "")
                return replace(left, problem=self._problem(left))
            for group in without_makers:
                allowed[group.start : group.stop] = False

    def _stands(self, empty: BoolArray) -> IntArray:
        """By tensor, which one is read in its place when nothing reads a tensor that carries nothing."""
        stands = [_GONE if nothing else number for number, nothing in enumerate(empty.tolist())]
        for call in self.calls:
            rest = [stands[number] for number in call.inputs if stands[number] != _GONE]
            if not rest or (len(rest) < len(call.inputs) and not call.merge):
                for made in call.outputs:
                    stands[made] = _GONE
            elif len(rest) == 1 < len(call.inputs) and stands[call.outputs[0]] != _GONE:
                stands[call.outputs[0]] = rest[0]
        return np.array(stands, dtype=np.int32)

    def _read(self, stands: IntArray) -> tuple[BoolArray, BoolArray]:
        """Which calls run for the sake of an output, and which tensors they read or the model gives."""
        at = stands.tolist()
        needed = {at[root] for root in self._roots} - {_GONE}
        lives = np.zeros(len(self.calls), dtype=np.bool_)
        for number in reversed(range(len(self.calls))):
            call = self.calls[number]
            if any(made in needed and at[made] == made for made in call.outputs):
                lives[number] = True
                needed.update(at[tensor] for tensor in call.inputs if at[tensor] != _GONE)
        read = np.zeros(len(self.tensors), dtype=np.bool_)
        read[list(needed)] = True
        return lives, read

    def _problem(self, left: Survivors) -> str:
        """Why a model cannot be built of what is left."""
        if any(left.stands[result] == _GONE for result in self.results):
            return "no path from the model's input to its output would be left"
        for group in self.groups:
            if group.reason and not left.keep[group.start : group.stop].all():
                return f"the protected group {group.name!r} would go with it ({group.reason})"
        fates: dict[CallKey, tuple[int, ...]] = {}
        for number, call in enumerate(self.calls):
            gone = [tensor for tensor in call.inputs if left.stands[tensor] == _GONE]
            goes_on = bool(left.lives[number]) or left.stands[call.outputs[0]] != _GONE
            if call.merge == "parts" and goes_on and any(left.keep[self.tensors[tensor]].any() for tensor in gone):
                return f"{call.key[0]} would lose channels that stay elsewhere"
            if fates.setdefault(call.key, self._fate(left, number)) != self._fate(left, number):
                return f"{call.key[0]} would go in one place and stay in another, in a model that is called twice"
        return ""

    def _fate(self, left: Survivors, number: int) -> tuple[int, ...]:
        """The places of the inputs that a call keeps; one of several where it only passes that on; none if it goes."""
        call = self.calls[number]
        if left.stands[call.outputs[0]] == _GONE:
            return ()
        kept = tuple(place for place, tensor in enumerate(call.inputs) if left.stands[tensor] != _GONE)
        return kept if left.lives[number] or len(kept) == 1 < len(call.inputs) else ()

    def fates(self, left: Survivors) -> dict[CallKey, tuple[int, ...]]:
        """The calls that change: by key, the places of the inputs that they keep, none where they go.

        A merging call that keeps one input is no call any more: that input is read in its place.
        """
        fates = {call.key: self._fate(left, number) for number, call in enumerate(self.calls)}
        return {call.key: fates[call.key] for call in self.calls if len(fates[call.key]) < len(call.inputs)}

    def fewest_positions(self, left: Survivors) -> int:
        """The least positions that the output of a call has which is not made any more."""
        calls = (call for call, living in zip(self.calls, left.lives, strict=True) if not living)
        return min((self.positions[made] for call in calls for made in call.outputs), default=0)

    def gone(self, left: Survivors) -> frozenset[str]:
        """The paths of the layers that are not called any more."""
        return frozenset(self.layers) - {
            call.key[0] for call, living in zip(self.calls, left.lives, strict=True) if living
        }

    def liveness(self, left: Survivors) -> npt.NDArray[np.int64]:
        """(calls + layers,) 1 for each call, then for each layer, that still runs; 0 for the others."""
        gone = self.gone(left)
        layers = [path not in gone for path in self.layers]
        return np.concatenate([left.lives, layers]).astype(np.int64)

    def dies(self, left: Survivors, born: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(tensors,) The last step at which each is needed; see `cost.CostModel`. born: (tensors,) the first one."""
        last = born.copy()
        for number, call in enumerate(self.calls):
            if left.lives[number]:
                needed = [left.stands[tensor] for tensor in call.inputs if left.stands[tensor] != _GONE]
                last[needed] = np.maximum(last[needed], number + 1)
        last[[left.stands[result] for result in self.results]] = len(self.calls)
        return last


@dataclass(frozen=True, eq=False)
class _Axes:
    """The channel sets of all tensors end to end, to count what each keeps in one pass; equal axes stand there once."""

    sets: IntArray
    starts: npt.NDArray[np.int64]
    axis_of: IntArray

    @classmethod
    def of(cls, tensors: Sequence[IntArray]) -> _Axes:
        axes = {id(sets): sets for sets in tensors}
        numbers = {key: number for number, key in enumerate(axes)}
        starts = np.concatenate([[0], np.cumsum([len(sets) for sets in axes.values()])]).astype(np.int64)
        sets = np.concatenate([*axes.values(), np.empty(0, np.int32)])
        return cls(sets, starts, np.array([numbers[id(tensor)] for tensor in tensors], dtype=np.int32))

    def kept(self, keep: BoolArray) -> npt.NDArray[np.int64]:
        """(tensors,) How many channels each tensor keeps."""
        running = np.concatenate([[0], np.cumsum(keep[self.sets], dtype=np.int64)])
        return np.asarray(np.diff(running[self.starts])[self.axis_of])

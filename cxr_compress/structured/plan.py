"""The decision which channels stay, as data: written to JSON, read by a person, composed, and applied once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.cost import BoolArray, ModelCost

if TYPE_CHECKING:
    from cxr_compress.keras2 import keras

# Format 1 had no members, no protected groups and no allow_inexact; format 2 called these groups frozen.
PLAN_FORMAT = 3
_OTHER_MODEL = "apply the plan to the model that it was made for"


@dataclass(frozen=True)
class ChannelPlan:
    """Which channels stay, decided once and applied once; a JSON that a person can read and edit.

    Only `kept` decides; whoever edits it leaves the other entries as they are: what a removal costs is counted anew,
    and `with_costs` brings `before` and `after` up to date.

    Attributes:
        kept: by group, the channels that stay, ascending; groups that lose nothing are not listed. A group that keeps
            none takes whole layers with it: those that make or read nothing else (see `wiring`).
        channels: by the same groups, how many there were: a plan for another model is refused.
        exclude: the patterns that the analysis was made with.
        settings: how the plan was made (scope, round_to, budget), for the reader.
        before: the cost before.
        after: the cost after, exactly that of the rebuilt model unless `kept` was edited since.
        members: by the same groups, the layers whose filters they are; for the reader.
        protected: by group, why it must stay whole; for the reader.
        allow_inexact: as it was given to `analyze_channels`.

    Raises:
        CompressionError: a channel twice or one that a group does not have.
    """

    kept: dict[str, tuple[int, ...]]
    channels: dict[str, int]
    exclude: tuple[str, ...]
    settings: dict[str, Any]
    before: ModelCost
    after: ModelCost
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    protected: dict[str, str] = field(default_factory=dict)
    allow_inexact: bool = False

    def __post_init__(self) -> None:
        for name, kept in self.kept.items():
            _check_kept(name, kept, self.channels[name])

    @classmethod
    def of(cls, analysis: ChannelAnalysis, keep: BoolArray, settings: Mapping[str, Any]) -> ChannelPlan:
        """The plan that keeps these channel sets of an analyzed model; keep: (set_count,), True = kept.

        Raises:
            CompressionError: a group keeps none that the model cannot do without.
        """
        keep = analysis.settled(keep)
        pruned = {name: group for name, group in analysis.groups.items() if not keep[group.sets].all()}
        return cls(
            kept={name: tuple(np.flatnonzero(keep[group.sets]).tolist()) for name, group in pruned.items()},
            channels={name: group.channels for name, group in pruned.items()},
            exclude=analysis.exclude,
            settings=dict(settings),
            before=analysis.baseline,
            after=analysis.cost_model.cost(keep),
            members={name: group.members for name, group in pruned.items()},
            protected=dict(analysis.protected),
            allow_inexact=analysis.allow_inexact,
        )

    def to_json(self) -> str:
        """The plan as JSON, one group a line."""
        head = {
            "format": PLAN_FORMAT,
            "settings": self.settings,
            "exclude": list(self.exclude),
            "allow_inexact": self.allow_inexact,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }
        groups = {name: self._group_entry(name) for name in self.kept}
        return (
            json.dumps(head, indent=1)[:-2] + _lines("groups", groups) + _lines("protected", self.protected) + "\n}\n"
        )

    def _group_entry(self, name: str) -> dict[str, Any]:
        kept, channels = self.kept[name], self.channels[name]
        members = {"members": list(self.members[name])} if name in self.members else {}
        return {**members, "channels": channels, "removed": channels - len(kept), "kept": list(kept)}

    @classmethod
    def from_json(cls, text: str) -> ChannelPlan:
        """The inverse of `to_json`.

        `kept` may be in any order; `removed` is for the reader and is not read.

        Raises:
            CompressionError: not a plan, one of a newer format, or one whose `kept` cannot be (see the class).
        """
        try:
            values = json.loads(text)
            if values["format"] not in range(1, PLAN_FORMAT + 1):
                raise CompressionError(
                    f"expected a channel plan of format {PLAN_FORMAT} or older, got {values['format']!r}: "
                    "upgrade cxr-compress or make the plan again"
                )
            groups: dict[str, Any] = values["groups"]
            return cls(
                kept={name: _read_kept(name, group["kept"]) for name, group in groups.items()},
                channels={name: int(group["channels"]) for name, group in groups.items()},
                exclude=tuple(values["exclude"]),
                settings=dict(values["settings"]),
                before=ModelCost.from_dict(values["before"]),
                after=ModelCost.from_dict(values["after"]),
                members={name: tuple(group["members"]) for name, group in groups.items() if "members" in group},
                protected=dict(values.get("protected") or values.get("frozen", {})),
                allow_inexact=bool(values.get("allow_inexact", False)),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CompressionError(
                f"expected a channel plan written by cxr_compress; could not read it: {error!r}"
            ) from error

    def keep_vector(self, analysis: ChannelAnalysis) -> BoolArray:
        """(set_count,) True where a channel set of the analyzed model stays.

        Raises:
            CompressionError: the plan was made for another model.
        """
        for name, channels in self.channels.items():
            if name not in analysis.groups and name not in analysis.protected:
                raise CompressionError(f"group {name!r} of the plan is not in this model: {_OTHER_MODEL}")
            if name in analysis.groups and analysis.groups[name].channels != channels:
                raise CompressionError(
                    f"the plan was made for a model whose group {name!r} has {channels} channels; this one has "
                    f"{analysis.groups[name].channels}: {_OTHER_MODEL}"
                )
        return analysis.keep_vector(self.kept)

    def on(self, model: keras.Model) -> ChannelAnalysis:
        """The analysis of the model that the plan was made for, with the options that it was made with.

        Raises:
            UnsupportedLayerError: as `analyze_channels`.
        """
        # Here and not above: a plan is read and written where no framework is installed.
        from cxr_compress.structured.analyze import analyze_channels

        return analyze_channels(model, exclude=self.exclude, allow_inexact=self.allow_inexact)

    def was_edited(self, analysis: ChannelAnalysis) -> bool:
        """Whether the plan keeps something else than what its costs say, as after an edit by hand.

        Raises:
            CompressionError: the plan was made for another model.
        """
        counted = self.with_costs(analysis)
        return any(_counted(getattr(self, side)) != _counted(getattr(counted, side)) for side in ("before", "after"))

    def with_costs(self, analysis: ChannelAnalysis) -> ChannelPlan:
        """The same plan with the costs counted anew, for one whose `kept` was edited.

        Raises:
            CompressionError: the plan was made for another model.
        """
        after = analysis.cost_model.cost(self.keep_vector(analysis))
        return replace(self, before=analysis.baseline, after=after)

    def named_as(self, analysis: ChannelAnalysis) -> ChannelPlan:
        """The same plan with the names that groups have in the model which this one was pruned from.

        A group is named after the first layer that makes its channels; where that one is gone, after the next.

        Raises:
            CompressionError: a group that is not one of that model.
        """
        owners = {member: group.name for group in analysis.groups.values() for member in group.members}
        names = {name: owners.get(self.members[name][0], "") for name in self.kept}
        unknown = next((name for name, whole in names.items() if not whole), "")
        if unknown:
            raise CompressionError(f"group {unknown!r} of the later plan is not one that may go: {_OTHER_MODEL}")
        if len(set(names.values())) < len(names):
            raise CompressionError(
                "removed layers have let a group fall apart, whose parts the next step prunes by themselves: remove "
                "filters in one step (--removal_steps=1)"
            )
        return replace(
            self,
            kept={names[name]: kept for name, kept in self.kept.items()},
            channels={names[name]: channels for name, channels in self.channels.items()},
            members={names[name]: members for name, members in self.members.items()},
        )

    def then(self, later: ChannelPlan) -> ChannelPlan:
        """One plan with the effect of this one followed by `later`, which was made for the model this one leaves.

        Removing in several steps, with new scores in between, ends in one plan for the starting model.

        Raises:
            CompressionError: `later` was made for another model.
        """
        if _counted(later.before) != _counted(self.after) or later.exclude != self.exclude:
            raise CompressionError(
                f"expected a plan for the model that the first one leaves ({_shown(self.after)}), got one for "
                f"{_shown(later.before)}"
            )
        kept, channels = dict(self.kept), dict(self.channels)
        for name, again in later.kept.items():
            before = self.kept.get(name, tuple(range(later.channels[name])))
            kept[name] = tuple(before[index] for index in again)
            channels.setdefault(name, later.channels[name])
        return ChannelPlan(
            kept=kept,
            channels=channels,
            exclude=self.exclude,
            settings=later.settings,
            before=self.before,
            after=later.after,
            members={**later.members, **self.members},
            protected={**later.protected, **self.protected},
            allow_inexact=self.allow_inexact or later.allow_inexact,
        )


def _shown(cost: ModelCost) -> str:
    return f"{cost.params:,} params, {'?' if cost.macs is None else f'{cost.macs:,}'} MACs"


def _counted(cost: ModelCost) -> tuple[int, int | None, int]:
    """The part of a cost that is exact; predicted bytes and milliseconds depend on what was measured."""
    return cost.params, cost.macs, cost.peak_activation_bytes


def _lines(key: str, entries: Mapping[str, Any]) -> str:
    """One entry of a JSON object, itself an object with one line an entry."""
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    return f",\n {json.dumps(key)}: {{\n{rows}\n }}" if entries else f",\n {json.dumps(key)}: {{}}"


def _read_kept(name: str, kept: Any) -> tuple[int, ...]:
    if not isinstance(kept, list) or not all(type(index) is int for index in kept):
        raise CompressionError(f'group {name!r}: expected "kept" as a list of channel numbers, got {kept!r:.60}')
    return tuple(sorted(kept))


def _check_kept(name: str, kept: tuple[int, ...], channels: int) -> None:
    """What a person may get wrong when editing."""
    wrong = next((index for index in kept if not 0 <= index < channels), None)
    if wrong is not None:
        raise CompressionError(f"group {name!r} has {channels} channels, numbered from 0: the plan keeps {wrong}")
    twice = next((index for index, again in pairwise(sorted(kept)) if index == again), None)
    if twice is not None:
        raise CompressionError(f"group {name!r}: the plan keeps channel {twice} twice: list each channel once")

"""The decision which channels stay, as data: written to JSON, read by a person, composed, and applied once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.structured.channels import ChannelAnalysis
from cxr_compress.structured.cost import BoolArray, ModelCost

PLAN_FORMAT = 1


@dataclass(frozen=True)
class ChannelPlan:
    """Which channels stay, decided once and applied once; a JSON that a person can read and edit.

    Attributes:
        kept: by group, the channels that stay, ascending; groups that lose nothing are not listed.
        channels: by the same groups, how many there were: a plan for another model is refused.
        exclude: the patterns that the analysis was made with.
        settings: how the plan was made (scope, round_to, budget), for the reader.
        before: the cost before.
        after: the cost after, exactly that of the rebuilt model.
    """

    kept: dict[str, tuple[int, ...]]
    channels: dict[str, int]
    exclude: tuple[str, ...]
    settings: dict[str, Any]
    before: ModelCost
    after: ModelCost

    def to_json(self) -> str:
        """The plan as JSON, one group a line."""
        head = {
            "format": PLAN_FORMAT,
            "settings": self.settings,
            "exclude": list(self.exclude),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }
        rows = (
            f"    {json.dumps(name)}: " + json.dumps({"channels": self.channels[name], "kept": list(kept)})
            for name, kept in self.kept.items()
        )
        return json.dumps(head, indent=1)[:-2] + ',\n "groups": {\n' + ",\n".join(rows) + "\n }\n}\n"

    @classmethod
    def from_json(cls, text: str) -> ChannelPlan:
        """The inverse of `to_json`.

        Raises:
            CompressionError: not a plan, or one of a newer format.
        """
        try:
            values = json.loads(text)
            if values["format"] != PLAN_FORMAT:
                raise CompressionError(f"expected a channel plan of format {PLAN_FORMAT}, got {values['format']}")
            groups: dict[str, Any] = values["groups"]
            return cls(
                kept={name: tuple(sorted(int(index) for index in group["kept"])) for name, group in groups.items()},
                channels={name: int(group["channels"]) for name, group in groups.items()},
                exclude=tuple(values["exclude"]),
                settings=dict(values["settings"]),
                before=ModelCost.from_dict(values["before"]),
                after=ModelCost.from_dict(values["after"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CompressionError(
                f"expected a channel plan written by cxr_compress; could not read it: {error!r}"
            ) from error

    def keep_vector(self, analysis: ChannelAnalysis) -> BoolArray:
        """(units,) True where a unit of the analysed model stays.

        Raises:
            CompressionError: the plan was made for another model.
        """
        for name, channels in self.channels.items():
            if name in analysis.groups and analysis.groups[name].channels != channels:
                raise CompressionError(
                    f"the plan was made for a model whose group {name!r} has {channels} channels; this one has "
                    f"{analysis.groups[name].channels}: make the plan from this model"
                )
        return analysis.keep_vector(self.kept)

    def then(self, later: ChannelPlan) -> ChannelPlan:
        """One plan with the effect of this one followed by `later`, which was made for the model this one leaves.

        Removing in several steps, with new scores in between, ends in one plan for the starting model.

        Raises:
            CompressionError: `later` was made for another model.
        """
        if later.before != self.after or later.exclude != self.exclude:
            raise CompressionError(
                f"expected a plan for the model that the first one leaves ({self.after.params:,} params, "
                f"{self.after.macs:,} MACs), got one for {later.before.params:,} params, {later.before.macs:,} MACs"
            )
        kept, channels = dict(self.kept), dict(self.channels)
        for name, again in later.kept.items():
            before = self.kept.get(name, tuple(range(later.channels[name])))
            kept[name] = tuple(before[index] for index in again)
            channels.setdefault(name, later.channels[name])
        return ChannelPlan(kept, channels, self.exclude, later.settings, self.before, later.after)

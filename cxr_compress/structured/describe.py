"""An analysis, and what a plan does to each layer, as JSON-ready data: what `cxr_inspect` shows.

The cost of each layer is counted from its own weights and calls. Summed over all layers it is the cost that the
analysis gives for the whole model, for layers that are shared, nested or called on several sizes too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import calls_of, is_nested, layers_by_path, tensors_in
from cxr_compress.structured.analysis import ChannelAnalysis, ChannelGroup
from cxr_compress.structured.cost import BoolArray, IntArray, ModelCost
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.walk import TracedLayer, Walk

# "block1/norm (LayerNormalization) takes ..." -> "LayerNormalization takes ...": what counts alike over layers.
_LAYER_AND_CLASS = re.compile(r"^\S+ \((\w+)\) ")


def describe_model(analysis: ChannelAnalysis, model: keras.Model) -> dict[str, Any]:
    """What the analysis of a model found.

    Args:
        analysis: of this model.
        model: is only read.

    Returns:
        `summary`: params, macs (None where not_counted names layers), not_counted, peak_activation_bytes, layers,
        groups, channels (that may go), protected_groups and protected_reasons ({kind of reason: groups}; a group may
        have several).
        `groups`: one dict each of name, channels, members, consumers, and the params and macs (also as fractions of
        the model, None of unknown MACs) that disappear with the whole group. They are products of two groups' widths,
        so these overlap.
        `layers`: in the order they run: path, class, calls, output_shape (first call, without the batch), weights,
        params, macs, filters (output channels), has_filters (it makes them or multiplies them by a kernel), group (that
        these belong to; None where there are several, behind a Concatenate), groups (all that its weights or output
        shrink with), removable and why_not.
        `protected`: {group: reason}. `exclude`, `allow_inexact`: as the analysis was asked for.
    """
    layers = _LayerTable(analysis, model)
    baseline = analysis.baseline
    return {
        "summary": {
            **_numbers(baseline),
            "not_counted": list(baseline.uncounted),
            "layers": len(layers.paths),
            "groups": len(analysis.groups),
            "channels": sum(group.channels for group in analysis.groups.values()),
            "protected_groups": len(analysis.protected),
            "protected_reasons": _reason_counts(analysis.protected),
        },
        "groups": [_describe_group(analysis, group) for group in analysis.groups.values()],
        "layers": layers.rows(),
        "protected": dict(analysis.protected),
        "exclude": list(analysis.exclude),
        "allow_inexact": analysis.allow_inexact,
    }


def describe_plan(analysis: ChannelAnalysis, model: keras.Model, plan: ChannelPlan) -> dict[str, Any]:
    """What each layer of a model loses by a plan; costs are counted from `kept`, edited or not.

    Args:
        analysis: of this model, with the plan's `exclude` and `allow_inexact`.
        model: the model that the plan was made for; is only read.
        plan: what stays.

    Returns:
        `before`, `after`: the costs. `edited`: whether they had to be counted anew; predictions of bytes and
        milliseconds are then left out.
        `settings`, `exclude`, `allow_inexact`: of the plan.
        `layers`: in the order they run, one dict per layer with weights: path, class, groups (of its output),
        protected (these must stay), has_filters, filters_before, filters_kept, params_before, params_after,
        macs_before, macs_after.

    Raises:
        CompressionError: the plan was made for another model.
    """
    keep = plan.keep_vector(analysis)
    gone = analysis.wiring.gone(analysis.wiring.settle(keep))
    edited = plan.was_edited(analysis)
    counted = plan.with_costs(analysis) if edited else plan
    layers = _LayerTable(analysis, model)
    return {
        "before": _numbers(counted.before),
        "after": _numbers(counted.after),
        "edited": edited,
        "settings": dict(plan.settings),
        "exclude": list(plan.exclude),
        "allow_inexact": plan.allow_inexact,
        "layers": [layers.loss(path, keep, gone) for path in layers.paths if layers.traced[path].weight_shapes],
    }


def _numbers(cost: ModelCost) -> dict[str, Any]:
    """A cost for the reader, whose MACs are said to be unknown where they are."""
    return cost.to_dict() | ({"macs": None} if cost.macs is None else {})


def _describe_group(analysis: ChannelAnalysis, group: ChannelGroup) -> dict[str, Any]:
    """A group and what hangs on it: the cost of the model less that of the model without any of its channels."""
    keep = np.ones(analysis.set_count, dtype=np.bool_)
    keep[group.sets] = False
    whole, rest = analysis.baseline, analysis.cost_model.cost(keep)
    params = whole.params - rest.params
    # Known even where the whole is not: the channels around a layer that is not counted stay.
    macs = analysis.cost_model.counted_macs(np.ones_like(keep)) - analysis.cost_model.counted_macs(keep)
    return {
        "name": group.name,
        "channels": group.channels,
        "members": list(group.members),
        "consumers": list(group.consumers),
        "params": params,
        "params_fraction": params / max(whole.params, 1),
        "macs": macs,
        "macs_fraction": None if whole.macs is None else macs / max(whole.macs, 1),
    }


def _reason_counts(protected: dict[str, str]) -> dict[str, int]:
    """How many groups each kind of reason protects, the most frequent first."""
    kinds = chain.from_iterable(
        dict.fromkeys(_LAYER_AND_CLASS.sub(r"\1 ", reason) for reason in reasons.split("; "))
        for reasons in protected.values()
    )
    return dict(Counter(kinds).most_common())


class _LayerTable:
    """The layers of a model, walked once more to see what the analysis sums over: weights, calls and outputs."""

    def __init__(self, analysis: ChannelAnalysis, model: keras.Model) -> None:
        self._analysis = analysis
        walk = Walk(analysis.allow_inexact)
        walk.run(model)
        self.traced: dict[str, TracedLayer] = walk.layers
        self._uncounted = walk.uncounted
        self._partition = walk.space.solve()
        self._calls: dict[str, list[Any]] = {}
        paths = {id(layer): path for path, layer in layers_by_path(model).items()}
        for call in _calls(model):
            self._calls.setdefault(paths[id(call.layer)], []).append(call)
        self.paths = list(self._calls)
        self._owners = {owner for group in self._partition.groups for owner in group.owners}
        sizes = [group.stop - group.start for group in self._partition.groups]
        self._group_of_set = np.repeat(np.arange(len(sizes)), sizes)

    def rows(self) -> list[dict[str, Any]]:
        """Every layer as it is; see `describe_model`."""
        keep = np.ones(self._analysis.set_count, dtype=np.bool_)
        return [self._row(path, keep) for path in self.paths]

    def loss(self, path: str, keep: BoolArray, gone: frozenset[str]) -> dict[str, Any]:
        """A layer before and after, nothing of which is left if it is gone as a whole; see `describe_plan`."""
        sets = self._output_sets(path)
        (params, macs), (params_after, macs_after) = (self._cost(path, some) for some in (np.ones_like(keep), keep))
        if path in gone:
            params_after, macs_after = 0, None if macs is None else 0
        return {
            "path": path,
            "class": type(self._calls[path][0].layer).__name__,
            "groups": self._groups_of(sets),
            "protected": all(name in self._analysis.protected for name in self._groups_of(sets)),
            "has_filters": self._has_filters(path, macs),
            "filters_before": len(sets),
            "filters_kept": 0 if path in gone else int(keep[sets].sum()),
            "params_before": params,
            "params_after": params_after,
            "macs_before": macs,
            "macs_after": macs_after,
        }

    def _row(self, path: str, keep: BoolArray) -> dict[str, Any]:
        calls = self._calls[path]
        params, macs = self._cost(path, keep)
        own = self._groups_of(self._output_sets(path))
        filters = self._has_filters(path, macs)
        why_not = self._analysis.protected.get(own[0], "") if filters else "has no filters of its own"
        return {
            "path": path,
            "class": type(calls[0].layer).__name__,
            "calls": len(calls),
            "output_shape": list(tensors_in(calls[0].outputs)[0].shape)[1:],
            "weights": len(self.traced[path].weight_shapes),
            "params": params,
            "macs": macs,
            "filters": len(self._output_sets(path)),
            "group": own[0] if len(own) == 1 else None,
            "groups": self._groups_around(path),
            "has_filters": filters,
            "removable": not why_not,
            "why_not": why_not,
        }

    def _cost(self, path: str, keep: BoolArray) -> tuple[int, int | None]:
        """Params, and MACs over all calls (None where not counted), of a layer that keeps these channel sets."""
        layer = self.traced[path]
        sliced = self._analysis.layers.get(path)
        axes = {(axis.weight, axis.axis): int(keep[axis.sets].sum()) for axis in (sliced.axes if sliced else ())}
        sizes = [
            prod(axes.get((weight, axis), length) for axis, length in enumerate(shape))
            for weight, shape in enumerate(layer.weight_shapes)
        ]
        macs = sum(sizes[use.weight] * use.positions for call in layer.calls for use in call.uses)
        return sum(sizes), None if path in self._uncounted else macs

    def _has_filters(self, path: str, macs: int | None) -> bool:
        """Whether a layer's output channels are its own work: it multiplies, or nobody else makes them."""
        return bool(macs) or path in self._owners

    def _output_sets(self, path: str) -> IntArray:
        return self._partition.set_of[self.traced[path].flow.output.ids]

    def _groups_of(self, sets: IntArray) -> list[str]:
        """The names of the groups that channel sets belong to, protected ones too, in model order."""
        return [self._partition.groups[number].name for number in np.unique(self._group_of_set[sets]).tolist()]

    def _groups_around(self, path: str) -> list[str]:
        """The groups that may go and take a part of this layer's weights or output with them."""
        sliced = self._analysis.layers.get(path)
        sets = [axis.sets for axis in sliced.axes] if sliced else []
        names = self._groups_of(np.concatenate([*sets, self._output_sets(path)]))
        return [name for name in names if name in self._analysis.groups]


def _calls(model: keras.Model) -> Iterator[Any]:
    """Every call of a layer, nested models included, in the order in which they run."""
    for node in calls_of(model):
        if is_nested(node.layer):
            yield from _calls(node.layer)
        else:
            yield node

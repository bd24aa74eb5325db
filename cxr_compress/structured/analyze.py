"""From a Keras model to a ChannelAnalysis: walk the graph once, layer by layer, with symbolic layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import prod

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.structured.analysis import (
    AxisSlice,
    ChannelAnalysis,
    ChannelGroup,
    LayerSlices,
    SizeSlice,
    path_matcher,
)
from cxr_compress.structured.cost import CostModel, IntArray, ModelCost, Product
from cxr_compress.structured.layout import ChannelLayout, Partition
from cxr_compress.structured.measured_parts import collect_parts
from cxr_compress.structured.rules.base import LayerFlow
from cxr_compress.structured.walk import TracedLayer, Walk


def analyze_channels(
    model: keras.Model, *, exclude: Sequence[str] = (), allow_inexact: bool = False
) -> ChannelAnalysis:
    """Find out which filters of a model may be removed and everything that must get thinner with each.

    The model is only read. Works on functional and Sequential models, nested ones included; layers that are not
    understood protect the groups that reach them, with a reason in `protected`.

    Args:
        model: a built model with a fixed input size.
        exclude: regular expressions; a layer whose whole path ("backbone/conv1") matches keeps all its filters.
        allow_inexact: let channels go that a LayerNormalization takes statistics over. The pruned model then no longer
            equals the big one with these channels ignored: fine-tuning must make up for it.

    Raises:
        UnsupportedLayerError: a subclassed model, an open input size, or wiring that contradicts itself.
        CompressionError: an `exclude` pattern that is no regular expression or matches no layer.
    """
    walk = Walk(allow_inexact)
    walk.run(model)
    return replace(_Solved(walk, tuple(exclude)).analysis(), allow_inexact=allow_inexact)


def measure_cost(model: keras.Model) -> ModelCost:
    """Parameters, MACs and peak activation bytes of a model as it is, for one image.

    `macs` is None, and `uncounted` names the layers, where some may multiply and are not counted.

    Raises:
        UnsupportedLayerError: as `analyze_channels`.
    """
    return analyze_channels(model).baseline


class _Solved:
    """Turns what a walk collected into an analysis, once ties and protects are solved."""

    def __init__(self, walk: Walk, exclude: tuple[str, ...]) -> None:
        self._walk = walk
        self._exclude = exclude
        self._partition: Partition = walk.space.solve()
        self._axes: dict[int, tuple[int, IntArray]] = {}

    def analysis(self) -> ChannelAnalysis:
        """The finished analysis."""
        layers = {path: self._slices(path, layer) for path, layer in self._walk.layers.items() if _is_sliced(layer)}
        groups, protected = self._groups(layers)
        return ChannelAnalysis(
            groups,
            protected,
            layers,
            self._exclude,
            self._partition.units,
            self._cost_model(),
            protected_units={
                group.name: slice(group.start, group.stop)
                for group in self._partition.groups
                if group.name in protected
            },
        )

    def _axis(self, layout: ChannelLayout) -> tuple[int, IntArray]:
        """The number and the units of a layout's axis; BN's four weights and the tensors around it share one."""
        found = self._axes.get(id(layout.ids))
        if found is None:
            found = self._axes[id(layout.ids)] = (len(self._axes), self._partition.unit_of[layout.ids])
        return found

    def _slices(self, path: str, layer: TracedLayer) -> LayerSlices:
        axes = tuple(AxisSlice(a.weight, a.axis, self._axis(a.layout)[1], a.role) for a in layer.flow.axes)
        sizes = tuple(SizeSlice(size.keys, self._axis(size.layout)[1]) for size in layer.flow.sizes)
        return LayerSlices(path, axes, sizes)

    def _groups(self, layers: dict[str, LayerSlices]) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
        consumers = self._consumers(layers)
        groups: dict[str, ChannelGroup] = {}
        protected: dict[str, str] = {}
        excluded = self._excluded()
        for number, group in enumerate(self._partition.groups):
            reason = group.reason or next((excluded[name] for name in group.owners if name in excluded), "")
            if reason:
                protected[group.name] = reason
            else:
                size = group.stop - group.start
                groups[group.name] = ChannelGroup(group.name, size, group.owners, consumers[number], group.start)
        return groups, protected

    def _consumers(self, layers: dict[str, LayerSlices]) -> list[tuple[str, ...]]:
        """Per group, the layers that sum over its channels."""
        sizes = [group.stop - group.start for group in self._partition.groups]
        group_of_unit = np.repeat(np.arange(len(sizes)), sizes)
        paths = list(layers)
        sums_over = np.zeros((len(sizes), len(paths)), dtype=np.bool_)
        for number, layer in enumerate(layers.values()):
            for axis in layer.axes:
                if axis.role == "consume":
                    sums_over[group_of_unit[axis.units], number] = True
        return [tuple(paths[number] for number in np.flatnonzero(row).tolist()) for row in sums_over]

    def _excluded(self) -> dict[str, str]:
        """Which layers are left alone because the caller asked for it."""
        owners = list(chain.from_iterable(group.owners for group in self._partition.groups))
        found = {}
        for pattern in self._exclude:
            matches = list(filter(path_matcher(pattern, "exclude"), owners))
            if not matches:
                raise CompressionError(f"exclude {pattern!r} matches no layer that makes channels; see cxr_inspect")
            found.update(dict.fromkeys(matches, f"excluded by {pattern!r}"))
        return found

    def _cost_model(self) -> CostModel:
        macs = []
        weights = {
            path: [self._product(shape, number, layer.flow) for number, shape in enumerate(layer.weight_shapes)]
            for path, layer in self._walk.layers.items()
        }
        for path, layer in self._walk.layers.items():
            for use in chain.from_iterable(flow.uses for flow in layer.calls):
                weight = weights[path][use.weight]
                macs.append(Product(weight.factor * use.positions, weight.axes))
        tensors = [Product(tensor.positions, (self._axis(tensor.layout)[0],)) for tensor in self._walk.tensors]
        numbers = {key: number for key, (number, _) in self._axes.items()}
        return CostModel(
            axes=[units for _, units in self._axes.values()],
            params=list(chain.from_iterable(weights.values())),
            macs=macs,
            tensors=tensors,
            lifetimes=[(tensor.born, tensor.dies) for tensor in self._walk.tensors],
            uncounted=tuple(self._walk.uncounted.values()),
            # Only prices of a cost table need these; what they are made of holds no part of the Keras model.
            measured=partial(
                collect_parts, self._walk.layers, self._walk.calls, lambda layout: numbers[id(layout.ids)], weights
            ),
        )

    def _product(self, shape: tuple[int, ...], number: int, flow: LayerFlow) -> Product:
        """The size of a weight: its axes that follow channels, times the lengths of the others."""
        bound = {axis.axis: self._axis(axis.layout)[0] for axis in flow.axes if axis.weight == number}
        fixed = prod(length for axis, length in enumerate(shape) if axis not in bound)
        return Product(fixed, tuple(bound.values()))


def _is_sliced(layer: TracedLayer) -> bool:
    return bool(layer.flow.axes or layer.flow.sizes)

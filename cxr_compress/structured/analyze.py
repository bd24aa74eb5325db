"""From a Keras model to a ChannelAnalysis: walk the graph once, layer by layer, with symbolic layouts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from math import prod

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.structured.channels import AxisSlice, ChannelAnalysis, ChannelGroup, LayerSlices, SizeSlice
from cxr_compress.structured.cost import CostModel, IntArray, ModelCost, Product
from cxr_compress.structured.flow import LayerFlow
from cxr_compress.structured.keras_graph import layers_by_path
from cxr_compress.structured.layout import ChannelLayout, Partition, UnitGroup
from cxr_compress.structured.walk import TracedLayer, Walk

__all__ = ["analyze_channels", "layers_by_path", "measure_cost"]


def analyze_channels(
    model: keras.Model, *, exclude: Sequence[str] = (), allow_inexact: bool = False
) -> ChannelAnalysis:
    """Find out which filters of a model may be removed and everything that must get thinner with each.

    The model is only read. Works on functional and Sequential models, nested ones included; layers that are not
    understood freeze the groups that reach them, with a reason in `frozen`.

    Args:
        model: a built model with a fixed input size.
        exclude: regular expressions; a layer whose whole path ("backbone/conv1") matches keeps all its filters.
        allow_inexact: let channels go that a LayerNormalization takes statistics over. The thin model then no longer
            equals the big one with these channels ignored: fine-tuning must make up for it.

    Raises:
        UnsupportedLayerError: a subclassed model, an open input size, or wiring that contradicts itself.
        CompressionError: an `exclude` pattern that matches no layer.
    """
    walk = Walk(allow_inexact)
    walk.run(model)
    return _Solved(walk, tuple(exclude)).analysis()


def measure_cost(model: keras.Model) -> ModelCost:
    """Parameters, MACs and peak activation bytes of a model as it is, for one image.

    Raises:
        UnsupportedLayerError: as `analyze_channels`.
    """
    return analyze_channels(model).baseline


class _Solved:
    """Turns what a walk collected into an analysis, once ties and freezes are solved."""

    def __init__(self, walk: Walk, exclude: tuple[str, ...]) -> None:
        self._walk = walk
        self._exclude = exclude
        self._partition: Partition = walk.space.solve()
        self._axes: dict[int, tuple[int, IntArray]] = {}

    def analysis(self) -> ChannelAnalysis:
        """The finished analysis."""
        layers = {path: self._slices(path, layer) for path, layer in self._walk.layers.items() if _is_sliced(layer)}
        groups, frozen = self._groups(layers)
        return ChannelAnalysis(groups, frozen, layers, self._exclude, self._partition.units, self._cost_model())

    def _axis(self, layout: ChannelLayout) -> int:
        """The number of a layout's axis; BN's four weights and the tensors around it share one."""
        key = id(layout.ids)
        if key not in self._axes:
            self._axes[key] = (len(self._axes), self._partition.unit_of[layout.ids])
        return self._axes[key][0]

    def _units(self, layout: ChannelLayout) -> IntArray:
        self._axis(layout)
        return self._axes[id(layout.ids)][1]

    def _slices(self, path: str, layer: TracedLayer) -> LayerSlices:
        axes = tuple(AxisSlice(a.weight, a.axis, self._units(a.layout), a.role) for a in layer.flow.axes)
        sizes = tuple(SizeSlice(size.keys, self._units(size.layout)) for size in layer.flow.sizes)
        return LayerSlices(path, axes, sizes)

    def _groups(self, layers: dict[str, LayerSlices]) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
        consumers = self._consumers(layers)
        groups: dict[str, ChannelGroup] = {}
        frozen: dict[str, str] = {}
        excluded = self._excluded()
        for number, group in enumerate(self._partition.groups):
            reason = group.reason or next((excluded[name] for name in group.owners if name in excluded), "")
            if reason:
                frozen[group.name] = reason
            else:
                size = group.stop - group.start
                groups[group.name] = ChannelGroup(group.name, size, group.owners, consumers[number], group.start)
        return groups, frozen

    def _consumers(self, layers: dict[str, LayerSlices]) -> list[tuple[str, ...]]:
        """Per group, the layers that sum over its channels."""
        found: list[dict[str, None]] = [{} for _ in self._partition.groups]
        group_of_unit = _group_numbers(self._partition.groups)
        for layer in layers.values():
            for axis in layer.axes:
                if axis.role == "consume":
                    for number in dict.fromkeys(group_of_unit[unit] for unit in axis.units.tolist()):
                        found[number][layer.path] = None
        return [tuple(names) for names in found]

    def _excluded(self) -> dict[str, str]:
        """Which layers are left alone because the caller asked for it."""
        owners = list(chain.from_iterable(group.owners for group in self._partition.groups))
        found = {}
        for pattern in self._exclude:
            matches = [owner for owner in owners if re.fullmatch(pattern, owner)]
            if not matches:
                raise CompressionError(f"exclude {pattern!r} matches no layer that makes channels; see cxr_inspect")
            found.update(dict.fromkeys(matches, f"excluded by {pattern!r}"))
        return found

    def _cost_model(self) -> CostModel:
        params, macs = [], []
        for layer in self._walk.layers.values():
            weights = [self._product(shape, number, layer.flow) for number, shape in enumerate(layer.weight_shapes)]
            params += weights
            for use in chain.from_iterable(flow.uses for flow in layer.calls):
                macs.append(Product(weights[use.weight].factor * use.positions, weights[use.weight].axes))
        tensors = [Product(tensor.positions, (self._axis(tensor.layout),)) for tensor in self._walk.tensors]
        return CostModel(
            axes=[units for _, units in self._axes.values()],
            params=params,
            macs=macs,
            tensors=tensors,
            lifetimes=[(tensor.born, tensor.dies) for tensor in self._walk.tensors],
        )

    def _product(self, shape: tuple[int, ...], number: int, flow: LayerFlow) -> Product:
        """The size of a weight: its axes that follow channels, times the lengths of the others."""
        bound = {axis.axis: self._axis(axis.layout) for axis in flow.axes if axis.weight == number}
        fixed = prod(length for axis, length in enumerate(shape) if axis not in bound)
        return Product(fixed, tuple(bound.values()))


def _is_sliced(layer: TracedLayer) -> bool:
    return bool(layer.flow.axes or layer.flow.sizes)


def _group_numbers(groups: Sequence[UnitGroup]) -> list[int]:
    """Per unit, the number of its group."""
    return [number for number, group in enumerate(groups) for _ in range(group.stop - group.start)]

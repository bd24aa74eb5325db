"""From a Keras model to a ChannelAnalysis: walk the graph once, layer by layer, with symbolic layouts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import cxr_compress.structured.rules  # noqa: F401 - importing it registers the rules
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.structured.channels import AxisSlice, ChannelAnalysis, ChannelGroup, LayerSlices, SizeSlice
from cxr_compress.structured.cost import CostModel, IntArray, ModelCost, Product
from cxr_compress.structured.flow import LayerFlow, LayerNode, apply_rule
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace, Partition, UnitGroup


def analyze_channels(model: keras.Model, *, exclude: Sequence[str] = ()) -> ChannelAnalysis:
    """Find out which filters of a model may be removed and everything that must get thinner with each.

    The model is only read. Works on functional and Sequential models, nested ones included; layers that are not
    understood freeze the groups that reach them, with a reason in `frozen`.

    Args:
        model: a built model with a fixed input size.
        exclude: regular expressions; a layer whose whole path ("backbone/conv1") matches keeps all its filters.

    Raises:
        UnsupportedLayerError: a subclassed model, an open input size, or wiring that contradicts itself.
        CompressionError: an `exclude` pattern that matches no layer.
    """
    walk = _Walk()
    walk.run(model)
    return _Solved(walk, tuple(exclude)).analysis()


def measure_cost(model: keras.Model) -> ModelCost:
    """Parameters, MACs and peak activation bytes of a model as it is, for one image.

    Raises:
        UnsupportedLayerError: as `analyze_channels`.
    """
    return analyze_channels(model).baseline


@dataclass
class _Tensor:
    """One tensor of the running model: how big it is and from which step to which it must be kept."""

    layout: ChannelLayout
    positions: int
    born: int
    dies: int


@dataclass
class _Layer:
    """What is known of one layer after all its calls."""

    weight_shapes: tuple[tuple[int, ...], ...]
    flow: LayerFlow
    calls: list[LayerFlow] = field(default_factory=list)


class _Walk:
    """Visits every node of a model, and of the models inside it, in the order in which Keras runs them."""

    def __init__(self) -> None:
        self.space = ChannelSpace()
        self.layers: dict[str, _Layer] = {}
        self.tensors: list[_Tensor] = []
        self._step = 0

    def run(self, model: keras.Model) -> None:
        """Visit the model; its inputs and outputs are frozen."""
        _require_graph(model)
        inputs = []
        for tensor in model.inputs:
            name, shape = tensor._keras_history.layer.name, _shape(tensor, model.name)
            layout = self.space.allocate(name, shape[-1] if shape else 1)
            self.space.freeze(layout, "is an input of the model")
            inputs.append(self._add_tensor(layout, shape))
        for output in self._visit(model, "", inputs):
            self.space.freeze(output.layout, "reaches the output of the model")
            output.dies = self._step

    def _visit(self, model: keras.Model, prefix: str, inputs: list[_Tensor]) -> list[_Tensor]:
        """The output tensors of a model whose input tensors are these."""
        known = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
        for node in _nodes(model):
            arguments = [known[id(tensor)] for tensor in node.keras_inputs]
            results = _flat(node.outputs)
            values = self._call(node.layer, prefix + node.layer.name, node.keras_inputs, results, arguments)
            known.update((id(tensor), value) for tensor, value in zip(results, values, strict=True))
        return [known[id(tensor)] for tensor in model.outputs]

    def _call(
        self, layer: Any, path: str, inputs: Sequence[Any], outputs: Sequence[Any], arguments: list[_Tensor]
    ) -> list[_Tensor]:
        """Run one layer on layouts."""
        if isinstance(layer, keras.Model):
            _require_graph(layer)
            return self._visit(layer, path + "/", arguments)
        self._step += 1
        for argument in arguments:
            argument.dies = self._step
        shapes = [_shape(tensor, path) for tensor in outputs]
        node = LayerNode(
            path=path,
            class_name=type(layer).__name__,
            read_config=layer.get_config,
            input_shapes=tuple(_shape(tensor, path) for tensor in inputs),
            output_shape=shapes[0],
            weight_shapes=tuple(tuple(weight.shape) for weight in layer.weights),
        )
        layouts = [argument.layout for argument in arguments]
        flow = self._remember(node, apply_rule(node, layouts, self.space))
        extra = [self._frozen_output(path, number, shape) for number, shape in enumerate(shapes[1:], start=1)]
        return [self._add_tensor(layout, shape) for layout, shape in zip([flow.output, *extra], shapes, strict=True)]

    def _remember(self, node: LayerNode, flow: LayerFlow) -> LayerFlow:
        """Keep what the rule said; a layer called again must slice its weights the same way each time."""
        layer = self.layers.setdefault(node.path, _Layer(node.weight_shapes, flow))
        layer.calls.append(flow)
        for first, again in zip(layer.flow.axes, flow.axes, strict=False):
            self.space.tie(first.layout, again.layout)
        return flow

    def _frozen_output(self, path: str, number: int, shape: tuple[int, ...]) -> ChannelLayout:
        layout = self.space.allocate(f"{path}:{number}", shape[-1] if shape else 1)
        self.space.freeze(layout, f"{path} has several outputs, which are not followed")
        return layout

    def _add_tensor(self, layout: ChannelLayout, shape: tuple[int, ...]) -> _Tensor:
        tensor = _Tensor(layout, prod(shape[:-1]), self._step, self._step)
        self.tensors.append(tensor)
        return tensor


class _Solved:
    """Turns what a walk collected into an analysis, once ties and freezes are solved."""

    def __init__(self, walk: _Walk, exclude: tuple[str, ...]) -> None:
        self._walk = walk
        self._exclude = exclude
        self._partition: Partition = walk.space.solve()
        self._axes: dict[int, tuple[int, IntArray]] = {}

    def analysis(self) -> ChannelAnalysis:
        """The finished analysis."""
        layers = {path: self._slices(path, layer) for path, layer in self._walk.layers.items() if layer.flow.axes}
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

    def _slices(self, path: str, layer: _Layer) -> LayerSlices:
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


def _group_numbers(groups: Sequence[UnitGroup]) -> list[int]:
    """Per unit, the number of its group."""
    return [number for number, group in enumerate(groups) for _ in range(group.stop - group.start)]


def _require_graph(model: keras.Model) -> None:
    if not getattr(model, "_is_graph_network", False):
        raise UnsupportedLayerError(
            f"expected a functional or built Sequential Keras model, got {type(model).__name__} {model.name!r}, whose "
            "wiring cannot be read: rebuild it with keras.Model(inputs, outputs)"
        )


def layers_by_path(model: keras.Model, prefix: str = "") -> dict[str, Any]:
    """Every layer of a model, those of nested models included, by the path that the analysis gives it."""
    found: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found.update(layers_by_path(layer, f"{prefix}{layer.name}/"))
        else:
            found[prefix + layer.name] = layer
    return found


def _nodes(model: keras.Model) -> Iterator[Any]:
    """The calls of a model's layers, each after the calls it depends on; Keras keeps them by distance from the end."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _shape(tensor: Any, where: str) -> tuple[int, ...]:
    """A tensor's shape without the batch axis."""
    shape = tuple(tensor.shape)[1:]
    if None in shape:
        raise UnsupportedLayerError(
            f"{where}: expected a model with a fixed input size, got a tensor of shape {tuple(tensor.shape)}; "
            "rebuild the model with the size it will run at, for example input_shape=(224, 224, 3)"
        )
    return shape

"""From a Keras model to a ChannelAnalysis: what a walk over the graph collected, solved and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import ceil, prod

import numpy as np

from cxr_compress.device.cost_table import LayerUse, ProbeSpec
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.layer_traits import FUSED_ACTIVATIONS
from cxr_compress.structured.analysis import (
    AxisSlice,
    ChannelAnalysis,
    ChannelGroup,
    LayerSlices,
    SizeSlice,
    path_matcher,
)
from cxr_compress.structured.cost import (
    CostModel,
    FileCounts,
    IntArray,
    KernelCall,
    MeasuredParts,
    ModelCost,
    Product,
)
from cxr_compress.structured.layout import ChannelLayout, Partition
from cxr_compress.structured.rules.base import KernelUse, LayerFlow, Shape
from cxr_compress.structured.walk import CalledLayer, TracedCall, TracedLayer, Walk
from cxr_compress.structured.wiring import WiredCall, Wiring


def analyze_channels(
    model: keras.Model, *, exclude: Sequence[str] = (), allow_inexact: bool = False
) -> ChannelAnalysis:
    """Find out which filters of a model may be removed and everything that must shrink with each.

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
    return _Solved(walk, tuple(exclude)).analysis(allow_inexact)


def measure_cost(model: keras.Model) -> ModelCost:
    """Parameters, MACs and peak activation bytes of a model as it is, for one image.

    `macs` is None, and `uncounted` names the layers, where some may multiply and are not counted.

    Raises:
        UnsupportedLayerError: as `analyze_channels`.
    """
    return analyze_channels(model).baseline


class _Solved:
    """Turns what a walk collected into an analysis, once ties and protections are solved."""

    def __init__(self, walk: Walk, exclude: tuple[str, ...]) -> None:
        self._walk = walk
        self._exclude = exclude
        self._partition: Partition = walk.space.solve()
        self._axes: dict[int, tuple[int, IntArray]] = {}
        self._wiring = Wiring()

    def analysis(self, allow_inexact: bool) -> ChannelAnalysis:
        """The finished analysis."""
        layers = {path: self._slices(path, layer) for path, layer in self._walk.layers.items() if _is_sliced(layer)}
        groups, protected = self._groups(layers)
        self._wiring = self._wired(protected)
        return ChannelAnalysis(
            groups,
            protected,
            layers,
            self._exclude,
            self._partition.set_count,
            self._cost_model(),
            allow_inexact,
            {group.name: slice(group.start, group.stop) for group in self._partition.groups if group.name in protected},
            self._wiring,
        )

    def _wired(self, protected: Mapping[str, str]) -> Wiring:
        """The calls as plain data, and which groups are not to go with them."""
        numbers = {id(tensor): number for number, tensor in enumerate(self._walk.tensors)}
        calls = [
            WiredCall(
                (call.layer.path, call.number),
                tuple(numbers[id(tensor)] for tensor in call.inputs),
                tuple(numbers[id(tensor)] for tensor in call.outputs),
                call.layer.flow.merge,
            )
            for call in self._walk.calls
        ]
        return Wiring(
            tuple(calls),
            tuple(self._axis(tensor.layout)[1] for tensor in self._walk.tensors),
            tuple(tensor.positions for tensor in self._walk.tensors),
            tuple(numbers[id(tensor)] for tensor in self._walk.results),
            tuple(replace(group, reason=protected.get(group.name, "")) for group in self._partition.groups),
        )

    def _axis(self, layout: ChannelLayout) -> tuple[int, IntArray]:
        """The number and the channel sets of a layout's axis; BN's four weights and the tensors around it share one."""
        key = id(layout.ids)
        if key not in self._axes:
            self._axes[key] = (len(self._axes), self._partition.set_of[layout.ids])
        return self._axes[key]

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
        group_of_set = np.repeat(np.arange(len(sizes)), sizes)
        paths = list(layers)
        sums_over = np.zeros((len(sizes), len(paths)), dtype=np.bool_)
        for number, layer in enumerate(layers.values()):
            for axis in layer.axes:
                if axis.role == "consume":
                    sums_over[group_of_set[axis.sets], number] = True
        return [tuple(paths[number] for number in np.flatnonzero(row).tolist()) for row in sums_over]

    def _excluded(self) -> dict[str, str]:
        """Which layers are left alone because the caller asked for it."""
        owners = list(chain.from_iterable(group.owners for group in self._partition.groups))
        reasons = {}
        for pattern in self._exclude:
            matches = list(filter(path_matcher(pattern, "exclude"), owners))
            if not matches:
                raise CompressionError(f"exclude {pattern!r} matches no layer that makes channels; see cxr_inspect")
            reasons.update(dict.fromkeys(matches, f"excluded by {pattern!r}"))
        return reasons

    def _cost_model(self) -> CostModel:
        macs = []
        alive = {path: len(self._wiring.calls) + number for number, path in enumerate(self._wiring.layers)}
        weights = {
            path: [
                self._product(shape, number, layer.flow)._replace(alive=alive[path])
                for number, shape in enumerate(layer.weight_shapes)
            ]
            for path, layer in self._walk.layers.items()
        }
        for number, call in enumerate(self._walk.calls):
            for use in call.layer.flow.uses:
                weight = weights[call.layer.path][use.weight]
                macs.append(Product(weight.factor * use.positions, weight.axes, number))
        tensors = [Product(tensor.positions, (self._axis(tensor.layout)[0],)) for tensor in self._walk.tensors]
        numbers = {key: number for key, (number, _) in self._axes.items()}
        return CostModel(
            axes=[sets for _, sets in self._axes.values()],
            params=list(chain.from_iterable(weights.values())),
            macs=macs,
            tensors=tensors,
            lifetimes=[(tensor.born, tensor.dies) for tensor in self._walk.tensors],
            uncounted=tuple(self._walk.uncounted.values()),
            # Only prices of a cost table need these; what they are made of holds no part of the Keras model.
            measured=partial(
                _collect_parts, self._walk.layers, self._walk.calls, lambda layout: numbers[id(layout.ids)], weights
            ),
            wiring=self._wiring,
        )

    def _product(self, shape: tuple[int, ...], number: int, flow: LayerFlow) -> Product:
        """The size of a weight: its axes that follow channels, times the lengths of the others."""
        bound = {axis.axis: self._axis(axis.layout)[0] for axis in flow.axes if axis.weight == number}
        fixed = prod(length for axis, length in enumerate(shape) if axis not in bound)
        return Product(fixed, tuple(bound.values()))


def _is_sliced(layer: TracedLayer) -> bool:
    return bool(layer.flow.axes or layer.flow.sizes)


_KERNEL_RANK = 2


def _collect_parts(
    layers: Mapping[str, TracedLayer],
    calls: Sequence[TracedCall],
    axis: Callable[[ChannelLayout], int],
    weights: Mapping[str, list[Product]],
) -> MeasuredParts:
    """Kernels, filters, norms, kernel calls and moved elements of a walked model.

    Args:
        layers: the layers of a finished walk, by path.
        calls: its calls.
        axis: gives the number of a layout's axis.
        weights: by layer path, one product per weight.
    """
    kernels = [
        product
        for path, layer in layers.items()
        for product, shape in zip(weights[path], layer.weight_shapes, strict=True)
        if len(shape) >= _KERNEL_RANK
    ]
    return MeasuredParts(
        kernels=kernels,
        filters=[
            _filters(layer, use, axis)._replace(alive=weights[path][use.weight].alive)
            for path, layer in layers.items()
            for use in layer.flow.uses
        ],
        norms=[product for layer in _norms(calls) if (product := _per_channel(layer, weights)) is not None],
        calls=list(chain.from_iterable(_calls(call.layer, number, axis) for number, call in enumerate(calls))),
        moved=[product._replace(alive=number) for number, call in enumerate(calls) for product in _moved(call, axis)],
    )


def _norms(calls: Sequence[TracedCall]) -> list[CalledLayer]:
    """Layers that scale channels by weights of their own and stay in the graph, each once."""
    without_kernel = (call for call in calls if call.layer.weight_shapes and not call.layer.flow.uses)
    return list({call.layer.path: call.layer for call in without_kernel if _stays_in_graph(call)}.values())


def _per_channel(layer: CalledLayer, weights: Mapping[str, list[Product]]) -> Product | None:
    products = zip(weights[layer.path], layer.weight_shapes, strict=True)
    return next((product for product, shape in products if len(shape) == 1), None)


def _filters(layer: TracedLayer, use: KernelUse, axis: Callable[[ChannelLayout], int]) -> Product:
    """How many filters a kernel has: the length of its output axis, or what follows from its input's."""
    shape = layer.weight_shapes[use.weight]
    if use.kind is None:
        return _length(shape, use.weight, -1, layer.flow, axis)
    inputs, outputs = use.kind.width_axes
    if outputs is not None:
        return _length(shape, use.weight, outputs, layer.flow, axis)
    length = _length(shape, use.weight, inputs, layer.flow, axis)
    times = use.kind.multiplier if use.kind.class_name.startswith("Depthwise") else 1
    return Product(length.factor * times, length.axes)


def _calls(layer: CalledLayer, number: int, axis: Callable[[ChannelLayout], int]) -> Iterator[KernelCall]:
    """Every use of a kernel that can be timed alone, in the call with this number."""
    for use in layer.flow.uses:
        if use.kind is not None:
            inputs, outputs = use.kind.width_axes
            shape = layer.weight_shapes[use.weight]
            made = Product(1) if outputs is None else _length(shape, use.weight, outputs, layer.flow, axis)
            yield KernelCall(
                use.kind,
                _length(shape, use.weight, inputs, layer.flow, axis)._replace(alive=number),
                made._replace(alive=number),
            )


def _length(shape: Shape, weight: int, place: int, flow: LayerFlow, axis: Callable[[ChannelLayout], int]) -> Product:
    """The length of one axis of a weight; `place` counts from its end."""
    for bound in flow.axes:
        if bound.weight == weight and bound.axis == len(shape) + place:
            return Product(1, (axis(bound.layout),))
    return Product(shape[place])


def _moved(call: TracedCall, axis: Callable[[ChannelLayout], int]) -> Iterator[Product]:
    times = _passes(call)
    if times:
        for tensor in (*call.inputs, *call.outputs):
            yield Product(times * tensor.positions, (axis(tensor.layout),))


_MULTIPLY_THEN_ADD = 2


def _stays_in_graph(call: TracedCall) -> bool:
    """Whether a normalization or channel-wise scale stays an operator of its own."""
    maker = call.inputs[0].maker if call.inputs else None
    behind_kernel = maker is not None and bool(maker.flow.uses) and _activation(maker) == "linear"
    return not (call.layer.traits.moving_statistics and behind_kernel and call.inputs[0].uses == 1)


def _passes(call: TracedCall) -> int:
    """How often a call reads its inputs and writes its outputs, over and above what its kernel does."""
    layer = call.layer
    if layer.flow.uses or layer.class_name == "Activation":
        return 0 if _activation(layer) in FUSED_ACTIVATIONS else 1
    if layer.traits.moving_statistics:
        return _MULTIPLY_THEN_ADD if _stays_in_graph(call) else 0
    return 0 if layer.traits.leaves_no_operator else 1


def _activation(layer: CalledLayer) -> str:
    """The name of a layer's own activation."""
    value = layer.activation
    if isinstance(value, Mapping):
        return str(value.get("class_name", "")).lower()
    return "linear" if value is None else str(value)


# Few layers get smaller than this; below it the fit goes on in straight lines.
_LEAST_SHARE = 1 / 8


@dataclass(frozen=True)
class KernelSurvey:
    """What the original model runs, as plain data.

    Attributes:
        probes: each kind of kernel once, with the widths that a pruned model may give it.
        uses: every use of a kernel.
        moved: elements that layers without a kernel read or write.
        file_counts: what the bytes of the model's file are split by.
    """

    probes: tuple[ProbeSpec, ...]
    uses: tuple[LayerUse, ...]
    moved: int
    file_counts: FileCounts


def survey_kernels(analysis: ChannelAnalysis) -> KernelSurvey:
    """List the kinds of kernel of an analyzed model; widths reach down to an eighth of every group that may shrink."""
    whole = np.ones(analysis.set_count, dtype=np.bool_)
    least = whole.copy()
    for group in analysis.groups.values():
        least[group.start + ceil(group.channels * _LEAST_SHARE) : group.start + group.channels] = False
    model, counts = analysis.cost_model, analysis.cost_model.counts(whole)
    measured = model.measured
    return KernelSurvey(
        probes=measured.probe_specs(counts, model.counts(least)),
        uses=measured.uses(counts),
        moved=measured.moved(counts),
        file_counts=measured.file_counts(counts),
    )

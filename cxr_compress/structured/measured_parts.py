"""From a walk over a model to what measured costs are multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil

import numpy as np

from cxr_compress.device.cost_table import LayerUse, ProbeSpec
from cxr_compress.models.layer_traits import FUSED_ACTIVATIONS
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.cost import FileCounts, KernelCall, MeasuredParts, Product
from cxr_compress.structured.layout import ChannelLayout
from cxr_compress.structured.rules.base import KernelUse, LayerFlow, Shape
from cxr_compress.structured.walk import CalledLayer, TracedCall, TracedLayer

_KERNEL_RANK = 2


def collect_parts(
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
        filters=[_filters(layer, use, axis) for layer in layers.values() for use in layer.flow.uses],
        norms=[product for layer in _norms(calls) if (product := _per_channel(layer, weights)) is not None],
        calls=list(chain.from_iterable(_calls(layer, axis) for layer in layers.values())),
        moved=list(chain.from_iterable(_moved(call, axis) for call in calls)),
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


def _calls(layer: TracedLayer, axis: Callable[[ChannelLayout], int]) -> Iterator[KernelCall]:
    """Every use of a kernel that can be timed alone."""
    for flow in layer.calls:
        for use in flow.uses:
            if use.kind is not None:
                inputs, outputs = use.kind.width_axes
                shape = layer.weight_shapes[use.weight]
                yield KernelCall(
                    use.kind,
                    _length(shape, use.weight, inputs, layer.flow, axis),
                    Product(1) if outputs is None else _length(shape, use.weight, outputs, layer.flow, axis),
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


# Thinner than this few layers get; the fit goes on below in straight lines.
_LEAST_SHARE = 1 / 8


@dataclass(frozen=True)
class KernelSurvey:
    """What the original model runs, as plain data.

    Attributes:
        probes: each kind of kernel once, with the widths that a thinner model may give it.
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
    whole = np.ones(analysis.units, dtype=np.bool_)
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

"""One pass over a Keras model with symbolic layouts in place of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import cxr_compress.structured.rules  # noqa: F401 - importing it registers the rules
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import (
    LayerConfig,
    call_numbers,
    calls_of,
    is_from_keras,
    is_nested,
    layers_by_path,
    read_call,
    require_graph,
    tensor_shape,
    tensors_in,
    weight_shapes,
    weights_of,
)
from cxr_compress.models.layer_traits import LayerTraits
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace
from cxr_compress.structured.rules.base import (
    ConfigSize,
    LayerFlow,
    LayerNode,
    apply_rule,
    described,
    multiplies_nothing,
)


@dataclass
class TracedTensor:
    """One tensor of the running model: how big it is and from which step to which it must be kept."""

    layout: ChannelLayout
    shape: tuple[int, ...]
    born: int
    dies: int
    maker: CalledLayer | None = None
    uses: int = 0

    @property
    def positions(self) -> int:
        """How many times the tensor holds every channel."""
        return prod(self.shape[:-1])


class CalledLayer(NamedTuple):
    """The layer of one call, as plain data: it outlives the walk and must not keep the Keras model alive.

    Attributes:
        path: as in `LayerNode`.
        class_name: as in `LayerNode`.
        traits: as in `LayerNode`.
        weight_shapes: as in `LayerNode`.
        activation: that of a layer which has a kernel or is an activation, as its config has it; None for others.
        flow: what the rule said of this call.
    """

    path: str
    class_name: str
    traits: LayerTraits
    weight_shapes: tuple[tuple[int, ...], ...]
    activation: Any
    flow: LayerFlow


class TracedCall(NamedTuple):
    """One call of one layer, the how manieth of its model's calls of it, what it took and what came out.

    Tensors know the layer that made them, not the call: with the call they would hold one another, and only the
    garbage collector, which is slow beside TensorFlow, could free them.
    """

    layer: CalledLayer
    number: int
    inputs: list[TracedTensor]
    outputs: list[TracedTensor]


@dataclass
class TracedLayer:
    """What is known of one layer after all its calls."""

    weight_shapes: tuple[tuple[int, ...], ...]
    flow: LayerFlow
    calls: list[LayerFlow]


class Walk:
    """Visits every node of a model, and of the models inside it, in the order in which Keras runs them."""

    def __init__(self, allow_inexact: bool) -> None:
        self.space = ChannelSpace()
        self.layers: dict[str, TracedLayer] = {}
        self.tensors: list[TracedTensor] = []
        self.results: list[TracedTensor] = []
        self.calls: list[TracedCall] = []
        self.uncounted: dict[str, str] = {}
        self._allow_inexact = allow_inexact
        self._step = 0
        self._paths: dict[int, str] = {}
        self._owners: dict[int, str] = {}

    def run(self, model: keras.Model) -> None:
        """Visit the model; its inputs and outputs are protected.

        Raises:
            UnsupportedLayerError: as `analyze_channels`.
        """
        require_graph(model)
        for path, layer in layers_by_path(model).items():
            self._paths[id(layer)] = path
            self._own(path, layer)
        inputs = []
        for tensor in model.inputs:
            name, shape = tensor._keras_history.layer.name, tensor_shape(tensor, model.name)
            layout = self.space.allocate(name, shape[-1] if shape else 1)
            self.space.protect(layout, "is an input of the model")
            inputs.append(self._add_tensor(layout, shape))
        self.results = self._visit(model, "", inputs)
        for output in self.results:
            self.space.protect(output.layout, "reaches the output of the model")
            output.dies = self._step
            output.uses += 1

    def _visit(self, model: keras.Model, prefix: str, inputs: list[TracedTensor]) -> list[TracedTensor]:
        """The output tensors of a model whose input tensors are these."""
        known = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
        numbers = call_numbers(model)
        for node in calls_of(model):
            arguments = [known[id(tensor)] for tensor in node.keras_inputs]
            outputs = tensors_in(node.outputs)
            values = self._call(node, prefix, arguments, outputs, numbers[id(node)])
            known.update((id(tensor), value) for tensor, value in zip(outputs, values, strict=True))
        return [known[id(tensor)] for tensor in model.outputs]

    def _call(
        self, call: Any, prefix: str, arguments: list[TracedTensor], outputs: list[Any], number: int
    ) -> list[TracedTensor]:
        """Run one layer on layouts."""
        layer = call.layer
        if is_nested(layer):
            inside = f"{prefix}{layer.name}/"
            self._enter(layer, inside, arguments)
            return self._visit(layer, inside, arguments)
        path = self._paths[id(layer)]
        self._step += 1
        for argument in arguments:
            argument.dies = self._step
            argument.uses += 1
        shapes = [tensor_shape(tensor, path) for tensor in outputs]
        from_keras = is_from_keras(layer)
        node = LayerNode(
            path=path,
            class_name=type(layer).__name__,
            read_config=partial(LayerConfig, layer) if from_keras else layer.get_config,
            input_shapes=tuple(argument.shape for argument in arguments),
            output_shape=shapes[0],
            weight_shapes=weight_shapes(layer),
            read_call=partial(read_call, call),
            from_keras=from_keras,
            allow_inexact=self._allow_inexact,
        )
        flow = apply_rule(node, [argument.layout for argument in arguments], self.space)
        self._remember(path, node.weight_shapes, flow)
        if not (flow.macs_known or multiplies_nothing(node)):
            self.uncounted[path] = described(node)
        extra = [self._protected_output(path, place, shape) for place, shape in enumerate(shapes[1:], start=1)]
        maker = _called_layer(node, flow)
        layouts = zip([flow.output, *extra], shapes, strict=True)
        tensors = [self._add_tensor(layout, shape, maker) for layout, shape in layouts]
        self.calls.append(TracedCall(maker, number, arguments, tensors))
        return tensors

    def _enter(self, model: keras.Model, prefix: str, arguments: list[TracedTensor]) -> None:
        """A nested model's own inputs count the channels that come in."""
        for tensor, argument in zip(model.inputs, arguments, strict=True):
            last = len(tensor_shape(tensor, prefix + tensor._keras_history.layer.name))
            if last:
                sizes = (ConfigSize(("batch_input_shape", last), argument.layout),)
                flow = LayerFlow(argument.layout, sizes=sizes)
                own = tensor._keras_history.layer
                self._remember(self._paths.get(id(own), prefix + own.name), (), flow)

    def _own(self, path: str, layer: Any) -> None:
        """Note whose weights these are: two layers with the same ones would be counted and cut twice."""
        for weight in weights_of(layer):
            owner = self._owners.setdefault(id(weight), path)
            if owner != path:
                raise UnsupportedLayerError(
                    f"{owner!r} and {path!r} have the same weight {weight.name}: give each layer weights of its own"
                )

    def _remember(self, path: str, shapes: tuple[tuple[int, ...], ...], flow: LayerFlow) -> None:
        """Keep what the rule said; a layer called again must be sliced the same way each time."""
        layer = self.layers.get(path)
        if layer is None:
            self.layers[path] = TracedLayer(shapes, flow, [flow])
            return
        layer.calls.append(flow)
        first, again = _layouts(layer.flow), _layouts(flow)
        if [len(layout) for layout in first] == [len(layout) for layout in again]:
            for one, other in zip(first, again, strict=True):
                self.space.tie(one, other)
            return
        for layout in (*first, *again):
            self.space.protect(layout, f"{path} is called on tensors that differ in channels")

    def _protected_output(self, path: str, number: int, shape: tuple[int, ...]) -> ChannelLayout:
        layout = self.space.allocate(f"{path}:{number}", shape[-1] if shape else 1)
        self.space.protect(layout, f"{path} has several outputs, which are not followed")
        return layout

    def _add_tensor(
        self, layout: ChannelLayout, shape: tuple[int, ...], maker: CalledLayer | None = None
    ) -> TracedTensor:
        tensor = TracedTensor(layout, shape, self._step, self._step, maker)
        self.tensors.append(tensor)
        return tensor


def _called_layer(node: LayerNode, flow: LayerFlow) -> CalledLayer:
    activation = node.config.get("activation") if flow.uses or node.class_name == "Activation" else None
    return CalledLayer(node.path, node.class_name, node.traits, node.weight_shapes, activation, flow)


def _layouts(flow: LayerFlow) -> list[ChannelLayout]:
    return [axis.layout for axis in flow.axes] + [size.layout for size in flow.sizes]

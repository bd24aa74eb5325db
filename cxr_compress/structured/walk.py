"""One pass over a Keras model with symbolic layouts in place of tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import cxr_compress.structured.rules  # noqa: F401 - importing it registers the rules
from cxr_compress.keras2 import keras
from cxr_compress.structured.flow import ConfigSize, LayerFlow, LayerNode, apply_rule
from cxr_compress.structured.keras_graph import flat, is_nested, nodes, read_call, require_graph, tensor_shape
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace


@dataclass
class TracedTensor:
    """One tensor of the running model: how big it is and from which step to which it must be kept."""

    layout: ChannelLayout
    positions: int
    born: int
    dies: int


@dataclass
class TracedLayer:
    """What is known of one layer after all its calls."""

    weight_shapes: tuple[tuple[int, ...], ...]
    flow: LayerFlow
    calls: list[LayerFlow] = field(default_factory=list)


class Walk:
    """Visits every node of a model, and of the models inside it, in the order in which Keras runs them."""

    def __init__(self, allow_inexact: bool) -> None:
        self.space = ChannelSpace()
        self.layers: dict[str, TracedLayer] = {}
        self.tensors: list[TracedTensor] = []
        self._allow_inexact = allow_inexact
        self._step = 0

    def run(self, model: keras.Model) -> None:
        """Visit the model; its inputs and outputs are frozen."""
        require_graph(model)
        inputs = []
        for tensor in model.inputs:
            name, shape = tensor._keras_history.layer.name, tensor_shape(tensor, model.name)
            layout = self.space.allocate(name, shape[-1] if shape else 1)
            self.space.freeze(layout, "is an input of the model")
            inputs.append(self._add_tensor(layout, shape))
        for output in self._visit(model, "", inputs):
            self.space.freeze(output.layout, "reaches the output of the model")
            output.dies = self._step

    def _visit(self, model: keras.Model, prefix: str, inputs: list[TracedTensor]) -> list[TracedTensor]:
        """The output tensors of a model whose input tensors are these."""
        known = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
        for node in nodes(model):
            arguments = [known[id(tensor)] for tensor in node.keras_inputs]
            values = self._call(node, prefix, arguments)
            known.update((id(tensor), value) for tensor, value in zip(flat(node.outputs), values, strict=True))
        return [known[id(tensor)] for tensor in model.outputs]

    def _call(self, call: Any, prefix: str, arguments: list[TracedTensor]) -> list[TracedTensor]:
        """Run one layer on layouts."""
        layer, path = call.layer, prefix + call.layer.name
        if is_nested(layer):
            self._enter(layer, path + "/", arguments)
            return self._visit(layer, path + "/", arguments)
        self._step += 1
        for argument in arguments:
            argument.dies = self._step
        shapes = [tensor_shape(tensor, path) for tensor in flat(call.outputs)]
        node = LayerNode(
            path=path,
            class_name=type(layer).__name__,
            read_config=layer.get_config,
            input_shapes=tuple(tensor_shape(tensor, path) for tensor in call.keras_inputs),
            output_shape=shapes[0],
            weight_shapes=tuple(tuple(weight.shape) for weight in layer.weights),
            read_call=partial(read_call, call),
            from_keras=type(layer).__module__.split(".")[0] in ("keras", "tf_keras"),
            allow_inexact=self._allow_inexact,
        )
        flow = apply_rule(node, [argument.layout for argument in arguments], self.space)
        self._remember(path, node.weight_shapes, flow)
        extra = [self._frozen_output(path, number, shape) for number, shape in enumerate(shapes[1:], start=1)]
        return [self._add_tensor(layout, shape) for layout, shape in zip([flow.output, *extra], shapes, strict=True)]

    def _enter(self, model: keras.Model, prefix: str, arguments: list[TracedTensor]) -> None:
        """A nested model's own inputs count the channels that come in."""
        for tensor, argument in zip(model.inputs, arguments, strict=True):
            last = len(tensor.shape) - 1
            if last:
                sizes = (ConfigSize(("batch_input_shape", last), argument.layout),)
                flow = LayerFlow(argument.layout, sizes=sizes)
                self._remember(prefix + tensor._keras_history.layer.name, (), flow)

    def _remember(self, path: str, weight_shapes: tuple[tuple[int, ...], ...], flow: LayerFlow) -> None:
        """Keep what the rule said; a layer called again must be sliced the same way each time."""
        layer = self.layers.setdefault(path, TracedLayer(weight_shapes, flow))
        layer.calls.append(flow)
        first, again = _layouts(layer.flow), _layouts(flow)
        if [len(layout) for layout in first] == [len(layout) for layout in again]:
            for one, other in zip(first, again, strict=True):
                self.space.tie(one, other)
            return
        for layout in (*first, *again):
            self.space.freeze(layout, f"{path} is called on tensors that differ in channels")

    def _frozen_output(self, path: str, number: int, shape: tuple[int, ...]) -> ChannelLayout:
        layout = self.space.allocate(f"{path}:{number}", shape[-1] if shape else 1)
        self.space.freeze(layout, f"{path} has several outputs, which are not followed")
        return layout

    def _add_tensor(self, layout: ChannelLayout, shape: tuple[int, ...]) -> TracedTensor:
        tensor = TracedTensor(layout, prod(shape[:-1]), self._step, self._step)
        self.tensors.append(tensor)
        return tensor


def _layouts(flow: LayerFlow) -> list[ChannelLayout]:
    return [axis.layout for axis in flow.axes] + [size.layout for size in flow.sizes]

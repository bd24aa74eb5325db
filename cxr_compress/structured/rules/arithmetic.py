"""Rules for what works on several tensors, as layers and as the operations that Keras records for `x * y + 3`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.models.keras_graph import TensorSlot
from cxr_compress.models.layer_traits import ELEMENT_WISE_OPERATIONS, LAYERS, REDUCTIONS, SPATIAL_OPERATIONS
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace, join
from cxr_compress.structured.rules.base import LayerFlow, LayerNode, Rule, keras_rule, protect_layer

_OPERATIONS: dict[str, Rule] = {}


def _operation(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these TensorFlow operations."""

    def register(rule: Rule) -> Rule:
        _OPERATIONS.update(dict.fromkeys(names, rule))
        return rule

    return register


@keras_rule(*(name for name, traits in LAYERS.items() if traits.kind == "merge"))
def _element_wise(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Channel i of every input meets channel i of the others; a one-channel input is broadcast and must stay.

    Raises:
        UnsupportedLayerError: the inputs differ in channels and none is a broadcast (pitfall 3).
    """
    widest = max(inputs, key=len)
    for layout in inputs:
        if len(layout) == len(widest):
            space.tie(widest, layout)
        elif len(layout) == 1:
            space.protect(layout, f"{node.path} ({node.class_name}) broadcasts its only channel")
        else:
            sizes = ", ".join(str(len(item)) for item in inputs)
            raise UnsupportedLayerError(
                f"{node.path} ({node.class_name}): expected inputs of one width, got {sizes} channels"
            )
    # A broadcast input does not give the shape of the output: it cannot stand alone.
    alike = len(inputs) > 1 and all(shape == node.output_shape for shape in node.input_shapes)
    return LayerFlow(widest, merge="sum" if alike and _adds_up(node) else "")


def _adds_up(node: LayerNode) -> bool:
    """Whether a call gives the plain sum of its inputs."""
    if node.class_name != "TFOpLambda":
        return node.class_name == "Add"
    arguments, options = node.read_call()
    constants = [value for value in _leaves((*arguments, *options.values())) if not isinstance(value, TensorSlot)]
    return node.config["function"] in ("__operators__.add", "math.add") and all(
        value is None or isinstance(value, str) for value in constants
    )


@keras_rule("Concatenate")
def _concatenate(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Along the channels the branches follow one another, never merged (pitfall 1); along space they must agree."""
    return _joined(inputs, node.config["axis"] % node.rank == node.rank - 1, space)


def _joined(inputs: Sequence[ChannelLayout], along_channels: bool, space: ChannelSpace) -> LayerFlow:
    """The flow of a concatenation."""
    if along_channels:
        return LayerFlow(join(inputs), merge="parts")
    for other in inputs[1:]:
        space.tie(inputs[0], other)
    return LayerFlow(inputs[0])


@keras_rule("TFOpLambda")
def _tensorflow_operation(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """A TensorFlow function called on Keras tensors; its constants stand in the arguments of the call."""
    name = node.config["function"]
    rule = _OPERATIONS.get(name)
    if rule is None or not inputs:
        return protect_layer(node, inputs, space, f"calls {name}, which has no rule for its channels")
    return rule(node, inputs, space)


@_operation(*ELEMENT_WISE_OPERATIONS)
def _element_wise_operation(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Numbers apply to every channel alike; an array with one number per channel would have to shrink."""
    arguments, options = node.read_call()
    if any(_per_channel(value) for value in _leaves((*arguments, *options.values()))):
        return protect_layer(node, inputs, space, f"calls {node.config['function']} with one constant per channel")
    if node.output_shape[-1:] != (max(len(layout) for layout in inputs),):
        return protect_layer(node, inputs, space, f"calls {node.config['function']} with a constant that adds channels")
    return _element_wise(node, inputs, space)


@_operation(*REDUCTIONS)
def _reduction(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """A mean over positions alone keeps the channels apart; one that reaches the channels or the batch does not."""
    axis, rank = _argument(node, 1, "axis"), len(node.input_shapes[0]) + 1
    axes = np.atleast_1d([] if axis is None else axis).tolist()
    if not axes or any(item % rank in (0, rank - 1) for item in axes):
        return protect_layer(node, inputs, space, f"calls {node.config['function']} over the channels")
    return LayerFlow(inputs[0])


@_operation("concat")
def _concat(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """As the Concatenate layer; a constant among the parts would be channels of nobody."""
    values, axis = _argument(node, 0, "values"), _argument(node, 1, "axis")
    if not isinstance(axis, int) or not all(isinstance(value, TensorSlot) for value in _leaves(values)):
        return protect_layer(node, inputs, space, "calls concat with constants")
    return _joined(inputs, axis % node.rank == node.rank - 1, space)


@_operation(*SPATIAL_OPERATIONS)
def _spatial_operation(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Works on every channel alone, channels-last, as long as it leaves their number as it was."""
    arguments, options = node.read_call()
    first = any(str(value).startswith("NC") for value in (*arguments, *options.values()) if isinstance(value, str))
    if first or len(node.output_shape) != len(node.input_shapes[0]) or node.output_shape[-1] != len(inputs[0]):
        return protect_layer(node, inputs, space, f"calls {node.config['function']} across the channels")
    return LayerFlow(inputs[0])


@keras_rule("SlicingOpLambda")
def _slicing(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """`x[:, 1:, 1:, :]` takes positions; anything that cuts or moves the channels or the batch is protected."""
    spec = _argument(node, 1, "slice_spec")
    entries = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    rank = len(node.input_shapes[0]) + 1
    if Ellipsis in entries:
        place = entries.index(Ellipsis)
        entries[place : place + 1] = [slice(None)] * (rank - len(entries) + 1)
    entries += [slice(None)] * (rank - len(entries))
    if len(inputs) > 1 or len(entries) != rank or not (_whole(entries[0]) and _whole(entries[-1])):
        return protect_layer(node, inputs, space, "cuts or moves the channels or the batch")
    return LayerFlow(inputs[0])


def _whole(entry: Any) -> bool:
    """Whether an entry of a slice takes its whole axis; Keras records a slice as a dict of its three numbers."""
    if isinstance(entry, Mapping):
        return all(number is None for number in entry.values())
    return isinstance(entry, slice) and entry == slice(None)


def _argument(node: LayerNode, position: int, name: str) -> Any:
    """An argument of the call by its place or its name."""
    arguments, options = node.read_call()
    return arguments[position] if len(arguments) > position else options.get(name)


def _leaves(value: Any) -> Iterator[Any]:
    """What lists and tuples of arguments hold; arrays stay whole."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, (TensorSlot, list, tuple)) for item in value):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, Mapping):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _per_channel(value: Any) -> bool:
    """Whether a constant differs from channel to channel: it has a last axis, and that is longer than one."""
    if value is None or isinstance(value, (TensorSlot, str)):
        return False
    shape = tuple(np.shape(value))
    return bool(shape) and shape[-1] != 1

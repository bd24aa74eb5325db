"""What a layer rule is given and what it answers, and the register of rules.

A rule goes from the layouts of a layer's inputs to the layout of its output. It also says which axes of the layer's
weights follow which layout and which numbers of its config count channels: all that cost, selection and rebuilding
ever know of a layer. A layer without a rule freezes what it touches, with the reason; a rule for a layer of your own
takes a few lines:

    @register_rule("MyScale")
    def my_scale(node, inputs, space):
        return LayerFlow(inputs[0], axes=(WeightAxis(0, 0, inputs[0], "follow"),))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cxr_compress.device.cost_table import KernelKind
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace

Shape = tuple[int, ...]
Role = Literal["produce", "consume", "follow"]


@dataclass(frozen=True)
class TensorSlot:
    """Stands for an input tensor among the arguments of a call: the one with this number in the node's inputs."""

    index: int


def _no_arguments() -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    return (), {}


@dataclass(frozen=True)
class LayerNode:
    """One call of one layer, as plain data.

    Attributes:
        path: the layer's name, with the names of the nested models around it in front ("backbone/conv1").
        class_name: the layer's class.
        read_config: gives the layer's config; called by the rules that need it only.
        input_shapes: shapes without the batch axis, one per input.
        output_shape: shape without the batch axis.
        weight_shapes: in the order of `layer.get_weights()`.
        read_call: gives the positional and keyword arguments of the call, a `TensorSlot` for every input tensor.
        from_keras: whether the class is Keras's own; a class of the same name from elsewhere may do anything.
        allow_inexact: whether the caller accepts pruned layers that compute something else than the big one did.
    """

    path: str
    class_name: str
    read_config: Callable[[], Mapping[str, Any]]
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    weight_shapes: tuple[Shape, ...]
    read_call: Callable[[], tuple[tuple[Any, ...], Mapping[str, Any]]] = _no_arguments
    from_keras: bool = True
    allow_inexact: bool = False

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The layer's config."""
        return self.read_config()

    @property
    def rank(self) -> int:
        """How many axes the output has, the batch included."""
        return len(self.output_shape) + 1


@dataclass(frozen=True)
class WeightAxis:
    """An axis of a weight that follows a layout.

    Attributes:
        weight: its place in `layer.get_weights()`.
        axis: the axis.
        layout: whose channels the axis has.
        role: "produce" where the layer makes the channels, "consume" where it sums over them, "follow" else.
    """

    weight: int
    axis: int
    layout: ChannelLayout
    role: Role


@dataclass(frozen=True)
class ConfigSize:
    """A number in a layer's config that counts the channels of a layout, for example ``("filters",)``."""

    keys: tuple[str | int, ...]
    layout: ChannelLayout


@dataclass(frozen=True)
class KernelUse:
    """How often each element of a weight is multiplied in one call: MACs = positions * elements.

    Attributes:
        weight: its place in `layer.get_weights()`.
        positions: how many times each element is used.
        kind: what is timed in its place for budgets on latency; None where it cannot be timed alone.
    """

    weight: int
    positions: int
    kind: KernelKind | None = None


@dataclass(frozen=True)
class LayerFlow:
    """What a rule says of one call of a layer.

    Attributes:
        output: the layout of what comes out.
        axes: the axes of weights that follow layouts.
        sizes: the numbers of the config that count channels.
        uses: the kernels that the layer multiplies by, all of them: MACs are counted from these alone.
        macs_known: False where the layer may multiply more than `uses` says; no MACs of the model are given then.
    """

    output: ChannelLayout
    axes: tuple[WeightAxis, ...] = ()
    sizes: tuple[ConfigSize, ...] = ()
    uses: tuple[KernelUse, ...] = ()
    macs_known: bool = True


Rule = Callable[[LayerNode, Sequence[ChannelLayout], ChannelSpace], LayerFlow]
_RULES: dict[str, Rule] = {}


def register_rule(*class_names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these layer classes; the last registration of a class wins."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(class_names, rule))
        return rule

    return register


def apply_rule(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Run the rule of the node's class, or freeze what an unknown layer touches.

    Raises:
        UnsupportedLayerError: the wiring contradicts itself (an Add of tensors that differ in channels).
    """
    rule = _RULES.get(node.class_name)
    if rule is None:
        return freeze_layer(node, inputs, space, "has no rule for its channels")
    return rule(node, inputs, space)


def freeze_layer(
    node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace, why: str, uses: tuple[KernelUse, ...] = ()
) -> LayerFlow:
    """Keep all channels that enter and leave a layer; the reason names the layer and says why.

    Its MACs are taken for unknown unless `uses` says them, or `rules.macs` that such layers multiply nothing.
    """
    reason = f"{node.path} ({node.class_name}) {why}"
    for layout in inputs:
        space.freeze(layout, reason)
    output = space.allocate(node.path, node.output_shape[-1] if node.output_shape else 1)
    space.freeze(output, reason)
    return LayerFlow(output, uses=uses, macs_known=bool(uses))

"""What a layer rule is given and what it answers, the register of rules, and how kernels are counted.

A rule goes from the layouts of a layer's inputs to the layout of its output. It also says which axes of the layer's
weights follow which layout and which numbers of its config count channels: all that cost, selection and rebuilding
ever know of a layer. A layer without a rule protects what it touches, with the reason; a rule for a layer of your own
takes a few lines:

    @register_rule("MyScale")
    def my_scale(node, inputs, space):
        return LayerFlow(inputs[0], axes=(WeightAxis(0, 0, inputs[0], "follow"),))

The MACs of DenseNet121 at 224 px, 2.83 G, come from the same count: additions of biases, batch norms, pooling, resizing
and element-wise layers are by convention 0. A layer that is neither counted nor known to multiply nothing makes the
MACs of its model unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from cxr_compress.device.cost_table import ONE_CHANNEL_A_GROUP, KernelKind
from cxr_compress.models.layer_traits import (
    ELEMENT_WISE_ACTIVATIONS,
    LAYERS,
    MIXING_ACTIVATIONS,
    OPERATIONS_WITHOUT_PRODUCTS,
    UNKNOWN,
    LayerTraits,
)
from cxr_compress.structured.analysis import Role
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace
from cxr_compress.structured.wiring import Merge

Shape = tuple[int, ...]


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
        read_call: gives the positional and keyword arguments of the call, a `keras_graph.TensorSlot` for every input.
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
    def traits(self) -> LayerTraits:
        """What the layer is."""
        return LAYERS.get(self.class_name, UNKNOWN) if self.from_keras else UNKNOWN

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
    """A number in a layer's config that counts the channels of a layout, for example `("filters",)`."""

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
        merge: "sum" or "parts" where the layer does without an input that carries nothing: a sum, a concatenation
            along the channels.
    """

    output: ChannelLayout
    axes: tuple[WeightAxis, ...] = ()
    sizes: tuple[ConfigSize, ...] = ()
    uses: tuple[KernelUse, ...] = ()
    macs_known: bool = True
    merge: Merge = ""


Rule = Callable[[LayerNode, Sequence[ChannelLayout], ChannelSpace], LayerFlow]
_RULES: dict[str, Rule] = {}


def register_rule(*class_names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these layer classes; the last registration of a class wins."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(class_names, rule))
        return rule

    return register


def apply_rule(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
    """Run the rule of the node's class, or protect what an unknown layer touches.

    Raises:
        UnsupportedLayerError: the wiring contradicts itself (an Add of tensors that differ in channels).
    """
    rule = _RULES.get(node.class_name)
    if rule is None:
        uses = kernel_uses(node) if node.from_keras else ()
        return protect_layer(node, inputs, space, "has no rule for its channels", uses)
    return rule(node, inputs, space)


def protect_layer(
    node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace, why: str, uses: tuple[KernelUse, ...] = ()
) -> LayerFlow:
    """Keep all channels that enter and leave a layer; the reason names the layer and says why.

    Its MACs are taken for unknown unless `uses` says them, or such layers are known to multiply nothing.
    """
    reason = f"{node.path} ({node.class_name}) {why}"
    for layout in inputs:
        space.protect(layout, reason)
    output = space.allocate(node.path, node.output_shape[-1] if node.output_shape else 1)
    space.protect(output, reason)
    return LayerFlow(output, uses=uses, macs_known=bool(uses))


def keras_rule(*class_names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these classes of Keras, guarded against what no rule follows: that is protected."""
    return lambda rule: register_rule(*class_names)(_guarded(rule))


def _guarded(rule: Rule) -> Rule:
    def guarded(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
        problem = _beyond_every_rule(node)
        if problem:
            return protect_layer(node, inputs, space, problem, kernel_uses(node))
        problem = _activation_problem(node.config.get("activation"))
        if problem and not kernel_uses(node):
            return protect_layer(node, inputs, space, problem)
        flow = rule(node, inputs, space)
        if problem:
            # The kernel comes before the activation: what it sums over may still lose channels.
            space.protect(flow.output, f"{node.path} ({node.class_name}) {problem}")
        return flow

    return guarded


def _beyond_every_rule(node: LayerNode) -> str:
    if not node.from_keras:
        return "is not Keras's own layer of that name and has no rule for its channels"
    if node.config.get("data_format") == "channels_first":
        return "is channels_first, which is not followed"
    return ""


def _activation_problem(activation: Any) -> str:
    """Why an activation of a layer's config cannot be followed; empty where it works on each element alone."""
    name = activation.get("class_name") if isinstance(activation, Mapping) else activation
    if name is None or name in ELEMENT_WISE_ACTIVATIONS:
        return ""
    traits = LAYERS.get(name, UNKNOWN)
    # A layer in the place of a function; an Activation may itself hold one that mixes channels.
    if traits.kind == "activation" and traits.passes_channels and name != "Activation":
        return ""
    if name in MIXING_ACTIVATIONS:
        return "has an activation that mixes channels"
    return "has an activation of its own, which may mix channels"


def kernel_uses(node: LayerNode) -> tuple[KernelUse, ...]:
    """The kernels of a node and how many positions each is applied at; empty for layers that multiply by none.

    A convolution applies its kernel at every output position, a transposed one spreads every input position. A grouped
    kernel is smaller by itself: it has no weights between groups.
    """
    counted = _COUNTED.get(LAYERS.get(node.class_name, UNKNOWN).macs)
    return counted(node) if counted else ()


def _per_output(node: LayerNode) -> tuple[KernelUse, ...]:
    return (KernelUse(0, _positions(node, node.output_shape), _kind(node, node.class_name)),)


def _per_input(node: LayerNode) -> tuple[KernelUse, ...]:
    return (KernelUse(0, _positions(node, node.input_shapes[0]), _kind(node, node.class_name)),)


def _depthwise_then_pointwise(node: LayerNode) -> tuple[KernelUse, ...]:
    positions = _positions(node, node.output_shape)
    depthwise = _kind(node, node.class_name.replace("Separable", "Depthwise"))
    return (KernelUse(0, positions, depthwise), KernelUse(1, positions, _pointwise_part(node)))


def _at_every_step(node: LayerNode) -> tuple[KernelUse, ...]:
    steps = node.input_shapes[0][0]
    return () if node.config.get("time_major") else (KernelUse(0, steps), KernelUse(1, steps))


def _of_inner_layer(node: LayerNode) -> tuple[KernelUse, ...]:
    inner = _inside(node)
    uses = () if inner is None else kernel_uses(inner)
    return tuple(replace(use, positions=node.input_shapes[0][0] * use.positions, kind=None) for use in uses)


def multiplies_nothing(node: LayerNode) -> bool:
    """Whether a layer is known to have no products of tensors that a count of MACs would hold."""
    if node.class_name == "TFOpLambda":
        return node.from_keras and node.config["function"] in OPERATIONS_WITHOUT_PRODUCTS
    if node.traits.macs == "inner layer":
        inner = _inside(node)
        return inner is not None and multiplies_nothing(inner)
    return node.traits.macs == "none"


def described(node: LayerNode) -> str:
    """A layer whose MACs are not counted, for people: its path, its class, and what it calls or holds."""
    inner = node.config.get("layer") if node.class_name in ("TimeDistributed", "Bidirectional") else None
    what = node.config.get("function") if node.class_name == "TFOpLambda" else None
    held = inner.get("class_name") if isinstance(inner, Mapping) else what
    return f"{node.path} ({node.class_name}{f' of {held}' if held else ''})"


def _inside(node: LayerNode) -> LayerNode | None:
    """The layer that a TimeDistributed one calls at every step; None where it is not Keras's own."""
    held = node.config["layer"]
    if not isinstance(held, Mapping) or held.get("module", "keras.layers") != "keras.layers":
        return None
    return replace(
        node,
        class_name=str(held["class_name"]),
        read_config=lambda: dict(held["config"]),
        input_shapes=tuple(shape[1:] for shape in node.input_shapes),
        output_shape=node.output_shape[1:],
    )


def _by_equation(node: LayerNode) -> tuple[KernelUse, ...]:
    """The kernel once for every combination of the input's indices that it does not have."""
    read, kernel = str(node.config["equation"]).replace(" ", "").partition("->")[0].split(",")
    before, dots, after = read.partition("...")
    shape = (1, *node.input_shapes[0])
    free = [size for label, size in zip(before, shape, strict=False) if label not in kernel]
    free += [size for label, size in zip(reversed(after), reversed(shape), strict=False) if label not in kernel]
    return (KernelUse(0, prod(free) * prod(shape[len(before) : len(shape) - len(after)] if dots else ())),)


def _positions(node: LayerNode, shape: Shape) -> int:
    return prod(_spatial(node, shape))


def _spatial(node: LayerNode, shape: Shape) -> Shape:
    first = node.config.get("data_format") == "channels_first"
    return shape[1:] if first else shape[:-1]


def _kind(node: LayerNode, class_name: str) -> KernelKind:
    """What a convolution, or the first kernel of a separable one, computes apart from its widths."""
    size = node.weight_shapes[0][:-2]
    groups = int(node.config.get("groups", 1))
    multiplier = int(node.config.get("depth_multiplier", 1))
    # As the rule for convolutions sees it: the filters of such a layer go with its input channels.
    if groups > 1 and node.weight_shapes[0][-2] == 1:
        groups, multiplier = ONE_CHANNEL_A_GROUP, node.weight_shapes[0][-1] // groups
    return KernelKind(
        class_name=class_name,
        kernel_size=size,
        strides=_steps(node.config.get("strides", 1), len(size)),
        dilation=_steps(node.config.get("dilation_rate", 1), len(size)),
        groups=groups,
        multiplier=multiplier,
        padding=_padding(node),
        input_size=_spatial(node, node.input_shapes[0]),
        output_size=_spatial(node, node.output_shape),
    )


def _pointwise_part(node: LayerNode) -> KernelKind:
    """The second half of a separable convolution: an ordinary one of size 1 on what the first half made."""
    ones, output = (1,) * (len(node.weight_shapes[1]) - 2), _spatial(node, node.output_shape)
    return KernelKind(node.class_name.replace("Separable", ""), ones, ones, ones, 1, 1, "valid", output, output)


def _padding(node: LayerNode) -> str:
    # Causal padding of a Conv1D costs what "same" does.
    return "same" if node.config.get("padding", "valid") in ("same", "causal") else "valid"


def _steps(value: Any, rank: int) -> Shape:
    return tuple(int(step) for step in value) if isinstance(value, list | tuple) else (int(value),) * rank


_COUNTED: dict[str, Callable[[LayerNode], tuple[KernelUse, ...]]] = {
    "output positions": _per_output,
    "input positions": _per_input,
    "depthwise, then pointwise": _depthwise_then_pointwise,
    "once": lambda node: (KernelUse(0, 1),),
    "steps": _at_every_step,
    "equation": _by_equation,
    "inner layer": _of_inner_layer,
}

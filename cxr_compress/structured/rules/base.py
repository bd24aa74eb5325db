"""What every rule for Keras's own layers leaves out: it is frozen with a reason before the rule is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxr_compress.structured.flow import LayerFlow, LayerNode, Rule, freeze_layer, register_rule
from cxr_compress.structured.layout import ChannelLayout, ChannelSpace
from cxr_compress.structured.rules.macs import kernel_uses
from cxr_compress.structured.walk import CalledLayer, TracedCall

# These mix the channels of one position: removing one would change what the others become.
_MIXING = ("softmax", "log_softmax")
_ELEMENT_WISE = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "swish", "silu", "mish", "exponential"),
    *("sigmoid", "hard_sigmoid", "tanh", "softplus", "softsign"),
)
_ELEMENT_WISE_LAYERS = ("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU")


def keras_rule(*class_names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these classes of Keras, guarded against what no rule follows."""
    return lambda rule: register_rule(*class_names)(_guarded(rule))


def _guarded(rule: Rule) -> Rule:
    def guarded(node: LayerNode, inputs: Sequence[ChannelLayout], space: ChannelSpace) -> LayerFlow:
        problem = _beyond_every_rule(node)
        if problem:
            return freeze_layer(node, inputs, space, problem, kernel_uses(node))
        problem = _activation_problem(node.config.get("activation"))
        if problem and not kernel_uses(node):
            return freeze_layer(node, inputs, space, problem)
        flow = rule(node, inputs, space)
        if problem:
            # The kernel comes before the activation: what it sums over may still get thinner.
            space.freeze(flow.output, f"{node.path} ({node.class_name}) {problem}")
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
    if name is None or name in _ELEMENT_WISE:
        return ""
    if isinstance(activation, Mapping) and name in _ELEMENT_WISE_LAYERS:
        return ""
    if name in _MIXING:
        return "has an activation that mixes channels"
    return "has an activation of its own, which may mix channels"


_FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
_FREE = (
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianNoise"),
    *("GaussianDropout", "StochasticDepth", "Identity", "ActivityRegularization", "Flatten", "Reshape", "ReLU"),
)
_MULTIPLY_THEN_ADD = 2


def stays_in_graph(call: TracedCall) -> bool:
    """Whether a normalization or channel-wise scale stays an operator of its own."""
    maker = call.inputs[0].maker if call.inputs else None
    behind_kernel = maker is not None and bool(maker.flow.uses) and _activation(maker) == "linear"
    return not (call.layer.class_name == "BatchNormalization" and behind_kernel and call.inputs[0].uses == 1)


def passes(call: TracedCall) -> int:
    """How often a call reads its inputs and writes its outputs, over and above what its kernel does."""
    if call.layer.flow.uses or call.layer.class_name == "Activation":
        return 0 if _activation(call.layer) in _FUSED_ACTIVATIONS else 1
    if call.layer.class_name in _FREE:
        return 0
    if call.layer.class_name == "BatchNormalization":
        return _MULTIPLY_THEN_ADD if stays_in_graph(call) else 0
    return 1


def _activation(layer: CalledLayer) -> str:
    """The name of a layer's own activation."""
    value = layer.activation
    if isinstance(value, Mapping):
        return str(value.get("class_name", "")).lower()
    return "linear" if value is None else str(value)

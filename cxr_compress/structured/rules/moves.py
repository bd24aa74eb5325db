"""What is left of layers without a kernel once TFLite has fused them: which norms stay, and how often data is passed.

Source: the fusions that the TFLite converter makes. A batch norm right behind a convolution or dense layer folds into
its kernel; ReLU and ReLU6 become part of the operator in front; dropout is gone; reshapes move nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from cxr_compress.structured.walk import CalledLayer, TracedCall

_FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
_FREE = (
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianNoise"),
    *("GaussianDropout", "StochasticDepth", "Identity", "ActivityRegularization", "Flatten", "Reshape", "ReLU"),
)
_MULTIPLY_THEN_ADD = 2


def stays_in_graph(call: TracedCall) -> bool:
    """Whether a normalisation or channel-wise scale stays an operator of its own."""
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

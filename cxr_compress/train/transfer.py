"""The same network at another film size, with another head or in another precision; its weights come along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
_BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA Ampere, the first whose tensor cores compute in bfloat16

Edit = Callable[[dict[str, Any]], None]


def at_size(model: Any, size: int) -> Any:
    """A copy of a model for square films of another size, with the same weights.

    Args:
        model: Functional or Sequential, fully convolutional before a global pooling.
        size: Height and width, pixels.

    Raises:
        UnsupportedLayerError: The network's weights depend on the film size (a Flatten before a Dense layer).
    """
    if tuple(model.input_shape[1:3]) == (size, size):
        return model
    channels = model.input_shape[3]

    def resize(layer: dict[str, Any]) -> None:
        if layer["class_name"] == "InputLayer":
            layer["config"]["batch_input_shape"] = (None, size, size, channels)

    try:
        copy = _edited(model, resize)
        copy.set_weights(model.get_weights())
    except ValueError as error:
        raise UnsupportedLayerError(
            f"expected a network that takes films of any size, but {model.name} cannot be rebuilt for {size}x{size}: "
            f"train it at its own size, {model.input_shape[1]}x{model.input_shape[2]}"
        ) from error
    return copy


def with_head(model: Any, columns: Sequence[int | None]) -> Any:
    """A copy of a model whose last Dense layer has other outputs; all other weights come along.

    Args:
        model: Functional or Sequential, ending in a Dense layer of logits.
        columns: For each output wanted, the old output that it is, or None for a new one with random weights. A model
            whose outputs stay as they are is returned as it is.

    Raises:
        UnsupportedLayerError: The model does not end in a Dense layer without activation.
    """
    if list(columns) == list(range(model.output_shape[-1])):
        return model
    num_classes = len(columns)
    head = model.layers[-1]
    if not isinstance(head, keras.layers.Dense) or head.activation is not keras.activations.linear:
        raise UnsupportedLayerError(
            f"expected a model that ends in a Dense layer of logits, got {type(head).__name__} {head.name!r}: a head "
            f"for {num_classes} findings cannot be put in its place"
        )

    def widen(layer: dict[str, Any]) -> None:
        if layer["config"]["name"] == head.name:
            layer["config"]["units"] = num_classes

    copy = _edited(model, widen)
    for theirs, ours in zip(copy.layers, model.layers, strict=True):
        weights = ours.get_weights()
        if ours is head:
            made = theirs.get_weights()
            for place, column in enumerate(columns):
                if column is not None:
                    for new, old in zip(made, weights, strict=True):
                        new[..., place] = old[..., column]
            weights = made
        theirs.set_weights(weights)
    return copy


def in_precision(model: Any, precision: str) -> Any:
    """A copy of a model that computes in another precision; its weights stay float32, its logits float32.

    Args:
        model: Functional or Sequential.
        precision: "float32", "mixed_bfloat16", "mixed_float16", or "auto": float32 on processors and on GPUs without
            fast 16-bit arithmetic, else bfloat16 where the GPU has it and float16 where not.

    Raises:
        CompressionError: Another word.
    """
    if precision not in PRECISIONS:
        raise CompressionError(f"expected a precision of {', '.join(PRECISIONS)}; got {precision!r}")
    policy = _policy_of_device() if precision == "auto" else precision
    if {layer.dtype_policy.name for layer in model.layers} in ({"float32"}, {policy}) and policy == "float32":
        return model
    last = model.layers[-1].name

    def compute_in(layer: dict[str, Any]) -> None:
        name = "float32" if layer["config"]["name"] == last or layer["class_name"] == "InputLayer" else policy
        layer["config"]["dtype"] = name if name == "float32" else _policy_config(name)

    copy = _edited(model, compute_in)
    copy.set_weights(model.get_weights())
    return copy


def _edited(model: Any, edit: Edit) -> Any:
    config = model.get_config()
    for layer in config["layers"]:
        edit(layer)
    if "build_input_shape" in config:  # of a Sequential model: its first layer decides
        config.pop("build_input_shape")
    return type(model).from_config(config)


def _policy_config(name: str) -> dict[str, Any]:
    return {"class_name": "Policy", "config": {"name": name}}


def _policy_of_device() -> str:
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return "float32"
    capability = tf.config.experimental.get_device_details(devices[0]).get("compute_capability", (0, 0))
    if capability >= _BFLOAT16_CAPABILITY:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= (7, 0) else "float32"

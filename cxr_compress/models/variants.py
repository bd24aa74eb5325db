"""The same network built anew: in float32, at another image size, with another head, or with fresh weights.

Each function leaves its model unchanged and gives a plain copy, made from an edited configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.call_removal import Config
from cxr_compress.models.keras_graph import (
    copy_model,
    copy_weights,
    layers_by_path,
    rebuild_model,
    rebuilt,
    require_graph,
)

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
_BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA Ampere, the first whose tensor cores compute in bfloat16
_FLOAT16_CAPABILITY = (7, 0)
_OTHER_POLICIES = frozenset(("float16", "bfloat16", "float64", "half", "double", "mixed_float16", "mixed_bfloat16"))


def in_float32(model: Any) -> tuple[Any, str]:
    """Give a model that computes in float32 all through, with equal weights.

    TFLite has no kernels for float16 and bfloat16 arithmetic, processors none that are fast, and what such a model
    computes differs between machines. Its weights lose nothing in float32: mixed precision keeps them so, and half fits
    in.

    Args:
        model: functional or Sequential, nested or not; it is not changed.

    Returns:
        The model itself and "" where it does so already, else a copy and one line for the user. Casts to another
        precision on the way ("tf.cast(x, tf.float16)") become casts to float32 too; whole numbers stay.

    Raises:
        UnsupportedLayerError: Keras cannot build the model anew from its own configuration.
    """
    policies = {layer.dtype_policy.name for layer in model._flatten_layers(include_self=False)} | {
        str(tensor.dtype.name) for tensor in model.inputs
    }
    others = sorted(policies & _OTHER_POLICIES)
    if not others:
        return model, ""
    try:
        copied = rebuilt(model, _with_float32)
        copy_weights(copied, model)
    except Exception as error:  # Keras raises nearly every type here; the cause is kept, and named in the line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedLayerError(
            f"{model.name} computes in {', '.join(others)} and cannot be built in float32: {reason}; build it under "
            "the policy float32, load the weights into that and save it"
        ) from error
    return copied, f"{model.name} was made in {', '.join(others)}: it is taken in float32, with equal weights"


def at_size(model: Any, height: int, width: int) -> Any:
    """A copy of a model for images of another size, with the same weights.

    Args:
        model: functional or Sequential, fully convolutional before a global pooling.
        height: of the images, pixels.
        width: likewise.

    Raises:
        UnsupportedLayerError: the network's weights depend on the image size (a Flatten before a Dense layer).
    """
    own_size, channels = tuple(model.input_shape[1:3]), model.input_shape[3]
    if own_size == (height, width):
        return model

    def resize(path: str, class_name: str, config: Config) -> None:
        if class_name == "InputLayer" and "/" not in path:
            config["batch_input_shape"] = (None, height, width, channels)

    try:
        return copy_model(model, resize)
    except Exception as error:  # Keras raises nearly every type here; the cause is kept
        raise UnsupportedLayerError(
            f"{model.name} is made for images of {own_size[0]} x {own_size[1]} px and its layers do not fit {height} x "
            f"{width}: use it at its own size"
        ) from error


def with_head(model: Any, columns: Sequence[int | None]) -> Any:
    """A copy of a model whose last Dense layer has other outputs; all other weights come along.

    Args:
        model: functional or Sequential, ending in a Dense layer of logits.
        columns: for each output wanted, the old output that it is, or None for a new one with random weights. A model
            whose outputs stay as they are is returned as it is.

    Raises:
        UnsupportedLayerError: the model does not end in a Dense layer without activation.
    """
    if list(columns) == list(range(model.output_shape[-1])):
        return model
    head = model.layers[-1]
    if not isinstance(head, keras.layers.Dense) or head.activation is not keras.activations.linear:
        raise UnsupportedLayerError(
            f"expected a model that ends in a Dense layer of logits, got {type(head).__name__} {head.name!r}: a head "
            f"for {len(columns)} findings cannot be put in its place"
        )

    def widen(path: str, class_name: str, config: Config) -> None:
        if path == head.name:
            config["units"] = len(columns)

    copied = rebuild_model(model, widen)
    copy_weights(copied, model, besides=(head.name,))
    new_head = copied.get_layer(head.name)
    weights = new_head.get_weights()
    for place, column in enumerate(columns):
        if column is not None:
            for new, old in zip(weights, head.get_weights(), strict=True):
                new[..., place] = old[..., column]
    new_head.set_weights(weights)
    return copied


def in_precision(model: Any, precision: str) -> Any:
    """A copy of a model that computes in another precision; its weights stay float32, its logits float32.

    Args:
        model: functional or Sequential.
        precision: "float32", "mixed_bfloat16", "mixed_float16", or "auto": float32 on processors and on GPUs without
            fast 16-bit arithmetic, else bfloat16 where the GPU has it and float16 where not.

    Raises:
        CompressionError: another word.
    """
    if precision not in PRECISIONS:
        raise CompressionError(f"expected a precision of {', '.join(PRECISIONS)}; got {precision!r}")
    policy = _policy_of_device() if precision == "auto" else precision
    if policy == "float32" and {layer.dtype_policy.name for layer in model.layers} == {"float32"}:
        return model
    last = model.layers[-1].name

    def compute_in(path: str, class_name: str, config: Config) -> None:
        plain = policy == "float32" or path == last or class_name == "InputLayer"
        config["dtype"] = "float32" if plain else {"class_name": "Policy", "config": {"name": policy}}

    return copy_model(model, compute_in)


def reinitialize(model: Any, seed: int) -> Any:
    """Give a network of the same layers and shapes with random weights, drawn as each layer says.

    `model` is left unchanged.

    Trained for as long as the pruned network was in all, it is the baseline that filter removal has to beat: if it
    does as well, only the shape was worth something.

    Batch normalizations start with mean 0 and variance 1; the statistics of `Normalization` layers, which were
    measured on images and not trained, are kept. The seed alone decides the
    weights, whatever was drawn before.

    Source: Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270), section 3.

    Args:
        model: functional or Sequential, nested models included.
        seed: of the weights.

    Returns:
        A new plain `keras.Model`, uncompiled, with the configuration of `model`.

    Raises:
        UnsupportedLayerError: the model is subclassed or has a layer that cannot be rebuilt from its configuration.
    """
    require_graph(model)

    def seed_all(config: Config) -> None:
        _seed_initializers(config, f"{seed}")

    try:
        drawn, fresh = rebuilt(model, seed_all), rebuilt(model)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedLayerError(
            f"{model.name} cannot be rebuilt from its configuration ({str(error).splitlines()[0]}): expected standard "
            "Keras layers"
        ) from error
    fitted = {
        name: layer.get_weights()
        for name, layer in layers_by_path(model).items()
        if isinstance(layer, keras.layers.Normalization)
    }
    values = {name: layer.get_weights() for name, layer in layers_by_path(drawn).items()} | fitted
    for name, layer in layers_by_path(fresh).items():
        layer.set_weights(values[name])
        layer.finalize_state()
    return fresh


def _policy_of_device() -> str:
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return "float32"
    capability = tf.config.experimental.get_device_details(devices[0]).get("compute_capability", (0, 0))
    if capability >= _BFLOAT16_CAPABILITY:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= _FLOAT16_CAPABILITY else "float32"


def _with_float32(config: Any) -> Any:
    """A configuration, or a part of one, with float32 in place of every other precision."""
    if isinstance(config, dict):
        return {
            key: _float32_policy(value) if key == "dtype" else _with_float32(value) for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_with_float32(value) for value in config)
    return config


def _float32_policy(value: Any) -> Any:
    """The policy of a layer, or the dtype that a call or an initializer asks for."""
    name = value["config"].get("name") if isinstance(value, dict) and "config" in value else value
    name = getattr(name, "name", name)
    return "float32" if name in _OTHER_POLICIES else value


def _seed_initializers(value: Any, path: str) -> None:
    """Give every initializer that draws a seed of its own, by its place: equal layers must not start equal."""
    if isinstance(value, dict):
        if "seed" in value.get("config", {}) and "initializer" in path.rsplit("/", 1)[-1]:
            value["config"]["seed"] = _seed_of(path)
        for key, inner in value.items():
            _seed_initializers(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _seed_initializers(inner, f"{path}/{index}")


def _seed_of(path: str) -> int:
    return int(np.frombuffer(hashlib.sha256(path.encode()).digest()[:4], "<u4")[0] >> 1)

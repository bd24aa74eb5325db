"""Models that were trained in mixed or half precision, as the float32 models that they stand for.

TFLite has no kernels for float16 and bfloat16 arithmetic, processors none that are fast, and what such a model computes
differs between machines. Its weights lose nothing in float32: mixed precision keeps them so, and half fits in.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras

_FLOATS = frozenset(("float16", "bfloat16", "float64", "half", "double"))
_POLICIES = _FLOATS | {"mixed_float16", "mixed_bfloat16"}
# Operations on Keras tensors are layers that Keras itself knows how to build, though `keras.layers` does not name them.
_BUILT_IN = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")


def in_float32(model: Any) -> tuple[Any, str]:
    """Give a model that computes in float32 all through, with equal weights.

    Args:
        model: Functional or Sequential, nested or not; it is not changed.

    Returns:
        The model itself and "" where it does so already, else a copy and one line for the user. Casts to another
        precision on the way ("tf.cast(x, tf.float16)") become casts to float32 too; whole numbers stay.

    Raises:
        UnsupportedLayerError: Keras cannot build the model anew from its own configuration.
    """
    policies = {layer.dtype_policy.name for layer in _layers(model)} | {_dtype(tensor) for tensor in model.inputs}
    others = sorted(policies & _POLICIES)
    if not others:
        return model, ""
    try:
        with own_layers(model):
            copied = type(model).from_config(_edited(copy.deepcopy(model.get_config())))
        _fill(copied, model)
    except Exception as error:  # Keras raises nearly every type here; the cause is kept, and named in the line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedLayerError(
            f"{model.name} computes in {', '.join(others)} and cannot be built in float32: {reason}; build it under "
            "the policy float32, load the weights into that and save it"
        ) from error
    return copied, f"{model.name} was made in {', '.join(others)}: it is taken in float32, with equal weights"


def own_layers(model: Any) -> Any:
    """A scope in which a model's config can be built anew, whatever classes of its own it came with.

    ConvNeXt is one such model of `keras.applications`: its LayerScale is not registered anywhere.
    """
    single = [layer for layer in _layers(model) if not getattr(layer, "_is_graph_network", False)]
    classes = {type(layer).__name__: type(layer) for layer in single}
    own = {name: cls for name, cls in classes.items() if getattr(keras.layers, name, None) is not cls}
    return keras.utils.custom_object_scope({name: cls for name, cls in own.items() if name not in _BUILT_IN})


def _layers(model: Any) -> list[Any]:
    """Every layer, those inside of nested models and of wrappers too."""
    return list(model._flatten_layers(include_self=False))


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype.name)


def _edited(config: Any) -> Any:
    """A configuration, or a part of one, with float32 in place of every other precision."""
    if isinstance(config, dict):
        return {key: _precision(value) if key == "dtype" else _edited(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_edited(value) for value in config)
    return config


def _precision(value: Any) -> Any:
    """The policy of a layer, or the dtype that a call or an initializer asks for."""
    name = value["config"].get("name") if isinstance(value, dict) and "config" in value else value
    name = getattr(name, "name", name)
    return "float32" if name in _POLICIES else value


def _fill(copied: Any, model: Any) -> None:
    """Copy weights layer by layer: the names are the same, the order of a rebuilt model's layers need not be."""
    for layer in model.layers:
        other = copied.get_layer(layer.name)
        if getattr(layer, "_is_graph_network", False):
            _fill(other, layer)
        elif layer.weights:
            other.set_weights([_widened(weight) for weight in layer.get_weights()])
            # Normalization computes from numbers derived of its weights, which only this refreshes.
            other.finalize_state()


def _widened(weight: np.ndarray) -> np.ndarray:
    # bfloat16 is no kind of float to NumPy, but has a name.
    return weight.astype(np.float32) if weight.dtype.name in _FLOATS else weight

"""The same network with fresh weights: what a pruned network is worth without what it inherited."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.files import application_layers
from cxr_compress.models.zeros import named_layers


def reinitialize(model: Any, seed: int) -> Any:
    """Give a network of the same layers and shapes with random weights, drawn as each layer says.

    ``model`` is left unchanged.

    Trained for as long as the pruned network was in all, it is the baseline that filter removal has to beat: if it
    does as well, only the shape was worth something.

    Batch normalizations start with mean 0 and variance 1; the statistics of ``Normalization`` layers, which were
    measured on images and not trained, are kept. The seed alone decides the
    weights, whatever was drawn before.

    Source: Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270), section 3.

    Args:
        model: Functional or Sequential, nested models included.
        seed: Of the weights.

    Returns:
        A new plain ``keras.Model``, uncompiled, with the configuration of ``model``.

    Raises:
        UnsupportedLayerError: The model is subclassed or has a layer that cannot be rebuilt from its configuration.
    """
    if not getattr(model, "_is_graph_network", False):
        raise UnsupportedLayerError(
            f"expected a functional or built Sequential model, got {type(model).__name__} "
            f"{getattr(model, 'name', '')!r}, which cannot be rebuilt: build it with keras.Model(inputs, outputs)"
        )
    seeded = model.get_config()
    _seed_initializers(seeded, f"{seed}")
    drawn, fresh = _build(model, seeded), _build(model, model.get_config())
    fitted = {
        name: layer.get_weights()
        for name, layer in named_layers(model)
        if isinstance(layer, keras.layers.Normalization)
    }
    values = {name: layer.get_weights() for name, layer in named_layers(drawn)} | fitted
    for name, layer in named_layers(fresh):
        layer.set_weights(values[name])
        layer.finalize_state()
    return fresh


def _build(model: Any, config: dict[str, Any]) -> Any:
    config.pop("build_input_shape", None)  # of a Sequential model: its first layer decides
    try:
        with keras.utils.custom_object_scope(application_layers()):
            return type(model).from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedLayerError(
            f"{model.name} cannot be rebuilt from its configuration ({str(error).splitlines()[0]}): expected standard "
            "Keras layers"
        ) from error


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

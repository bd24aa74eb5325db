"""Apply a plan: build a plain, thinner Keras model and fill it with the weights that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path, rebuild_model, shared_layer
from cxr_compress.structured.analysis import ChannelAnalysis, LayerSlices, SizeSlice
from cxr_compress.structured.cost import BoolArray
from cxr_compress.structured.plan import ChannelPlan

_NOT_REBUILT = ("Lambda", "SpectralNormalization")


def remove_channels(model: keras.Model, plan: ChannelPlan, *, allow_inexact: bool = False) -> keras.Model:
    """A new plain model without the channels that a plan drops; `model` is left untouched.

    Layer names, trainable flags, regularizers and dtype policies stay. The result is not compiled and loads with
    `keras.models.load_model` and no custom objects but those that `model` itself needs.

    Args:
        model: the model that the plan was made for.
        plan: what stays.
        allow_inexact: as it was given to `analyze_channels`; a plan that knows it needs no flag.

    Raises:
        CompressionError: the plan was made for another model, or its predicted cost is not that of the result.
        UnsupportedLayerError: as `analyze_channels`, or Keras cannot rebuild the model from its own config.
    """
    analysis = replace(plan, allow_inexact=allow_inexact or plan.allow_inexact).on(model)
    keep = plan.keep_vector(analysis)
    pruned = _pruned_architecture(model, analysis, keep)
    _fill(pruned, model, analysis, keep)
    expected = analysis.cost_model.cost(keep).params
    if pruned.count_params() != expected:
        raise CompressionError(
            f"predicted {expected:,} params, rebuilt {pruned.count_params():,}: a layer rule is wrong; "
            "please report the model"
        )
    return pruned


def _pruned_architecture(model: keras.Model, analysis: ChannelAnalysis, keep: BoolArray) -> keras.Model:
    """The model's own config with smaller numbers, built anew.

    Raises:
        UnsupportedLayerError: Keras cannot do that: it says of which layer.
    """
    shared = shared_layer(model)
    if shared:
        raise UnsupportedLayerError(
            f"{shared} are one layer in two models, which Keras rebuilds as two: call a layer within one model only"
        )

    def shrink(path: str, class_name: str, config: dict[str, Any]) -> None:
        for size in analysis.layers[path].sizes if path in analysis.layers else ():
            _set_size(config, size, keep)

    try:
        return rebuild_model(model, shrink)
    except Exception as error:  # Keras raises nearly every type here; the cause is kept, and named in the line
        raise UnsupportedLayerError(_why_not_rebuilt(model, error)) from error


def _why_not_rebuilt(model: keras.Model, error: Exception) -> str:
    """One line that names the layers which Keras is known not to rebuild, if there are any."""
    kinds = {path: type(layer).__name__ for path, layer in layers_by_path(model).items()}
    named = ", ".join(f"{path} ({kind})" for path, kind in kinds.items() if kind in _NOT_REBUILT)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    because = f"its layers {named} cannot be made from their config" if named else reason
    return (
        f"Keras cannot rebuild {model.name!r}: {because}; use a standard layer in its place, or give a layer of your "
        "own a get_config that its class takes"
    )


def _set_size(config: dict[str, Any], size: SizeSlice, keep: BoolArray) -> None:
    key, rest = size.keys[0], size.keys[1:]
    config[str(key)] = _with_number(config[str(key)], rest, int(keep[size.units].sum()))


def _with_number(value: Any, keys: tuple[str | int, ...], number: int) -> Any:
    """The value with another number at the place that the keys lead to; shapes in a config may be tuples."""
    if not keys:
        return number
    places = list(value)
    places[int(keys[0])] = _with_number(places[int(keys[0])], keys[1:], number)
    return type(value)(places)


def _fill(pruned: keras.Model, model: keras.Model, analysis: ChannelAnalysis, keep: BoolArray) -> None:
    """Copy every weight, sliced where the analysis says so."""
    sources = layers_by_path(model)
    for path, layer in layers_by_path(pruned).items():
        if layer.weights:
            weights = sources[path].get_weights()
            layer.set_weights(_sliced(weights, analysis.layers[path], keep) if path in analysis.layers else weights)
            # Normalization computes from numbers derived of its weights, which only this refreshes.
            layer.finalize_state()


def _sliced(weights: list[npt.NDArray[Any]], layer: LayerSlices, keep: BoolArray) -> list[npt.NDArray[Any]]:
    for axis in layer.axes:
        weights[axis.weight] = np.compress(keep[axis.units], weights[axis.weight], axis=axis.axis)
    return weights

"""The oracle of filter removal: the big model with the removed inputs of every consumer zeroed must equal the pruned
one.

Zeroing a filter itself is not the same: the batch norm behind it turns the zero into a constant (pitfall 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path, own_layers
from cxr_compress.structured import ChannelAnalysis, ChannelPlan, analyze_channels, remove_channels


def zeroed_model(model: keras.Model, plan: ChannelPlan) -> keras.Model:
    """A full-size copy of the model in which every consumer ignores the channels that the plan drops."""
    with own_layers(model):
        copy = type(model).from_config(model.get_config())
    zero_inputs(copy, model, plan, analyze_channels(model, exclude=plan.exclude))
    return copy


def zero_inputs(copy: keras.Model, model: keras.Model, plan: ChannelPlan, analysis: ChannelAnalysis) -> None:
    """Give the copy the model's weights, zero where a consumer meets a channel that the plan drops."""
    keep = plan.keep_vector(analysis)
    copy.set_weights(model.get_weights())
    for path, layer in layers_by_path(copy).items():
        layer.finalize_state()
        slices = analysis.layers.get(path)
        consumed = [axis for axis in slices.axes if axis.role == "consume"] if slices else []
        if consumed:
            weights = layer.get_weights()
            for axis in consumed:
                np.moveaxis(weights[axis.weight], axis.axis, 0)[~keep[axis.sets]] = 0
            layer.set_weights(weights)


def other_channels(plan: ChannelPlan, analysis: ChannelAnalysis, seed: int = 5) -> ChannelPlan:
    """The control: a plan with the same widths that keeps other channels."""
    rng = np.random.default_rng(seed)
    kept = {}
    for name, channels in plan.kept.items():
        total = analysis.groups[name].channels
        gone = sorted(set(range(total)) - set(channels))
        drawn = rng.permutation(total)[: len(channels)].tolist()
        # Make sure it is another choice: swap one dropped channel in where the draw repeated the plan.
        kept[name] = tuple(sorted(drawn)) if set(drawn) != set(channels) else tuple(sorted([gone[0], *channels[1:]]))
    return replace(plan, kept=kept)


@dataclass(frozen=True)
class Parity:
    """Largest differences over the spread (standard deviation over images and outputs) of the big model's output."""

    error: float
    control: float
    input_sensitivity: float
    removal_effect: float


def parity(model: keras.Model, plan: ChannelPlan, images: np.ndarray, pruned: keras.Model | None = None) -> Parity:
    """Compare the pruned model with the oracle, and with the oracle of other channels."""
    analysis = analyze_channels(model, exclude=plan.exclude)
    got = _outputs(remove_channels(model, plan) if pruned is None else pruned, images)
    big = zeroed_model(model, plan)
    oracle = _outputs(big, images)
    zero_inputs(big, model, other_channels(plan, analysis), analysis)
    wrong = _outputs(big, images)
    full = _outputs(model, images)
    spread = float(oracle.std())
    return Parity(
        error=float(np.abs(got - oracle).max()) / spread,
        control=float(np.abs(got - wrong).max()) / spread,
        input_sensitivity=float(oracle.std(axis=0).max()) / max(float(np.abs(oracle).max()), 1e-12),
        removal_effect=float(np.abs(full - oracle).max()) / spread,
    )


def _outputs(model: keras.Model, images: np.ndarray) -> np.ndarray:
    outputs = model(images, training=False)
    parts = outputs if isinstance(outputs, list) else [outputs]
    return np.concatenate([np.asarray(part).reshape(len(images), -1) for part in parts], axis=1)

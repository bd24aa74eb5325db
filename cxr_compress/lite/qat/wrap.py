"""Rebuild a folded model with TF-MOT's wrappers, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cxr_compress.keras2 import keras
from cxr_compress.lite.qat.graph import KERNELS, Step, Steps
from cxr_compress.lite.qat.quantizers import ActivationQuantizer, LayerConfig, QuantizedLayer, SharedRange
from cxr_compress.lite.qat.ranges import Range

layers = keras.layers
PREFIX = "quant_"

Kernels = dict[str, tuple[Any, Any]]


def wrap_steps(
    folded: Any, steps: Steps, groups: Sequence[Sequence[int]], ranges: Mapping[str, Range]
) -> tuple[Any, Kernels]:
    """Return a copy of a model that rounds, with the same weights, and the variables of its kernels and biases.

    Not with `quantize_apply`: it knows no DenseNet, and searches the whole model for each of its patterns, which takes
    50 s for a DenseNet121 where this takes a few.

    Args:
        folded: flat model without batch norms.
        steps: of this model.
        groups: as `ranges.share_ranges`.
        ranges: by layer name, of every step in a group.

    Returns:
        The model, and by layer name (kernel variable, bias variable or None).
    """
    quantizers: dict[int, ActivationQuantizer] = {}
    shared = [SharedRange(len(group)) for group in groups]
    for group, one in zip(groups, shared, strict=True):
        for place, number in enumerate(group):
            is_mean = type(steps.calls[number].layer) is layers.AveragePooling2D
            quantizers[number] = ActivationQuantizer(one, place, means=is_mean)
    image = keras.Input(batch_shape=tuple(folded.inputs[0].shape), name=steps.calls[0].name)
    tensors: list[Any] = []
    kernels: Kernels = {}
    for number, step in enumerate(steps.calls):
        copy = _copy(step)
        read = [tensors[source] for source in step.inputs] or [image]
        argument = read if type(step.layer) in (layers.Concatenate, layers.Add) else read[0]
        if type(step.layer) not in KERNELS and number not in quantizers:
            tensors.append(copy(argument))
            continue
        config = LayerConfig(type(step.layer), quantizers.get(number))
        wrapper = QuantizedLayer(copy, config, name=PREFIX + step.name)
        tensors.append(wrapper(argument))
        if config.kernel is not None:
            kernels[step.name] = _fill(config.kernel, copy.bias, step.layer)
    for group, one in zip(groups, shared, strict=True):
        one.assign([ranges[steps.calls[number].name] for number in group])
    return keras.Model(image, tensors[steps.output], name=folded.name), kernels


def _copy(step: Step) -> Any:
    """A layer like that of a step; where the model starts, one that hands the image on, for its range."""
    if type(step.layer) is layers.InputLayer:
        return layers.Activation("linear", name=f"{step.name}_codes")
    return type(step.layer).from_config(step.layer.get_config())


def _fill(kernel: Any, bias: Any, source: Any) -> tuple[Any, Any]:
    """Give a wrapped layer the weights of its source; returns its variables."""
    values = source.get_weights()
    kernel.assign(values[0])
    if bias is not None:
        bias.assign(values[1])
    return kernel, bias

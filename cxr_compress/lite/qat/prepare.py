"""A float model -> a model that trains with the rounding of its int8 file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite.calibration import DEFAULT_STEPS, collect_images
from cxr_compress.lite.exporter import Stage
from cxr_compress.lite.freeze import static_shape
from cxr_compress.lite.qat.fold import (
    KERNELS,
    FoldedModel,
    Step,
    Steps,
    fold_batch_norms,
    is_linear,
    is_rectifier,
    passes_on,
    read_steps,
)
from cxr_compress.lite.qat.quantizers import ActivationQuantizer, LayerConfig, QuantizedLayer, SharedRange
from cxr_compress.models.zeros import hold_zeros

layers = keras.layers
_BATCH = 16  # images at once: every activation is held

Range = tuple[float, float]
_TAKES_IN_RECTIFIER = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense, layers.Add)


def share_ranges(steps: Steps) -> list[list[int]]:
    """Group the steps whose results are rounded by the scale that TFLite makes them share.

    Not rounded are layers that hand codes on (their operators need the scale of their input at both ends) and those
    whose only reader is a ReLU that becomes part of them. A mean pool keeps its input's scale too, but rounds to it.

    Returns:
        Lists of step numbers, in order; every step that is rounded is in one of them.
    """
    parent = list(range(len(steps.calls)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for number, step in enumerate(steps.calls):
        if passes_on(step.layer):
            for source in step.inputs:
                parent[root(number)] = root(source)
    readers = steps.readers()
    groups: dict[int, list[int]] = {}
    for number, step in enumerate(steps.calls):
        handed_on = passes_on(step.layer) and type(step.layer) is not layers.AveragePooling2D
        if not handed_on and not _is_fused(steps, readers, number):
            groups.setdefault(root(number), []).append(number)
    return sorted(groups.values())


def _is_fused(steps: Steps, readers: list[list[int]], number: int) -> bool:
    """Whether a step becomes one operator with the ReLU behind it."""
    layer, behind = steps.calls[number].layer, readers[number]
    if type(layer) not in _TAKES_IN_RECTIFIER or number == steps.output or len(behind) != 1:
        return False
    computes_alone = type(layer) is layers.Add or is_linear(layer)
    return computes_alone and is_rectifier(steps.calls[behind[0]].layer)


def calibrate(model: Any, names: list[str], images: np.ndarray) -> Mapping[str, Range]:
    """Smallest and largest value of layers' results over images; the same images give the same ranges.

    Args:
        model: flat model in which every layer is called once.
        names: of the layers to look at.
        images: float32 (n, height, width, channels).

    Raises:
        CompressionError: a result is NaN or infinite; it names the layer.
    """
    watched = keras.Model(model.inputs, [model.get_layer(name).output for name in names])

    @tf.function(reduce_retracing=True, autograph=False)
    def extremes(batch: Any) -> Any:
        results = tf.nest.flatten(watched(batch, training=False))
        finite = [tf.reduce_all(tf.math.is_finite(result)) for result in results]  # minimum and maximum may skip NaN
        lows, highs = ([take(result) for result in results] for take in (tf.reduce_min, tf.reduce_max))
        return tf.stack([tf.where(finite, lows, np.nan), tf.where(finite, highs, np.nan)])

    extremes_of_batches = np.stack(
        [extremes(tf.constant(images[start : start + _BATCH])).numpy() for start in range(0, len(images), _BATCH)]
    )
    bad = np.flatnonzero(~np.isfinite(extremes_of_batches).all(axis=(0, 1)))
    if bad.size:
        raise CompressionError(
            f"the result of {names[int(bad[0])]} is NaN or infinite on the calibration images: check the weights and "
            "the preprocessing"
        )
    low, high = extremes_of_batches[:, 0].min(axis=0), extremes_of_batches[:, 1].max(axis=0)
    return {name: (float(lo), float(hi)) for name, lo, hi in zip(names, low, high, strict=True)}


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
        groups: as `share_ranges`.
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


Progress = Callable[[str], None]


@dataclass(frozen=True)
class QatModel:
    """A model in quantization-aware training.

    Attributes:
        model: what is trained, with `train.fit` as any other: its weights hold all of its state, ranges included. It
            cannot be saved as a file; `prepare_qat` with the same arguments and its weights make it again.
        kernels: layer of `model` without PREFIX -> its kernel variable and its bias variable or None.
        masks: by the same names, where kernels stay zero (0) or may train (1).
    """

    model: Any = field(repr=False)
    kernels: Mapping[str, tuple[Any, Any]] = field(repr=False)
    masks: Mapping[str, np.ndarray] = field(repr=False)


def prepare_qat(
    model: Any,
    calibration: Iterable[np.ndarray],
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    calibration_steps: int = DEFAULT_STEPS,
    input_size: int | tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> QatModel:
    """Return a trainable copy of `model` that rounds as its int8 file will; `model` is left as it is.

    Batch norms are folded (see `fold`), kernels are rounded per channel, activations to ranges that start from the
    calibration images and then follow the training batches. It is worth its time where int8 after training loses too
    much: a step costs one to two float ones. Train with a tenth or less of the float learning rate. The same model
    and images give the same weights, ranges included.

    Args:
        model: functional or Sequential tf_keras model of one image input that gives logits; nested models are opened
            up. Layers that are frozen stay frozen.
        calibration: batches float32 (n, height, width, channels), preprocessed as the model's input: training images.
        masks: layer of `model` (nested models' names in front) -> 1 kept, 0 zero, of its kernel's shape
            (`models.zeros.zero_masks`): those weights are set to 0, and stay it through training and conversion.
        calibration_steps: images taken from `calibration` at most.
        input_size: of the calibration images, where the model leaves its height and width open.
        progress: is told each stage and its seconds.

    Raises:
        UnsupportedLayerError: a layer that cannot be trained quantized: its name, its type and what to do.
        DataError: the calibration images are not what the model takes, or too few.
        CompressionError: a mask fits no kernel, or an activation is NaN or infinite on the calibration images.
    """
    report = progress or (lambda line: None)
    with Stage("batch norms folded", report):
        folded = fold_batch_norms(model)
        masks = dict(masks or {})
        _check_masks(folded, masks)
    _, *shape = static_shape(tuple(model.inputs[0].shape), 1, input_size)
    images = collect_images(calibration, (shape[0], shape[1], shape[2]), calibration_steps)
    steps = read_steps(folded.model)
    groups = share_ranges(steps)
    names = [steps.calls[number].name for group in groups for number in group]
    with Stage(f"ranges calibrated on {len(images)} images", report):
        ranges = calibrate(folded.model, names, images)
    with Stage("layers wrapped", report):
        trained, kernels = wrap_steps(folded.model, steps, groups, ranges)
        hold_zeros([(kernels[name][0], mask) for name, mask in masks.items()])
    return QatModel(trained, kernels, masks)


def _check_masks(folded: FoldedModel, masks: Mapping[str, np.ndarray]) -> None:
    """Check that every mask has a kernel to go with.

    Raises:
        CompressionError: a mask's layer has no kernel in the model, or a kernel of another shape.
    """
    unknown = sorted(set(masks) - folded.kernels)
    if unknown:
        raise CompressionError(
            f"masks for {', '.join(unknown)}, where the model has no kernel: take the masks from this very model"
        )
    for name, mask in masks.items():
        shape = tuple(folded.model.get_layer(name).weights[0].shape)
        if tuple(np.shape(mask)) != shape:
            raise CompressionError(
                f"the mask of {name} has shape {np.shape(mask)}, its kernel {shape}: take the masks from this "
                "very model"
            )

"""Criteria that look at what channels do on images: gradients (taylor) and zeros behind a ReLU (apoz)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import Step, Steps, traits_of, unroll
from cxr_compress.structured.analysis import AxisSlice
from cxr_compress.structured.cost import IntArray
from cxr_compress.structured.criteria.weights import FloatVector, Member, ScoringInput
from cxr_compress.structured.stepwise import checked


def taylor(given: ScoringInput) -> list[Member]:
    """Squared first-order change of the loss when a channel goes, averaged over batches.

    A channel that is removed is one that its consumers no longer read, so its gate stands at their inputs: the sum of
    weight times gradient over everything that reads the channel equals that of activation times gradient there. All
    consumers share that one gate; there is nothing left for `group_reduction` to combine.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771), section 3.1,
    equation 8 (squared sum over the set), mean over minibatches as in section 3.2.
    """
    if given.loss is None:
        raise CompressionError("taylor needs a loss: pass loss=(labels, outputs) -> loss, as in training")
    axes = [(path, axis) for path, layer in given.analysis.layers.items() for axis in layer.axes]
    readers = [(path, axis) for path, axis in axes if axis.role == "consume"]
    run = _weight_times_gradient(given, readers)
    total, count = np.zeros(given.analysis.units), 0
    for images, labels in checked(given.model, given.batches, "taylor", labels=True):
        gate = np.zeros(given.analysis.units)
        found = run(tf.convert_to_tensor(images), tf.convert_to_tensor(labels))
        for (_, axis), values in zip(readers, found, strict=True):
            np.add.at(gate, axis.units, np.asarray(values, dtype=np.float64))
        total += gate**2
        count += 1
    if not np.isfinite(total).all():
        raise DataError("taylor: the loss or its gradient is NaN or infinite: check labels, loss and weights")
    return [Member(np.arange(given.analysis.units, dtype=np.int32), total / count)]


def _weight_times_gradient(given: ScoringInput, readers: Sequence[tuple[str, AxisSlice]]) -> Any:
    """(images, labels) -> per reader, (channels,) weight times gradient summed over all that reads a channel."""
    kernels = [given.layers[path].weights[axis.weight] for path, axis in readers]
    loss = given.loss

    @tf.function(reduce_retracing=True)
    def run(images: Any, labels: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Watched by hand: layers that are frozen for training are scored all the same.
            tape.watch(kernels)
            value = tf.reduce_mean(loss(labels, given.model(images, training=False)))  # type: ignore[misc]
        gradients = tape.gradient(value, kernels, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [
            tf.reduce_sum(kernel * gradient, axis=[n for n in range(len(kernel.shape)) if n != axis.axis])
            for kernel, gradient, (_, axis) in zip(kernels, gradients, readers, strict=True)
        ]

    return run


def apoz(given: ScoringInput) -> list[Member]:
    """One minus the share of zeros behind the ReLU that follows; every ReLU that a consumer reads through has a say.

    Source: Hu et al. 2016, "Network Trimming" (arXiv 1607.03250), section 3.1.
    """
    steps = unroll(given.model)
    taps = _relu_taps(given, steps)
    tensors = list(taps)
    if not tensors:
        return []
    run = _count_active(steps, tensors)
    active: list[FloatVector] = [np.zeros(len(taps[tensor])) for tensor in tensors]
    places = np.zeros(len(tensors))
    for images, _ in checked(given.model, given.batches, "apoz"):
        counts, sizes = run(tf.convert_to_tensor(images))
        active = [total + np.asarray(count, dtype=np.float64) for total, count in zip(active, counts, strict=True)]
        places += np.asarray(sizes, dtype=np.float64)
    return [_mean_member(taps[tensor], active[n] / places[n]) for n, tensor in enumerate(tensors)]


def _mean_member(units: IntArray, values: FloatVector) -> Member:
    """A channel that stands twice in one tensor (a concat with itself) counts once."""
    total, count = Member.of(units, values), Member.of(units, np.ones(len(units)))
    return Member(total.units, total.values / count.values)


def _relu_taps(given: ScoringInput, steps: Steps) -> dict[int, IntArray]:
    """By the number of a tensor behind a ReLU: the units of its channels."""
    makers = {tensor: step for step in steps.calls for tensor in step.makes}
    taps: dict[int, IntArray] = {}
    for step in steps.calls:
        layer = given.analysis.layers.get(step.path)
        for axis in layer.axes if layer else ():
            if axis.role == "consume" and axis.weight == 0:
                _follow_back(step.reads[0], axis.units, makers, taps)
    return taps


def _follow_back(tensor: int, units: IntArray, makers: dict[int, Step], taps: dict[int, IntArray]) -> None:
    """Go from what a consumer reads back to the ReLUs, through pools and concats, and note their channels."""
    step = makers.get(tensor)
    if step is None:
        return
    traits = traits_of(step.layer)
    if _is_relu(step.layer):
        taps.setdefault(tensor, units)
    elif (traits.passes_channels and traits.kind != "activation") or type(step.layer).__name__ == "Flatten":
        # A Flatten repeats the channel axis position by position: its first round is the axis itself.
        _follow_back(step.reads[0], units[: step.node.keras_inputs[0].shape[-1]], makers, taps)
    elif traits.kind == "concatenation" and step.layer.axis in (-1, len(step.node.keras_inputs[0].shape) - 1):
        ends = np.cumsum([given.shape[-1] for given in step.node.keras_inputs])
        for read, part in zip(step.reads, np.split(units, ends[:-1]), strict=True):
            _follow_back(read, part, makers, taps)


def _is_relu(layer: Any) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope and not layer.threshold
    return getattr(getattr(layer, "activation", None), "__name__", "") in ("relu", "relu6")


def _count_active(steps: Steps, tensors: Sequence[int]) -> Any:
    """Images -> per tensor, (channels,) how many values are above zero, and how many there are per channel."""
    last = max(place for place, step in enumerate(steps.calls) if set(step.makes) & set(tensors))

    @tf.function(reduce_retracing=True)
    def run(images: Any) -> tuple[list[Any], list[Any]]:
        values = {steps.source: images}
        for step in steps.calls[: last + 1]:
            outputs = step.run([values[number] for number in step.reads])
            values.update(zip(step.makes, outputs, strict=True))
        seen = [values[tensor] for tensor in tensors]
        flat = [tf.reshape(value, (-1, value.shape[-1])) for value in seen]
        counts = [tf.math.count_nonzero(value > 0, axis=0, dtype=tf.int64) for value in flat]
        return counts, [tf.shape(value)[0] for value in flat]

    return run

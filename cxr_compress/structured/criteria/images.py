"""Criteria that look at what channels do on images: gradients (taylor) and zeros behind a ReLU (apoz)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.structured.analysis import AxisSlice
from cxr_compress.structured.cost import IntArray
from cxr_compress.structured.criteria.base import FloatVector, Member, ScoringInput, register_criterion

if TYPE_CHECKING:
    from cxr_compress.models.keras_graph import Step, Steps

# TensorFlow, and what needs it, is imported inside of the functions: listing the criteria must not wait for it.


@register_criterion(
    "taylor", help="change of the loss without the filter, on labeled images", needs_images=True, needs_labels=True
)
def taylor(scoring: ScoringInput) -> list[Member]:
    """Squared first-order change of the loss when a channel goes, averaged over batches.

    A channel that is removed is one that its consumers no longer read, so its gate stands at their inputs: the sum of
    weight times gradient over everything that reads the channel equals that of activation times gradient there. All
    consumers share that one gate; there is nothing left for `group_reduction` to combine.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771), section 3.1,
    equation 8 (squared sum over the set), mean over minibatches as in section 3.2.
    """
    import tensorflow as tf

    from cxr_compress.structured.stepwise import checked

    if scoring.loss is None:
        raise CompressionError("taylor needs a loss: pass loss=(labels, outputs) -> loss, as in training")
    axes = [(path, axis) for path, layer in scoring.analysis.layers.items() for axis in layer.axes]
    readers = [(path, axis) for path, axis in axes if axis.role == "consume"]
    run = _weight_times_gradient(scoring, readers)
    total, count = np.zeros(scoring.analysis.set_count), 0
    for images, labels in checked(scoring.model, scoring.batches, "taylor", labels=True):
        gate = np.zeros(scoring.analysis.set_count)
        products = run(tf.convert_to_tensor(images), tf.convert_to_tensor(labels))
        for (_, axis), values in zip(readers, products, strict=True):
            np.add.at(gate, axis.sets, np.asarray(values, dtype=np.float64))
        total += gate**2
        count += 1
    if not np.isfinite(total).all():
        raise DataError("taylor: the loss or its gradient is NaN or infinite: check labels, loss and weights")
    return [Member(np.arange(scoring.analysis.set_count, dtype=np.int32), total / count)]


def _weight_times_gradient(scoring: ScoringInput, readers: Sequence[tuple[str, AxisSlice]]) -> Any:
    """(images, labels) -> per reader, (channels,) weight times gradient summed over all that reads a channel."""
    import tensorflow as tf

    kernels = [scoring.layers[path].weights[axis.weight] for path, axis in readers]
    loss = scoring.loss

    @tf.function(reduce_retracing=True)
    def run(images: Any, labels: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Watched by hand: layers that are frozen for training are scored all the same.
            tape.watch(kernels)
            value = tf.reduce_mean(loss(labels, scoring.model(images, training=False)))  # type: ignore[misc]
        gradients = tape.gradient(value, kernels, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [
            tf.reduce_sum(kernel * gradient, axis=[n for n in range(len(kernel.shape)) if n != axis.axis])
            for kernel, gradient, (_, axis) in zip(kernels, gradients, readers, strict=True)
        ]

    return run


@register_criterion(
    "apoz",
    help="share of images and places where a filter's ReLU is above zero",
    needs_images=True,
    group_needs="a ReLU between its channels and what reads them",
)
def apoz(scoring: ScoringInput) -> list[Member]:
    """One minus the share of zeros behind the ReLU that follows; every ReLU that a consumer reads through has a say.

    Source: Hu et al. 2016, "Network Trimming" (arXiv 1607.03250), section 3.1.
    """
    import tensorflow as tf

    from cxr_compress.models.keras_graph import unroll
    from cxr_compress.structured.stepwise import checked

    steps = unroll(scoring.model)
    taps = _relu_taps(scoring, steps)
    tensors = list(taps)
    if not tensors:
        return []
    run = _count_active(steps, tensors)
    active: list[FloatVector] = [np.zeros(len(taps[tensor])) for tensor in tensors]
    places = np.zeros(len(tensors))
    for images, _ in checked(scoring.model, scoring.batches, "apoz"):
        counts, sizes = run(tf.convert_to_tensor(images))
        active = [total + np.asarray(count, dtype=np.float64) for total, count in zip(active, counts, strict=True)]
        places += np.asarray(sizes, dtype=np.float64)
    return [_mean_member(taps[tensor], active[n] / places[n]) for n, tensor in enumerate(tensors)]


def _mean_member(sets: IntArray, values: FloatVector) -> Member:
    """A channel that stands twice in one tensor (a concat with itself) counts once."""
    total, count = Member.of(sets, values), Member.of(sets, np.ones(len(sets)))
    return Member(total.sets, total.values / count.values)


def _relu_taps(scoring: ScoringInput, steps: Steps) -> dict[int, IntArray]:
    """By the number of a tensor behind a ReLU: the sets of its channels."""
    makers = {tensor: step for step in steps.calls for tensor in step.makes}
    taps: dict[int, IntArray] = {}
    for step in steps.calls:
        layer = scoring.analysis.layers.get(step.path)
        for axis in layer.axes if layer else ():
            if axis.role == "consume" and axis.weight == 0:
                _follow_back(step.reads[0], axis.sets, makers, taps)
    return taps


def _follow_back(tensor: int, sets: IntArray, makers: dict[int, Step], taps: dict[int, IntArray]) -> None:
    """Go from what a consumer reads back to the ReLUs, through pools and concats, and note their channels."""
    from cxr_compress.models.keras_graph import traits_of

    step = makers.get(tensor)
    if step is None:
        return
    traits = traits_of(step.layer)
    if _is_relu(step.layer):
        taps.setdefault(tensor, sets)
    elif (traits.passes_channels and traits.kind != "activation") or type(step.layer).__name__ == "Flatten":
        # A Flatten repeats the channel axis position by position: its first round is the axis itself.
        _follow_back(step.reads[0], sets[: step.node.keras_inputs[0].shape[-1]], makers, taps)
    elif traits.kind == "concatenation" and step.layer.axis in (-1, len(step.node.keras_inputs[0].shape) - 1):
        ends = np.cumsum([tensor.shape[-1] for tensor in step.node.keras_inputs])
        for read, part in zip(step.reads, np.split(sets, ends[:-1]), strict=True):
            _follow_back(read, part, makers, taps)


def _is_relu(layer: Any) -> bool:
    from cxr_compress.keras2 import keras

    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope and not layer.threshold
    return getattr(getattr(layer, "activation", None), "__name__", "") in ("relu", "relu6")


def _count_active(steps: Steps, tensors: Sequence[int]) -> Any:
    """Images -> per tensor, (channels,) how many values are above zero, and how many there are per channel."""
    import tensorflow as tf

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

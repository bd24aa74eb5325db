"""Criteria that look at what channels do on images: gradients (taylor), zeros behind a ReLU (apoz), a LASSO (lasso)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.structured.analysis import AxisSlice, ChannelGroup
from cxr_compress.structured.cost import IntArray
from cxr_compress.structured.criteria.base import FloatVector, Member, ScoringInput, register_criterion

if TYPE_CHECKING:
    from cxr_compress.models.keras_graph import Step, Steps
    from cxr_compress.structured.repair.consumers import Consumer


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

    from cxr_compress.structured.repair.consumers import checked

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
    from cxr_compress.structured.repair.consumers import checked

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


Matrix = npt.NDArray[np.float64]

# Sampled output positions per image; He 2017 takes ten of far more images.
POSITIONS = 16
# Points of the path, over four decades of the penalty.
PATH_POINTS = 64
PATH_DEPTH = 1e-4
SWEEPS = 200
TOLERANCE = 1e-6
# Columns up to which the Gram matrix of a consumer's rows is formed (128 MB in float64).
MAX_GRAM_COLUMNS = 4096
# Elements of one block of per-channel contributions.
MAX_BLOCK = 1 << 22


@register_criterion(
    "lasso",
    help="order in which LASSO drops a layer's filters from what their readers compute, for the local scope",
    needs_images=True,
    group_needs="a Conv2D or Dense that reads its channels",
)
def lasso(scoring: ScoringInput) -> list[Member]:
    """Scores = order of elimination along the LASSO path, from 1/channels (first out) to 1.

    With A the products of the channels' contributions to all consumers' outputs (centered, since a constant is folded
    or re-estimated; each consumer's divided by its output's variance),  min 1/2 b'Ab - b'A1 + penalty |b|_1  starts at
    b = 1 for no penalty; as the penalty grows, channels leave. The rank says nothing of how groups compare: in global
    scope every group loses about the same share, so this criterion is local.

    Source: He et al. 2017 (arXiv 1707.06168), section 3.1, equation 2; several consumers as in section 3.3.
    """
    products = _Products(scoring)
    return [
        Member(np.arange(group.start, group.start + group.channels, dtype=np.int32), elimination_order(matrix))
        for group, matrix in products.collect()
    ]


def elimination_order(products: Matrix) -> FloatVector:
    """Rank of each channel over their number: the higher, the larger the penalty it survives.

    Args:
        products: (channels, channels) positive semi-definite.
    """
    channels = len(products)
    target = products.sum(axis=1)
    top = float(np.abs(target).max())
    entered = np.full(channels, PATH_POINTS, dtype=np.int64)
    size = np.abs(target)
    if top > 0:
        solution = np.zeros(channels)
        curvature = float(np.linalg.eigvalsh(products)[-1])
        for point, penalty in enumerate(top * np.geomspace(1.0, PATH_DEPTH, PATH_POINTS + 1)[1:]):
            solution = _shrunk_solution(products, target, penalty, solution, curvature)
            fresh = (solution != 0) & (entered == PATH_POINTS)
            entered[fresh] = point
            size[fresh] = np.abs(solution[fresh])
    # Later entry = eliminated earlier; among those that enter together the smaller coefficient goes first.
    order = np.lexsort((size, -entered))
    rank = np.empty(channels)
    rank[order] = np.arange(1, channels + 1) / channels
    return rank


def _shrunk_solution(products: Matrix, target: Matrix, penalty: float, start: Matrix, curvature: float) -> Matrix:
    """One point of the path by accelerated proximal gradient steps from the point before.

    Source: Beck and Teboulle 2009 (FISTA), with O'Donoghue and Candes' restart when the step turns back.
    """
    current, ahead, pace = start, start, 1.0
    for _ in range(SWEEPS):
        moved = ahead - (products @ ahead - target) / curvature
        new = np.sign(moved) * np.maximum(np.abs(moved) - penalty / curvature, 0.0)
        step = new - current
        if float(np.abs(step).max()) < TOLERANCE:
            return new
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        if float(np.dot(ahead - new, step)) > 0:
            faster, pace = 1.0, 1.0
        current, ahead, pace = new, new + (pace - 1) / faster * step, faster
    return current


class _Products:
    """Collects, group by group, the products of the channels' contributions to their consumers."""

    def __init__(self, scoring: ScoringInput) -> None:
        # Here and not above: listing the criteria must not wait for TensorFlow.
        from cxr_compress.models.keras_graph import unroll
        from cxr_compress.structured.repair.consumers import find_consumers

        self._scoring = scoring
        self._steps = unroll(scoring.model)
        self._consumers, _ = find_consumers(self._steps, scoring.analysis)
        self._matrices: dict[str, Matrix] = {}

    def collect(self) -> list[tuple[ChannelGroup, Matrix]]:
        """Every group that has a Conv2D or Dense to read it, with its matrix."""
        from cxr_compress.structured.repair.consumers import DEFAULT_MEMORY, fitting_images, take_images, walk

        scoring = self._scoring
        places = {consumer.place: consumer for consumer in self._consumers}
        fitting = fitting_images(DEFAULT_MEMORY, scoring.analysis)
        images = take_images(scoring.model, scoring.batches, fitting, "lasso")
        rng = np.random.default_rng(scoring.seed)

        def visit(place: int, inputs: list[list[list[Any]]]) -> None:
            self._add(places[place], [tensors[0] for tensors in inputs[0]], rng)

        walk([self._steps], images, places, visit)
        return [(scoring.analysis.groups[name], matrix) for name, matrix in self._matrices.items()]

    def _add(self, consumer: Consumer, tensors: list[Any], rng: np.random.Generator) -> None:
        """Add one consumer's share to the matrix of every group that it reads."""
        sampled = [(tensor, consumer.reader.draw(len(tensor), POSITIONS, rng)) for tensor in tensors]
        rows = np.concatenate([consumer.reader.rows(tensor, places) for tensor, places in sampled])
        kernel = consumer.kernel()
        outputs = rows @ kernel
        spread = float(np.sum((outputs - outputs.mean(axis=0)) ** 2, dtype=np.float64))
        if not np.isfinite(spread):
            raise DataError(f"lasso: what {consumer.path} reads is NaN or infinite: check images and weights")
        for group in self._scoring.analysis.groups.values():
            columns = np.flatnonzero((consumer.sets >= group.start) & (consumer.sets < group.start + group.channels))
            if len(columns):
                local = consumer.sets[columns] - group.start
                products = contribution_products(rows[:, columns], kernel[columns], local, group.channels)
                matrix = self._matrices.setdefault(group.name, np.zeros((group.channels, group.channels)))
                # A consumer whose output does not move has no say; its groups still get their matrix.
                matrix += products / spread if spread > 0 else 0.0


def contribution_products(
    rows: npt.NDArray[np.float32], kernel: npt.NDArray[np.float32], channel: IntArray, channels: int
) -> Matrix:
    """(channels, channels) inner products of what each channel adds to the outputs, centered over rows.

    Args:
        rows: (n, columns) what the consumer reads.
        kernel: (columns, outputs).
        channel: (columns,) whose channel each column is.
        channels: how many there are.
    """
    rows64 = rows.astype(np.float64)
    rows64 -= rows64.mean(axis=0)
    kernel64 = kernel.astype(np.float64)
    if len(channel) > MAX_GRAM_COLUMNS:
        return _block_products(rows64, kernel64, channel, channels)
    # <x_p k_p, x_q k_q> summed over rows and outputs is the Gram of the rows times the Gram of the kernel.
    pairs = (rows64.T @ rows64) * (kernel64 @ kernel64.T)
    products = np.zeros((channels, channels))
    np.add.at(products, (channel[:, None], channel[None, :]), pairs)
    return products


def _block_products(rows: Matrix, kernel: Matrix, channel: IntArray, channels: int) -> Matrix:
    """The same for many columns: contributions themselves, a few rows at a time."""
    order = np.argsort(channel, kind="stable")
    starts = np.searchsorted(channel[order], np.arange(channels + 1))
    products = np.zeros((channels, channels))
    block = max(1, MAX_BLOCK // (channels * kernel.shape[1]))
    for first in range(0, len(rows), block):
        part = rows[first : first + block]
        columns = [order[starts[n] : starts[n + 1]] for n in range(channels)]
        contributions = np.stack([part[:, own] @ kernel[own] for own in columns]).reshape(channels, -1)
        products += contributions @ contributions.T
    return products

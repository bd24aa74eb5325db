"""He 2017's channel selection: the order in which LASSO drops channels from what their consumers compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import DataError
from cxr_compress.structured.analysis import ChannelGroup
from cxr_compress.structured.cost import IntArray
from cxr_compress.structured.criteria.base import FloatVector, Member, ScoringInput, register_criterion

if TYPE_CHECKING:
    from cxr_compress.structured.repair.consumers import Consumer

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
    help="order in which LASSO drops a layer's filters from what their readers compute; for the local scope",
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
        from cxr_compress.structured.repair.consumers import DEFAULT_MEMORY, fitting_images
        from cxr_compress.structured.stepwise import take_images, walk

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

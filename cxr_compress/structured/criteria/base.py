"""How much each removable channel matters, and the register of the criteria that say so.

A criterion is one function, in this folder or in a package of yours. Every layer that makes or reads a channel may say
something of it; what the layers of one group say of the same channel is combined, because it goes from all of them:

    @register_criterion("spread", help="standard deviation of a filter's weights")
    def spread(scoring: ScoringInput) -> list[Member]:
        return [Member.of(sets, rows.std(axis=1)) for sets, rows in produced_kernels(scoring)]

From then on `score_channels(..., criterion="spread")` and `--criterion=spread` use it. Importing this loads no
TensorFlow, so that flags and their help can list the names at once.

Raw scores grow with a layer's width and depth, so they are divided by the mean of their group: in global scope layers
then compete on how unequal their filters are, not on how large their weights happen to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError
from cxr_compress.recipe.fields import provide_choices
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.cost import IntArray

if TYPE_CHECKING:
    from cxr_compress.keras2 import keras

FloatVector = npt.NDArray[np.float64]
Scores = dict[str, FloatVector]


@dataclass(frozen=True)
class ScoringInput:
    """What a criterion may look at.

    Attributes:
        model: only read.
        layers: by path, the model's layers, those of nested models included.
        weights: by path, the arrays of `layer.get_weights()`, of the layers that follow channels.
        analysis: the channels to score.
        batches: images, or (images, labels), for the criteria that look at data.
        loss: (labels, outputs) -> loss, for the criteria that need a gradient.
        seed: for criteria that draw.
    """

    model: keras.Model
    layers: Mapping[str, Any]
    weights: Mapping[str, list[npt.NDArray[np.float32]]]
    analysis: ChannelAnalysis
    batches: Iterable[Any] | None
    loss: Callable[[Any, Any], Any] | None
    seed: int


@dataclass(frozen=True, eq=False)
class Member:
    """What one layer has to say of some channel sets.

    Attributes:
        sets: the numbers of the channel sets, each at most once.
        values: one score for each; higher means keep.
    """

    sets: IntArray
    values: FloatVector

    @classmethod
    def of(cls, sets: IntArray, values: FloatVector) -> Member:
        """A member whose channels may name a channel set several times; those channels are added up."""
        unique, places = np.unique(sets, return_inverse=True)
        total = np.zeros(len(unique))
        np.add.at(total, places.reshape(-1), values)
        return cls(unique, total)


Score = Callable[[ScoringInput], list[Member]]


@dataclass(frozen=True)
class Criterion:
    """A way to score channels.

    Attributes:
        score: what it makes of a model.
        help: what it looks at, in a few words for a list of criteria.
        needs_images: whether it needs batches of images.
        needs_labels: whether it needs a loss too, and batches of (images, labels).
        group_needs: what a group must have for the criterion to say anything of it; "" for nothing.
    """

    score: Score
    help: str
    needs_images: bool = False
    needs_labels: bool = False
    group_needs: str = ""


CRITERIA: dict[str, Criterion] = {}
"""The registered criteria by name; the names are the choices of `--criterion`."""
provide_choices("criterion", lambda: {name: criterion.help for name, criterion in CRITERIA.items()})


def register_criterion(
    name: str, *, help: str, needs_images: bool = False, needs_labels: bool = False, group_needs: str = ""
) -> Callable[[Score], Score]:
    """Make a function a criterion that `score_channels` and `--criterion` take.

    Args:
        name: as it is given to `--criterion`.
        help: see `Criterion`.
        needs_images: see `Criterion`.
        needs_labels: see `Criterion`; implies `needs_images`.
        group_needs: see `Criterion`.

    Raises:
        CompressionError: the name is taken.
    """
    if name in CRITERIA:
        raise CompressionError(f"the criterion {name!r} is registered twice: give one of the two another name")

    def register(score: Score) -> Score:
        CRITERIA[name] = Criterion(score, help, needs_images or needs_labels, needs_labels, group_needs)
        return score

    return register


def produced_kernels(scoring: ScoringInput) -> Iterator[tuple[IntArray, FloatVector]]:
    """Channel sets and (filters, weights) float64 of every kernel that makes channels; biases are left out."""
    for path, layer in scoring.analysis.layers.items():
        for axis in layer.axes:
            kernel = scoring.weights[path][axis.weight]
            if axis.role == "produce" and kernel.ndim > 1:
                rows = np.moveaxis(kernel, axis.axis, 0).reshape(kernel.shape[axis.axis], -1)
                yield axis.sets, rows.astype(np.float64)


def score_channels(
    model: keras.Model,
    analysis: ChannelAnalysis,
    *,
    criterion: str = "l1",
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    group_reduction: str = "sum",
    normalizer: str = "mean",
    seed: int = 0,
) -> Scores:
    """Score every removable channel of a model.

    Args:
        model: the model that `analysis` came from; it is only read.
        analysis: its channels.
        criterion: a name of `CRITERIA`; each says what it looks at, and what it needs.
        batches: float32 (n, h, w, c) images preprocessed as in training, or pairs (images, labels), for the criteria
            that need them.
        loss: (labels, outputs) -> loss, for the criteria that need labels.
        group_reduction: how the layers of a group combine: "sum", "mean" or "max". Criteria that look at all readers
            of a channel together have nothing to combine.
        normalizer: "mean" or "max" divides a group's scores by that, so that groups compare; "none" leaves them raw,
            which lets wide layers crowd out narrow ones in global mode.
        seed: of what a criterion draws.

    Returns:
        By group, (channels,) float64; higher means keep.

    Raises:
        CompressionError: an unknown criterion or option, a group that the criterion has nothing to say of, weights
            that are not finite, or a missing loss.
        DataError: missing batches, or batches that do not fit the model.
    """
    options: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("criterion", criterion, CRITERIA),
        ("group_reduction", group_reduction, REDUCTIONS),
        ("normalizer", normalizer, NORMALIZERS),
    )
    for kind, value, known in options:
        if value not in known:
            raise CompressionError(f"expected {kind} to be one of {', '.join(sorted(known))}; got {value!r}")
    # Here and not above: whoever lists the criteria should not wait for TensorFlow.
    from cxr_compress.models.keras_graph import layers_by_path

    layers = layers_by_path(model)
    weights = {path: layer.get_weights() for path, layer in layers.items() if path in analysis.layers}
    _check_finite(weights)
    members = CRITERIA[criterion].score(ScoringInput(model, layers, weights, analysis, batches, loss, seed))
    raw = _reduce(members, analysis, criterion, group_reduction)
    return {name: NORMALIZERS[normalizer](raw[group.sets]) for name, group in analysis.groups.items()}


def _check_finite(weights: Mapping[str, list[npt.NDArray[np.float32]]]) -> None:
    for path, arrays in weights.items():
        if not all(np.isfinite(array).all() for array in arrays):
            raise CompressionError(
                f"expected finite weights to score; {path} holds NaN or infinity: train the model again"
            )


def _reduce(members: Sequence[Member], analysis: ChannelAnalysis, criterion: str, how: str) -> FloatVector:
    """(channel sets,) one score for each from what all members say."""
    counts = np.zeros(analysis.set_count, dtype=np.int64)
    for member in members:
        counts[member.sets] += 1
    needed = CRITERIA[criterion].group_needs
    for name, group in analysis.groups.items():
        if needed and not counts[group.sets].all():
            raise CompressionError(
                f"{criterion} needs {needed}; group {name!r} has none: exclude it or choose another criterion"
            )
    return REDUCTIONS[how](members, counts)


def _sum(members: Sequence[Member], counts: npt.NDArray[np.int64]) -> FloatVector:
    total = np.zeros(len(counts))
    for member in members:
        total[member.sets] += member.values
    return total


def _mean(members: Sequence[Member], counts: npt.NDArray[np.int64]) -> FloatVector:
    return np.asarray(_sum(members, counts) / np.maximum(counts, 1))


def _max(members: Sequence[Member], counts: npt.NDArray[np.int64]) -> FloatVector:
    total = np.zeros(len(counts))
    for member in members:
        total[member.sets] = np.maximum(total[member.sets], member.values)
    return total


def _over(statistic: Callable[[FloatVector], Any]) -> Callable[[FloatVector], FloatVector]:
    """Scores over a statistic of their group; a group of dead filters scores zero throughout."""

    def normalizer(scores: FloatVector) -> FloatVector:
        scale = float(statistic(scores))
        return scores / scale if scale > 0 else np.zeros_like(scores)

    return normalizer


REDUCTIONS: dict[str, Callable[[Sequence[Member], npt.NDArray[np.int64]], FloatVector]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
}
NORMALIZERS: dict[str, Callable[[FloatVector], FloatVector]] = {
    "mean": _over(np.mean),
    "max": _over(np.max),
    "none": np.copy,
}

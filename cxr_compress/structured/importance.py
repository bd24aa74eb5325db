"""How much each removable channel matters: one score per channel and group, higher means keep.

A criterion lets every layer that makes or reads a channel say something of it; what layers of one group say of the
same channel is combined, because the channel goes from all of them. Raw scores grow with a layer's width and depth, so
they are divided by the mean of their group: in global mode layers then compete on how unequal their filters are, not
on how large their weights happen to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.criteria.images import apoz, taylor
from cxr_compress.structured.criteria.lasso import lasso
from cxr_compress.structured.criteria.weights import (
    Criterion,
    FloatVector,
    Member,
    ScoringInput,
    bn_scale,
    draw,
    geometric_median,
    norm,
)

Scores = dict[str, npt.NDArray[np.float64]]

CRITERIA: dict[str, Criterion] = {
    "l1": norm(1),
    "l2": norm(2),
    "geometric_median": geometric_median,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "apoz": apoz,
    "lasso": lasso,
    "random": draw,
}

# What a group must have for a criterion to say anything of it.
_NEEDED = {
    "bn_scale": "a batch norm with a scale that its channels pass through",
    "apoz": "a ReLU between its channels and what reads them",
    "lasso": "a Conv2D or Dense that reads its channels",
}


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
        criterion: from the weights alone: "l1", the sum of a filter's absolute kernel weights (Li 2016, section 3.1),
            "l2", their Euclidean norm, "geometric_median", distance to the layer's other filters (He 2019),
            "bn_scale" (Liu 2017), "random", uniform draws: the baseline that every report should show. From images:
            "apoz", zeros behind the ReLU (Hu 2016), and "lasso" (He 2017), slower and meant for scope="local". From
            images and labels: "taylor", change of the loss (Molchanov 2019).
        batches: float32 (n, h, w, c) images preprocessed as in training, or pairs (images, labels); "taylor" squares
            once per batch, so its scores depend a little on the batch size.
        loss: (labels, outputs) -> loss; "taylor" only.
        group_reduction: how the layers of a group combine: "sum", "mean" or "max". "taylor" and "lasso" look at all
            readers of a channel together, so they have nothing to combine.
        normalizer: "mean" or "max" divides a group's scores by that, so that groups compare; "none" leaves them raw,
            which lets wide layers crowd out narrow ones in global mode.
        seed: for "random" and for the positions that "lasso" samples.

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
    layers = layers_by_path(model)
    weights = {path: layer.get_weights() for path, layer in layers.items() if path in analysis.layers}
    _check_finite(weights)
    members = CRITERIA[criterion](ScoringInput(model, layers, weights, analysis, batches, loss, seed))
    raw = _reduce(members, analysis, criterion, group_reduction)
    return {name: NORMALIZERS[normalizer](raw[group.units]) for name, group in analysis.groups.items()}


def _check_finite(weights: Mapping[str, list[npt.NDArray[np.float32]]]) -> None:
    for path, arrays in weights.items():
        if not all(np.isfinite(array).all() for array in arrays):
            raise CompressionError(
                f"expected finite weights to score; {path} holds NaN or infinity: train the model again"
            )


def _reduce(members: Sequence[Member], analysis: ChannelAnalysis, criterion: str, how: str) -> FloatVector:
    """(units,) one score per unit from what all members say."""
    counts = np.zeros(analysis.units, dtype=np.int64)
    for member in members:
        counts[member.units] += 1
    for name, group in analysis.groups.items():
        if criterion in _NEEDED and not counts[group.units].all():
            raise CompressionError(
                f"{criterion} needs {_NEEDED[criterion]}; group {name!r} has none: exclude it or choose another "
                "criterion"
            )
    return REDUCTIONS[how](members, counts)


def _sum(members: Sequence[Member], counts: npt.NDArray[np.int64]) -> FloatVector:
    total = np.zeros(len(counts))
    for member in members:
        total[member.units] += member.values
    return total


def _mean(members: Sequence[Member], counts: npt.NDArray[np.int64]) -> FloatVector:
    return np.asarray(_sum(members, counts) / np.maximum(counts, 1))


def _max(members: Sequence[Member], counts: npt.NDArray[np.int64]) -> FloatVector:
    total = np.zeros(len(counts))
    for member in members:
        total[member.units] = np.maximum(total[member.units], member.values)
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

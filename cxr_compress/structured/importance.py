"""How much each removable channel matters: one score per channel and group, higher means keep.

A criterion gives every filter a raw score; the scores of filters that are tied are summed, because they go together.
Raw scores grow with a layer's width and depth, so they are divided by the mean of their group: in global mode layers
then compete on how unequal their filters are, not on how large their weights happen to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.structured.analyze import layers_by_path
from cxr_compress.structured.channels import ChannelAnalysis

Scores = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class ScoringInput:
    """What a criterion may look at.

    Attributes:
        weights: by layer path, the arrays of `layer.get_weights()`.
        analysis: the channels to score.
        seed: for criteria that draw.
    """

    weights: Mapping[str, list[npt.NDArray[np.float32]]]
    analysis: ChannelAnalysis
    seed: int


def score_channels(
    model: keras.Model, analysis: ChannelAnalysis, *, criterion: str = "l1", normalizer: str = "mean", seed: int = 0
) -> Scores:
    """Score every removable channel of a model.

    Args:
        model: the model that `analysis` came from; it is only read.
        analysis: its channels.
        criterion: "l1", the sum of a filter's absolute kernel weights (Li 2016, section 3.1); "l2", their Euclidean
            norm; "random", uniform draws: the baseline that every report should show.
        normalizer: "mean" divides a group's scores by their mean, so that groups compare; "none" leaves them raw,
            which lets wide layers crowd out narrow ones in global mode.
        seed: for "random".

    Returns:
        By group, (channels,) float64; higher means keep.

    Raises:
        CompressionError: an unknown criterion or normalizer, or weights that are not finite.
    """
    for kind, value, known in (("criterion", criterion, CRITERIA), ("normalizer", normalizer, NORMALIZERS)):
        if value not in known:
            raise CompressionError(f"expected {kind} to be one of {', '.join(sorted(known))}; got {value!r}")
    weights = {path: layer.get_weights() for path, layer in layers_by_path(model).items() if path in analysis.layers}
    raw = CRITERIA[criterion](ScoringInput(weights, analysis, seed))
    if not np.isfinite(raw).all():
        raise CompressionError("expected finite weights to score; the model holds NaN or infinity: train it again")
    return {name: NORMALIZERS[normalizer](raw[group.units]) for name, group in analysis.groups.items()}


def _norm(order: int) -> Callable[[ScoringInput], npt.NDArray[np.float64]]:
    """A criterion: the norm of a filter's kernel. Biases are left out, as in Li 2016."""

    def criterion(given: ScoringInput) -> npt.NDArray[np.float64]:
        total = np.zeros(given.analysis.units)
        for path, layer in given.analysis.layers.items():
            for axis in layer.axes:
                kernel = given.weights[path][axis.weight]
                if axis.role == "produce" and kernel.ndim > 1:
                    others = tuple(number for number in range(kernel.ndim) if number != axis.axis)
                    np.add.at(total, axis.units, np.sum(np.abs(kernel.astype(np.float64)) ** order, axis=others))
        return np.asarray(total ** (1 / order))

    return criterion


def _random(given: ScoringInput) -> npt.NDArray[np.float64]:
    return np.random.default_rng(given.seed).random(given.analysis.units)


def _by_mean(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The scores over their mean; a group of dead filters scores zero throughout."""
    mean = scores.mean()
    return scores / mean if mean > 0 else np.zeros_like(scores)


CRITERIA: dict[str, Callable[[ScoringInput], npt.NDArray[np.float64]]] = {
    "l1": _norm(1),
    "l2": _norm(2),
    "random": _random,
}
NORMALIZERS: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "mean": _by_mean,
    "none": np.copy,
}

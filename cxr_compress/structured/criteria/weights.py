"""Criteria that look at the weights alone: seconds for any model, no data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import traits_of
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.cost import IntArray

FloatVector = npt.NDArray[np.float64]


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
    """What one layer has to say of some units.

    Attributes:
        units: the units, each at most once.
        values: one score per unit; higher means keep.
    """

    units: IntArray
    values: FloatVector

    @classmethod
    def of(cls, units: IntArray, values: FloatVector) -> Member:
        """A member whose channels may name a unit several times; those channels are added up."""
        unique, places = np.unique(units, return_inverse=True)
        total = np.zeros(len(unique))
        np.add.at(total, places.reshape(-1), values)
        return cls(unique, total)


Criterion = Callable[[ScoringInput], list[Member]]


def _filters(given: ScoringInput) -> Iterator[tuple[IntArray, FloatVector]]:
    """Units and (filters, weights) float64 of every kernel that makes channels. Biases are left out (Li 2016)."""
    for path, layer in given.analysis.layers.items():
        for axis in layer.axes:
            kernel = given.weights[path][axis.weight]
            if axis.role == "produce" and kernel.ndim > 1:
                rows = np.moveaxis(kernel, axis.axis, 0).reshape(kernel.shape[axis.axis], -1)
                yield axis.units, rows.astype(np.float64)


def norm(order: int) -> Criterion:
    """The norm of a filter's kernel.

    Source: Li et al. 2016 (arXiv 1608.08710), section 3.1.
    """

    def criterion(given: ScoringInput) -> list[Member]:
        return [Member.of(units, np.linalg.norm(rows, order, axis=1)) for units, rows in _filters(given)]

    return criterion


def geometric_median(given: ScoringInput) -> list[Member]:
    """Sum of a filter's distances to the other filters of its layer: near the middle means replaceable.

    Source: He et al. 2019, "Filter Pruning via Geometric Median" (arXiv 1811.00250), equation 6.
    """
    found = []
    for units, rows in _filters(given):
        squares = np.sum(rows**2, axis=1)
        distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0))
        # A filter's distance to itself is 0 in theory and rounding noise in the expanded square.
        np.fill_diagonal(distances, 0.0)
        found.append(Member.of(units, distances.sum(axis=1)))
    return found


def bn_scale(given: ScoringInput) -> list[Member]:
    """The absolute scale of every batch norm that the channels pass through.

    Source: Liu et al. 2017, "Network Slimming" (arXiv 1708.06519), section 3. It was meant for scales trained with an
    L1 penalty; without one it tells little.
    """
    found = []
    for path, layer in given.analysis.layers.items():
        norm_layer = given.layers[path]
        if traits_of(norm_layer, subclasses=True).moving_statistics and norm_layer.scale:
            # Gamma is the first of a batch norm's weights when it has one.
            axis = next(axis for axis in layer.axes if axis.weight == 0)
            found.append(Member.of(axis.units, np.abs(given.weights[path][0].astype(np.float64))))
    return found


def draw(given: ScoringInput) -> list[Member]:
    """Uniform draws: the baseline that every report should show."""
    units = np.arange(given.analysis.units, dtype=np.int32)
    return [Member(units, np.random.default_rng(given.seed).random(len(units)))]

"""Criteria that look at the weights alone: seconds for any model, no data."""

from __future__ import annotations

import numpy as np

from cxr_compress.structured.criteria.base import Member, ScoringInput, produced_kernels, register_criterion


@register_criterion("l1", help="sum of a filter's absolute weights")
def l1(scoring: ScoringInput) -> list[Member]:
    """The sum of the absolute weights of a filter's kernel.

    Source: Li et al. 2016 (arXiv 1608.08710), section 3.1.
    """
    return [Member.of(sets, np.abs(rows).sum(axis=1)) for sets, rows in produced_kernels(scoring)]


@register_criterion("l2", help="Euclidean norm of a filter's weights")
def l2(scoring: ScoringInput) -> list[Member]:
    """The Euclidean norm of a filter's kernel."""
    return [Member.of(sets, np.linalg.norm(rows, axis=1)) for sets, rows in produced_kernels(scoring)]


@register_criterion("geometric_median", help="distance to the other filters of the layer")
def geometric_median(scoring: ScoringInput) -> list[Member]:
    """Sum of a filter's distances to the other filters of its layer: near the middle means replaceable.

    Source: He et al. 2019, "Filter Pruning via Geometric Median" (arXiv 1811.00250), equation 6.
    """
    members = []
    for sets, rows in produced_kernels(scoring):
        squares = np.sum(rows**2, axis=1)
        distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0))
        # A filter's distance to itself is 0 in theory and rounding noise in the expanded square.
        np.fill_diagonal(distances, 0.0)
        members.append(Member.of(sets, distances.sum(axis=1)))
    return members


@register_criterion(
    "bn_scale",
    help="scale of the batch norms behind a filter",
    group_needs="a batch norm with a scale that its channels pass through",
)
def bn_scale(scoring: ScoringInput) -> list[Member]:
    """The absolute scale of every batch norm that the channels pass through.

    Source: Liu et al. 2017, "Network Slimming" (arXiv 1708.06519), section 3. It was meant for scales trained with an
    L1 penalty; without one it tells little.
    """
    from cxr_compress.models.keras_graph import traits_of

    members = []
    for path, slices in scoring.analysis.layers.items():
        layer = scoring.layers[path]
        if traits_of(layer, subclasses=True).moving_statistics and layer.scale:
            # Gamma is the first of a batch norm's weights when it has one.
            axis = next(axis for axis in slices.axes if axis.weight == 0)
            members.append(Member.of(axis.sets, np.abs(scoring.weights[path][0].astype(np.float64))))
    return members


@register_criterion("random", help="uniform draws, the baseline that every report should show")
def random(scoring: ScoringInput) -> list[Member]:
    """Uniform draws."""
    sets = np.arange(scoring.analysis.set_count, dtype=np.int32)
    return [Member(sets, np.random.default_rng(scoring.seed).random(len(sets)))]

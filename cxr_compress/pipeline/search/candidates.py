"""The points of a search: recipes that differ from the given one in budgets and little else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxr_compress.pipeline.search.spec import SearchSpec
from cxr_compress.recipe import Recipe


@dataclass(frozen=True)
class Candidate:
    """One point.

    Attributes:
        recipe: of the whole run.
        changes: what it changes in the recipe of the search, JSON-ready.
        macs: share of the MACs that may stay; None where they are not bounded.
        column: number of the combination of everything else: points of one column differ in `macs` alone.
    """

    recipe: Recipe
    changes: Mapping[str, Any]
    macs: float | None
    column: int


def grid(base: Recipe, spec: SearchSpec) -> list[Candidate]:
    """All points of the grid, column by column, the largest first: the sure ones are there when the search is stopped.

    Raises:
        CompressionError: a variant that is no recipe.
    """
    shares = sorted(spec.macs_grid, key=lambda share: 2.0 if share is None else share, reverse=True)
    return [candidate(base, spec, column, share) for column in range(len(_columns(spec))) for share in shares]


def candidate(base: Recipe, spec: SearchSpec, column: int, macs: float | None) -> Candidate:
    """One point of a column.

    Raises:
        CompressionError: a variant that is no recipe.
    """
    changes = {"target_macs": macs, **_columns(spec)[column]}
    if spec.max_bytes is not None:
        changes["target_bytes"] = spec.max_bytes
    if spec.max_latency_ms is not None:
        changes["target_latency_ms"] = spec.max_latency_ms
    return Candidate(base.with_values(**changes), changes, macs, column)


def _columns(spec: SearchSpec) -> list[dict[str, Any]]:
    """Everything but MACs, in all combinations."""
    shares: list[dict[str, Any]] = [{"weight_sparsity": share} for share in spec.weight_sparsity]
    return [{**zeros, **way} for zeros, way in itertools.product(shares or [{}], spec.ways)]

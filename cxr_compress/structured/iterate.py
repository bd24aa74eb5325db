"""Removing filters in several steps, scoring anew in between: what is left matters differently once others are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.analyze import analyze_channels
from cxr_compress.structured.budget import Budget
from cxr_compress.structured.cost import ModelCost
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.rebuild import remove_channels
from cxr_compress.structured.select import select_channels
from cxr_compress.structured.sensitivity_curves import Sensitivity

Scores = Mapping[str, npt.NDArray[np.float64]]
Scorer = Callable[[keras.Model, ChannelAnalysis], Scores]
Measurer = Callable[[keras.Model, ChannelAnalysis, Scores, int], Sensitivity]


def remove_iteratively(
    model: keras.Model,
    budget: Budget,
    score: Scorer,
    *,
    steps: int,
    exclude: Sequence[str] = (),
    allow_inexact: bool = False,
    measure: Measurer | None = None,
    between: Callable[[keras.Model, int], object] | None = None,
    cost_table: CostTable | None = None,
    **selection: Any,
) -> tuple[keras.Model, ChannelPlan, tuple[ChannelPlan, ...]]:
    """Pruned a model to a budget in several steps; `model` is left untouched.

    The bounds fall by the same factor from step to step. More steps cost a rebuild and a scoring each and help where
    scores depend on the other filters; with one step this is `select_channels` and `remove_channels`.

    Args:
        model: the starting model.
        budget: for the end; fractions are of the starting model.
        score: gives the scores of a model's channels, for example ``score_channels``.
        steps: how many.
        exclude: as `analyze_channels`.
        allow_inexact: as `analyze_channels`.
        measure: for scope="sensitivity": gives the sensitivity of a model, its analysis and scores in the step with
            this number, for example ``measure_sensitivity`` with batches; every step needs it anew.
        between: called with the thinner model and the number of the step, for example to re-estimate batch norms or to
            fine-tune in place before the next scoring.
        cost_table: measured costs of the starting model, as `select_channels`.
        selection: as `select_channels`; `max_removed_fraction` and `overrides` hold for the whole way.

    Returns:
        The pruned model, one plan from the starting model to it, and the plan of every step.

    Raises:
        BudgetError: a step's bounds cannot be reached.
        CompressionError: steps below 1.
    """
    if steps < 1:
        raise CompressionError(f"expected steps of 1 or more, got {steps}")
    first = analyze_channels(model, exclude=exclude, allow_inexact=allow_inexact)
    start = first.priced(cost_table or CostTable()).baseline
    selection["widths"] = {name: group.channels for name, group in first.groups.items()}
    pruned, plans = model, []
    for number in range(1, steps + 1):
        bounds = _bounds(budget, start, number / steps)
        now = analyze_channels(pruned, exclude=exclude, allow_inexact=allow_inexact)
        scores = score(pruned, now)
        sensitivity = measure(pruned, now, scores, number) if measure is not None else None
        plans.append(select_channels(now, scores, bounds, sensitivity=sensitivity, cost_table=cost_table, **selection))
        pruned = remove_channels(pruned, plans[-1])
        if between is not None:
            between(pruned, number)
    whole = plans[0]
    for later in plans[1:]:
        whole = whole.then(later)
    return pruned, whole, tuple(plans)


def _bounds(budget: Budget, start: ModelCost, share: float) -> Budget:
    """The absolute bounds after this share of the way, falling by equal factors."""
    ends, starts = budget.limits(start), start.to_dict()
    return Budget(**{name: _between(starts[name], end, share) for name, end in ends.items()}, absolute=True)


def _between(start: float, end: float, share: float) -> float:
    # The last step takes the bound itself: a power of 1.0 need not give it back exactly.
    if share == 1:
        return end
    bound = start * (min(end, start) / start) ** share
    return max(end, bound if isinstance(end, float) else round(bound))

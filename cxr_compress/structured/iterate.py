"""Removing filters in several steps, scoring anew in between: what is left matters differently once others are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.structured.analyze import analyze_channels
from cxr_compress.structured.channels import ChannelAnalysis
from cxr_compress.structured.cost import ModelCost
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.rebuild import remove_channels
from cxr_compress.structured.select import Budget, select_channels

Scorer = Callable[[keras.Model, ChannelAnalysis], Mapping[str, npt.NDArray[np.float64]]]


def remove_iteratively(
    model: keras.Model,
    budget: Budget,
    score: Scorer,
    *,
    steps: int,
    exclude: Sequence[str] = (),
    between: Callable[[keras.Model, int], object] | None = None,
    **selection: Any,
) -> tuple[keras.Model, ChannelPlan, tuple[ChannelPlan, ...]]:
    """Thin a model to a budget in several steps; `model` is left untouched.

    The bounds fall by the same factor from step to step. More steps cost a rebuild and a scoring each and help where
    scores depend on the other filters; with one step this is `select_channels` and `remove_channels`.

    Args:
        model: the starting model.
        budget: for the end; fractions are of the starting model.
        score: gives the scores of a model's channels, for example ``score_channels``.
        steps: how many.
        exclude: as `analyze_channels`.
        between: called with the thinner model and the number of the step, for example to re-estimate batch norms or to
            fine-tune in place before the next scoring.
        selection: as `select_channels`; `max_removed_fraction` holds for each step.

    Returns:
        The thin model, one plan from the starting model to it, and the plan of every step.

    Raises:
        BudgetError: a step's bounds cannot be reached.
        CompressionError: steps below 1.
    """
    if steps < 1:
        raise CompressionError(f"expected steps of 1 or more, got {steps}")
    analysis = analyze_channels(model, exclude=exclude)
    thin, plans = model, []
    for number in range(1, steps + 1):
        bounds = _bounds(budget, analysis.baseline, number / steps)
        now = analyze_channels(thin, exclude=exclude)
        plans.append(select_channels(now, score(thin, now), bounds, **selection))
        thin = remove_channels(thin, plans[-1])
        if between is not None:
            between(thin, number)
    whole = plans[0]
    for later in plans[1:]:
        whole = whole.then(later)
    return thin, whole, tuple(plans)


def _bounds(budget: Budget, start: ModelCost, share: float) -> Budget:
    """The absolute bounds after this share of the way, falling by equal factors."""
    ends = budget.limits(start)
    return Budget(**{name: _between(getattr(start, name), end, share) for name, end in ends.items()})


def _between(start: int, end: int, share: float) -> int:
    # The last step takes the bound itself: a power of 1.0 need not give it back exactly.
    return end if share == 1 else max(end, round(start * (min(end, start) / start) ** share))

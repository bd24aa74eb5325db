"""Remove filters: build the pruned model of a plan and fill it with the weights that stay, at once or step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path, rebuild_model, shared_layer
from cxr_compress.structured.analysis import ChannelAnalysis, LayerSlices, SizeSlice
from cxr_compress.structured.analyze import analyze_channels
from cxr_compress.structured.budget import Budget
from cxr_compress.structured.cost import BoolArray, ModelCost
from cxr_compress.structured.plan import ChannelPlan
from cxr_compress.structured.select import select_channels
from cxr_compress.structured.sensitivity_curves import Sensitivity

Scores = Mapping[str, npt.NDArray[np.float64]]
Scorer = Callable[[keras.Model, ChannelAnalysis], Scores]
Measurer = Callable[[keras.Model, ChannelAnalysis, Scores, int], Sensitivity]

_NOT_REBUILT = ("Lambda", "SpectralNormalization")


def remove_channels(model: keras.Model, plan: ChannelPlan, *, allow_inexact: bool = False) -> keras.Model:
    """A new plain model without the channels that a plan drops; `model` is left untouched.

    Layers that are left without channels, or that only such layers read, are not in it (see `wiring`).

    Layer names, trainable flags, regularizers and dtype policies stay. The result is not compiled and loads with
    `keras.models.load_model` and no custom objects but those that `model` itself needs.

    Args:
        model: the model that the plan was made for.
        plan: what stays.
        allow_inexact: as it was given to `analyze_channels`; a plan that knows it needs no flag.

    Raises:
        CompressionError: the plan was made for another model, or its predicted cost is not that of the result.
        UnsupportedLayerError: as `analyze_channels`, or Keras cannot rebuild the model from its own config.
    """
    analysis = replace(plan, allow_inexact=allow_inexact or plan.allow_inexact).on(model)
    keep = plan.keep_vector(analysis)
    pruned = _pruned_architecture(model, analysis, keep)
    _fill(pruned, model, analysis, keep)
    expected = analysis.cost_model.cost(keep).params
    if pruned.count_params() != expected:
        raise CompressionError(
            f"predicted {expected:,} params, rebuilt {pruned.count_params():,}: a layer rule is wrong; "
            "please report the model"
        )
    return pruned


def _pruned_architecture(model: keras.Model, analysis: ChannelAnalysis, keep: BoolArray) -> keras.Model:
    """The model's own config with smaller numbers, built anew.

    Raises:
        UnsupportedLayerError: Keras cannot do that: it says of which layer.
    """
    shared = shared_layer(model)
    if shared:
        raise UnsupportedLayerError(
            f"{shared} are one layer in two models, which Keras rebuilds as two: call a layer within one model only"
        )

    wiring = analysis.wiring
    fates = wiring.fates(wiring.settle(keep))

    def shrink(path: str, class_name: str, config: dict[str, Any]) -> None:
        for size in analysis.layers[path].sizes if path in analysis.layers else ():
            _set_size(config, size, keep)

    try:
        return rebuild_model(model, shrink, fates)
    except Exception as error:  # Keras raises nearly every type here; the cause is kept, and named in the line
        raise UnsupportedLayerError(_why_not_rebuilt(model, error)) from error


def _why_not_rebuilt(model: keras.Model, error: Exception) -> str:
    """One line that names the layers which Keras is known not to rebuild, if there are any."""
    kinds = {path: type(layer).__name__ for path, layer in layers_by_path(model).items()}
    named = ", ".join(f"{path} ({kind})" for path, kind in kinds.items() if kind in _NOT_REBUILT)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    because = f"its layers {named} cannot be made from their config" if named else reason
    return (
        f"Keras cannot rebuild {model.name!r}: {because}; use a standard layer in its place, or give a layer of your "
        "own a get_config that its class takes"
    )


def _set_size(config: dict[str, Any], size: SizeSlice, keep: BoolArray) -> None:
    key, rest = size.keys[0], size.keys[1:]
    config[str(key)] = _with_number(config[str(key)], rest, int(keep[size.sets].sum()))


def _with_number(value: Any, keys: tuple[str | int, ...], number: int) -> Any:
    """The value with another number at the place that the keys lead to; shapes in a config may be tuples."""
    if not keys:
        return number
    places = list(value)
    places[int(keys[0])] = _with_number(places[int(keys[0])], keys[1:], number)
    return type(value)(places)


def _fill(pruned: keras.Model, model: keras.Model, analysis: ChannelAnalysis, keep: BoolArray) -> None:
    """Copy every weight, sliced where the analysis says so."""
    sources = layers_by_path(model)
    for path, layer in layers_by_path(pruned).items():
        if layer.weights:
            weights = sources[path].get_weights()
            layer.set_weights(_sliced(weights, analysis.layers[path], keep) if path in analysis.layers else weights)
            # Normalization computes from numbers derived of its weights, which only this refreshes.
            layer.finalize_state()


def _sliced(weights: list[npt.NDArray[Any]], layer: LayerSlices, keep: BoolArray) -> list[npt.NDArray[Any]]:
    for axis in layer.axes:
        weights[axis.weight] = np.compress(keep[axis.sets], weights[axis.weight], axis=axis.axis)
    return weights


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
    """Prune a model to a budget in several steps, scoring anew in between; `model` is left untouched.

    What stays matters differently once other filters are gone.

    The bounds fall by the same factor from step to step. More steps cost a rebuild and a scoring each and help where
    scores depend on the other filters; with one step this is `select_channels` and `remove_channels`.

    Args:
        model: the starting model.
        budget: for the end; fractions are of the starting model.
        score: gives the scores of a model's channels, for example `score_channels`.
        steps: how many.
        exclude: as `analyze_channels`.
        allow_inexact: as `analyze_channels`.
        measure: for scope="sensitivity": gives the sensitivity of a model, its analysis and scores in the step with
            this number, for example `measure_sensitivity` with batches; every step needs it anew.
        between: called with the pruned model and the number of the step, for example to re-estimate batch norms or to
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
        plan = select_channels(now, scores, bounds, sensitivity=sensitivity, cost_table=cost_table, **selection)
        pruned = remove_channels(pruned, plan)
        plans.append(plan.named_as(first))
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

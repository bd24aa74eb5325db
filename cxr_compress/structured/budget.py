"""What the pruned model may cost, and why it cannot cost less where it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from cxr_compress.errors import BudgetError
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.cost import BoolArray, ModelCost

NEEDED = {
    "tflite_bytes": "measured file bytes: pass cost_table= with them (the pipeline takes one "
    "conversion of the original model; cxr_compress --target_bytes does so itself)",
    "latency_ms": "measured layer times: pass cost_table= with them (on the device, cxr_benchmark --layers=PACK.zip "
    "--output_file=table.json makes one; cxr_compress --latency_table=table.json takes it)",
}
_MOST_NAMED = 3
_WORTH_NAMING = 0.05
_INPUT = "is an input of the model"


@dataclass(frozen=True)
class Budget:
    """What the pruned model may cost at most; all bounds that are given hold.

    A float in (0, 1] is a fraction of the starting model, an int (or a float above 1) an absolute number. A latency
    below 1 ms is therefore a fraction: `Budget(latency_ms=0.8)` means 80 % of the starting model's latency; say
    `Budget(latency_ms=0.8, absolute=True)` for 0.8 ms.

    Attributes:
        macs: multiply-accumulates for one image.
        params: weights.
        tflite_bytes: bytes of the int8 file, metadata included; needs a table of measured costs.
        latency_ms: milliseconds per image on the measured machine; needs a table of measured costs.
        absolute: take every number as it stands, however small.
    """

    macs: float | None = None
    params: float | None = None
    tflite_bytes: float | None = None
    latency_ms: float | None = None
    absolute: bool = False

    def given(self) -> dict[str, float]:
        """What is bounded, as it was given."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "absolute"}

    def limits(self, baseline: ModelCost) -> dict[str, float]:
        """The absolute limit of each cost that is bounded: whole numbers, but for milliseconds.

        Raises:
            BudgetError: nothing is bounded, a bound is not positive, or it needs measured costs or MACs that are not
                known.
        """
        bounds = self.given()
        if not bounds:
            raise BudgetError("expected a budget on macs, params, tflite_bytes or latency_ms, got none")
        whole = baseline.to_dict()
        for name in bounds:
            if name == "macs" and baseline.macs is None:
                raise BudgetError(_uncounted(baseline.uncounted))
            if name not in whole:
                raise BudgetError(f"a budget on {name} needs {NEEDED[name]}")
        return {name: self._limit(name, value, whole[name]) for name, value in bounds.items()}

    def settings(self) -> dict[str, float]:
        """The budget for the settings of a plan."""
        return self.given() | ({"absolute": True} if self.absolute else {})

    def _limit(self, name: str, value: float, whole: float) -> float:
        if not value > 0:
            raise BudgetError(
                f"expected a budget on {name} above 0: a fraction up to 1.0 or a whole number; got {value}"
            )
        limit = value * whole if isinstance(value, float) and value <= 1 and not self.absolute else value
        return float(limit) if name == "latency_ms" else int(limit)


def _uncounted(layers: Sequence[str]) -> str:
    """Why there is no budget on MACs, and what to bound instead."""
    named = ", ".join(layers[:_MOST_NAMED]) or "a layer"
    more = f" and {len(layers) - _MOST_NAMED} more" if len(layers) > _MOST_NAMED else ""
    return (
        f"the MACs of this model are not known: those of {named}{more} are not counted; bound params or tflite_bytes "
        "(--target_params, --target_bytes) instead of macs, or register a rule for such layers that says its uses"
    )


def unreachable(
    analysis: ChannelAnalysis, least: BoolArray, missed: Mapping[str, float], constraints: Mapping[str, object]
) -> BudgetError:
    """The error that says what the least reachable cost is, and whether protected groups or constraints hold it up.

    Args:
        analysis: of the model, priced by the table that the budget is held against.
        least: (set_count,) what is kept when every group is as pruned as the constraints allow.
        missed: by cost, the limit that even this exceeds.
        constraints: by name, as they were set.
    """
    reachable = analysis.cost_model.cost(least).to_dict()
    parts = "; ".join(
        f"at most {_number(limit)} {name}, reachable are {_number(reachable[name])}" for name, limit in missed.items()
    )
    worst = max(missed, key=lambda name: reachable[name] / missed[name])
    cause = _protected_cause(analysis, least, worst)
    held = _held_by_constraints(analysis, least, worst, constraints)
    return BudgetError(f"the budget cannot be reached: {parts} ({cause}; {held}): raise the budget or loosen those")


def _protected_cause(analysis: ChannelAnalysis, least: BoolArray, name: str) -> str:
    """How much of what is left of a cost hangs on protected groups, and on which most, with their reasons.

    A group's share is what would go with all its channels. Shares overlap where one layer reads one protected group and
    makes another: they may add up to more than the whole.
    """
    # Nothing but another input has fewer channels: naming the input would help nobody.
    protected = [group for group, reason in analysis.protected.items() if reason != _INPUT]
    together = _share(analysis, least, name, protected)
    if together < _WORTH_NAMING:
        return "no protected group is the cause"
    shares = {group: _share(analysis, least, name, [group]) for group in protected}
    largest = sorted(shares, key=lambda group: -shares[group])[:_MOST_NAMED]
    named = ", ".join(
        f"{group!r} {shares[group]:.0%} ({analysis.protected[group]})" for group in largest if shares[group]
    )
    return f"protected groups hold {together:.0%} of the {name} left, most of it {named}"


def _share(analysis: ChannelAnalysis, least: BoolArray, name: str, groups: Sequence[str]) -> float:
    """The share of a cost that would go with all channels of some protected groups."""
    without = least.copy()
    for group in groups:
        without[analysis.protected_sets[group]] = False
    whole, rest = (analysis.cost_model.cost(keep).to_dict()[name] for keep in (least, without))
    return 1 - rest / whole


def _held_by_constraints(
    analysis: ChannelAnalysis, least: BoolArray, name: str, constraints: Mapping[str, object]
) -> str:
    """What the constraints hold up: the cost with one channel left in every group that may shrink."""
    bare = least.copy()
    for group in analysis.groups.values():
        bare[group.sets] = False
        bare[group.start] = True
    reachable, loosest = (analysis.cost_model.cost(keep).to_dict()[name] for keep in (least, bare))
    as_set = ", ".join(f"{key}={value}" for key, value in constraints.items() if value)
    if loosest >= reachable:
        return f"{as_set} hold up nothing"
    return f"without {as_set} {_number(loosest)} would be"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

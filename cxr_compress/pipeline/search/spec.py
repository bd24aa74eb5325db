"""What is searched: the goal, the budgets that are tried, and what a model must keep."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.pipeline.search.score import CandidateScore
from cxr_compress.recipe import Recipe

GOALS = ("smallest", "best_auroc")
_LARGEST_MACS, _SMALLEST_MACS, _GRID_POINTS = 0.5, 0.05, 7
# At a given size the open question is where to cut.
_WAYS_TO_CUT: tuple[Mapping[str, Any], ...] = ({"scope": "global"}, {"scope": "local"}, {"scope": "sensitivity"})


def geometric(first: float, last: float, points: int) -> tuple[float, ...]:
    """Budgets from `first` to `last`, each the same share of the one before: what a cut costs goes by shares."""
    ratio = (last / first) ** (1 / (points - 1))
    return tuple(float(f"{first * ratio**index:.3g}") for index in range(points))


@dataclass(frozen=True)
class SearchSpec:
    """One search over budgets: every choice of it is made on dev.

    The grid is the product of `macs`, `weight_sparsity` and `variants`. All of its points are tried, because what a
    model keeps need not fall with its size: a point that fails says nothing certain of a smaller one.

    Attributes:
        goal: "smallest": the smallest file that keeps the bounds below; "best_auroc": the best AUROC within
            `max_bytes` and `max_latency_ms`.
        macs: shares of the MACs that may stay, in (0, 1], or None for no bound of that kind. None for the whole: seven
            from 0.5 to 0.05, each 0.68 of the one before; with "best_auroc" no bound, `max_bytes` is one.
        weight_sparsity: shares of the remaining weights to zero; empty for that of the recipe. Zeros count in the
            deflated size alone, which decides between files of equal size.
        variants: further changes of the recipe, each tried at every budget. None for none with "smallest", and the
            three scopes with "best_auroc".
        max_auroc_drop: AUROC that may be lost to the original float model, as measured.
        margin: of non-inferiority: the one-sided 97.5 % upper bound of that loss (paired bootstrap over patients) must
            lie below it; None to do without. A small dev set may be unable to show it for any model.
        max_loss_rise: by which share of itself the dev loss may rise; None for no bound. On dev images that nearly
            every model ranks right this bounds more than the AUROC: a rise of a quarter once meant 0.017 on test.
        max_logit_distance: how far logits may lie from those of the original model, root mean square in standard
            deviations of the latter; None for no bound. Both catch degradation that the AUROC of a few images hides.
        max_bytes: of the file; None for no bound.
        max_latency_ms: per image; None for no bound.
        allowance: after the cheap recovery the bounds on quality count this many times over, because the full one
            will make up for a part: more keeps more candidates in play, and costs full recoveries that fail.
        cheap_epochs: epochs of each training in the cheap recovery, at most.
        refinements: further budgets, tried between the best that passes and the next smaller one that fails.
        finalists: candidates that are recovered in full; more, one by one, only while none of them passes.
    """

    goal: str = "smallest"
    macs: tuple[float | None, ...] | None = None
    weight_sparsity: tuple[float, ...] = ()
    variants: tuple[Mapping[str, Any], ...] | None = None
    max_auroc_drop: float = 0.005
    margin: float | None = 0.01
    max_loss_rise: float | None = 0.2
    max_logit_distance: float | None = 0.5
    max_bytes: int | None = None
    max_latency_ms: float | None = None
    allowance: float = 2.0
    cheap_epochs: int = 1
    refinements: int = 2
    finalists: int = 3

    def __post_init__(self) -> None:
        """Check what would else show after hours.

        Raises:
            CompressionError: a value outside its range, or a goal without its bound.
        """
        _require(self.goal in GOALS, "goal", f"one of {', '.join(GOALS)}", repr(self.goal))
        for share in self.macs_grid:
            _require(share is None or 0 < share <= 1, "macs", "shares in (0, 1]", share)
        for share in self.weight_sparsity:
            _require(0 <= share < 1, "weight_sparsity", "shares in [0, 1)", share)
        for name, least in (("cheap_epochs", 0), ("refinements", 0), ("finalists", 1), ("allowance", 1)):
            _require(getattr(self, name) >= least, name, f"{least} or more", getattr(self, name))
        _require(self.max_auroc_drop >= 0, "max_auroc_drop", "0 or more", self.max_auroc_drop)
        for name in ("margin", "max_loss_rise", "max_logit_distance", "max_bytes", "max_latency_ms"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0, or None for no bound", value)
        bounded = self.goal == "smallest" or self.max_bytes is not None or self.max_latency_ms is not None
        _require(bounded, "max_bytes or max_latency_ms", "given with the goal best_auroc", "neither")
        _require(bool(self.macs_grid) and bool(self.ways), "the grid", "at least one point", "none")

    @property
    def macs_grid(self) -> tuple[float | None, ...]:
        """The shares of MACs on the grid."""
        if self.macs is not None:
            return self.macs
        return geometric(_LARGEST_MACS, _SMALLEST_MACS, _GRID_POINTS) if self.goal == "smallest" else (None,)

    @property
    def ways(self) -> tuple[Mapping[str, Any], ...]:
        """The changes of the recipe besides budgets."""
        if self.variants is not None:
            return self.variants
        return ({},) if self.goal == "smallest" else _WAYS_TO_CUT

    @property
    def step(self) -> float:
        """What the smallest budget of the grid is of the one before it; where there is one only, half."""
        shares = sorted(share for share in self.macs_grid if share is not None)
        return shares[0] / shares[1] if len(shares) > 1 and shares[0] < shares[1] else 0.5


def next_budget(passed: Mapping[float, bool], step: float) -> float | None:
    """The budget to try next: between the best that passes and the next smaller one that fails, by geometric mean.

    Where nothing smaller was tried, a step below the best; where nothing passes, between the largest and the original
    model, which keeps everything.

    Args:
        passed: share of the MACs that was tried -> whether it passed.
        step: see `SearchSpec.step`.

    Returns:
        A share in (0, 1), to three digits; None where it was tried already.
    """
    best = min((share for share, good in passed.items() if good), default=1.0)
    smaller = [share for share in passed if share < best]
    found = math.sqrt(best * max(smaller)) if smaller else best * step
    found = float(f"{found:.3g}")
    return None if found in passed or found >= 1 else found


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise CompressionError(f"expected {name} of a search to be {expected}; got {value}")


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
    return Candidate(changed(base, changes), changes, macs, column)


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with some fields changed, checked as one that comes from a file.

    Raises:
        CompressionError: an unknown field, or a value outside its range.
    """
    return Recipe.from_json(json.dumps({**recipe.to_dict(), **changes}))


def _columns(spec: SearchSpec) -> list[dict[str, Any]]:
    """Everything but MACs, in all combinations."""
    shares: list[dict[str, Any]] = [{"weight_sparsity": share} for share in spec.weight_sparsity]
    return [{**zeros, **way} for zeros, way in itertools.product(shares or [{}], spec.ways)]


# A loss near 0 doubles by a rounding error: rises below this never count.
_SMALL_LOSS = 0.005
# AUROCs of a small dev set that agree to this are equal; the loss, which sees every image, then decides.
_AUROC_DIGITS = 3


@dataclass(frozen=True)
class Bound:
    """One thing that a candidate must keep.

    Attributes:
        name: as a user reads it.
        value: what the candidate has; nan where it could not be measured.
        limit: what it may have.
    """

    name: str
    value: float
    limit: float

    @property
    def kept(self) -> bool:
        """Whether the value is within the limit; what could not be measured is not."""
        return self.value <= self.limit

    @property
    def excess(self) -> float:
        """The value in units of the limit: above 1 it is broken."""
        if math.isnan(self.value):
            return math.inf
        if self.limit == 0:
            return 0.0 if self.value <= 0 else math.inf
        return self.value / self.limit

    def __str__(self) -> str:
        digits = ",.0f" if self.limit >= 1000 else ".4f"  # noqa: PLR2004 - bytes, or shares and distances
        return f"{self.name} {self.value:{digits}}, allowed {self.limit:{digits}}"


def bounds_of(score: CandidateScore, original: CandidateScore, spec: SearchSpec, *, full: bool) -> list[Bound]:
    """Everything that a candidate must keep, with what it has.

    Args:
        score: of the candidate.
        original: of the original float model.
        spec: the limits. With the goal "best_auroc" size and time alone are bounded.
        full: after the full recovery; before it the limits on quality count `allowance` times over, and
            non-inferiority is not asked for.
    """
    found = []
    if spec.goal == "smallest":
        times = 1.0 if full else spec.allowance
        found.append(Bound("AUROC drop", score.auroc_drop, spec.max_auroc_drop * times))
        if full and spec.margin is not None:
            high = math.nan if score.auroc_drop_high is None else score.auroc_drop_high
            # Strictly below, as non-inferiority is defined.
            found.append(Bound("upper bound of the AUROC drop", high, math.nextafter(spec.margin, 0)))
        if spec.max_loss_rise is not None:
            rise = max(spec.max_loss_rise * original.loss, _SMALL_LOSS) * times
            found.append(Bound("rise of the loss", score.loss - original.loss, rise))
        if spec.max_logit_distance is not None:
            found.append(Bound("distance of the logits", score.logit_distance, spec.max_logit_distance * times))
    if spec.max_bytes is not None:
        found.append(Bound("bytes", score.tflite_bytes, spec.max_bytes))
    if spec.max_latency_ms is not None and score.latency_ms is not None:
        found.append(Bound("milliseconds", score.latency_ms, spec.max_latency_ms))
    return found


def worst_of(bounds: list[Bound]) -> Bound:
    """The bound that is broken most, or is nearest to it."""
    return max(bounds, key=lambda bound: bound.excess)


def keeps(bounds: list[Bound]) -> bool:
    """Whether all are kept."""
    return all(bound.kept for bound in bounds)


def rank(score: CandidateScore, goal: str) -> tuple[float, ...]:
    """Lower is better: by size, or by AUROC where the size is given."""
    deflated = math.inf if score.deflated_bytes is None else score.deflated_bytes
    size = (score.tflite_bytes, deflated, math.inf if score.macs is None else score.macs)
    if goal == "smallest":
        return size
    return (-round(score.auroc, _AUROC_DIGITS), score.loss, score.logit_distance, *size)

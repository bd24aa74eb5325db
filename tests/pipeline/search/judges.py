"""A runner whose models are formulas: what the search does is seen, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cxr_compress.errors import BudgetError
from cxr_compress.pipeline.search import CandidateScore
from cxr_compress.recipe import Recipe

ORIGINAL_BYTES, ORIGINAL_MACS = 7_000_000, 1_000_000
ORIGINAL = CandidateScore(
    0.95, 0.93, 0.97, 0.0, 0.0, loss=0.2, logit_distance=0.0, tflite_bytes=28_000_000, macs=ORIGINAL_MACS
)

# Share of the MACs that stays -> AUROC lost after the full recovery.
Loss = Callable[[float], float]


def steep(macs: float) -> float:
    """Nothing down to a fifth of the MACs, then ever more: 0.005 is lost at 0.15."""
    return max(0.0, 0.2 - macs) / 10


@dataclass
class FormulaRunner:
    """Attributes: lost, the AUROC that is lost; smallest, below which nothing can be built; calls, in their order."""

    lost: Loss = steep
    smallest: float = 0.0
    cheap_costs: float = 1.0
    calls: list[tuple[str, float | None]] = field(default_factory=list)
    killed_at: int | None = None

    def original(self) -> Mapping[str, CandidateScore]:
        self._note("original", None)
        return {"fp32": ORIGINAL, "int8": replace(ORIGINAL, tflite_bytes=ORIGINAL_BYTES)}

    def judge_cheap(self, recipe: Recipe, *, epochs: int) -> CandidateScore:
        self._note("cheap", recipe.removal.budget.macs)
        return self.score(recipe, self.cheap_costs)

    def recover_full(self, recipe: Recipe) -> CandidateScore:
        self._note("full", recipe.removal.budget.macs)
        return self.score(recipe)

    def score_test(self, recipe: Recipe) -> dict[str, Any]:
        self._note("test", recipe.removal.budget.macs)
        return {"rows": [], "of": recipe.removal.budget.macs}

    def score(self, recipe: Recipe, times: float = 1.0) -> CandidateScore:
        macs = recipe.removal.budget.macs if recipe.removal.budget.macs is not None else 0.6
        if macs < self.smallest:
            raise BudgetError(f"reachable are {self.smallest}, asked for {macs}")
        drop = self.lost(macs) * times
        return CandidateScore(
            auroc=ORIGINAL.auroc - drop,
            auroc_low=ORIGINAL.auroc - drop - 0.01,
            auroc_high=ORIGINAL.auroc - drop + 0.01,
            auroc_drop=drop,
            auroc_drop_high=drop + 0.002,
            loss=ORIGINAL.loss + drop,
            logit_distance=10 * drop,
            tflite_bytes=round(ORIGINAL_BYTES * macs),
            deflated_bytes=round(ORIGINAL_BYTES * macs * (1 - recipe.sparsity.fraction)),
            macs=round(ORIGINAL_MACS * macs),
            seconds=1.0,
        )

    def of(self, what: str) -> list[float | None]:
        """The budgets of the calls of one kind."""
        return [macs for name, macs in self.calls if name == what]

    def _note(self, what: str, macs: float | None) -> None:
        if self.killed_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append((what, macs))

"""What a search needs from a run: two ways to judge on dev, and one to score on test."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from cxr_compress.pipeline.search.score import CandidateScore
from cxr_compress.recipe import Recipe

UNCUT = "fp32"
_TRAININGS = ("recovery_epochs", "sparsity_epochs", "finetune_epochs", "qat_epochs")


class DevJudge(Protocol):
    """Judges candidates on dev films alone.

    Every method may be called again with the same arguments after a kill, and then gives the same; what it keeps on
    the way in a folder of the candidate (`folder_name`) is its own. Both recoveries of one recipe may share that
    folder: filters go the same way, whatever the epochs.
    """

    def uncut(self) -> Mapping[str, CandidateScore]:
        """The reference points by name: "fp32", the uncut float model, and others such as "int8", its int8 twin."""

    def judge_cheap(self, recipe: Recipe, *, epochs: int) -> CandidateScore:
        """A candidate after a short recovery (`shortened`).

        Raises:
            BudgetError: the budget cannot be reached; the search notes why and goes on.
        """

    def recover_full(self, recipe: Recipe) -> CandidateScore:
        """A candidate after the whole recipe, judged by the file that would ship.

        Raises:
            BudgetError: as `judge_cheap`.
        """


class Runner(DevJudge, Protocol):
    """A whole run: judges on dev, and scores one finished model on test."""

    def score_test(self, recipe: Recipe) -> dict[str, Any]:
        """The report of the one candidate that was chosen; nothing else of a search may look at test films."""


@dataclasses.dataclass(frozen=True)
class DevOnly:
    """What the choosing part of a search is given of a runner: it has no way to the test films."""

    uncut: Any
    judge_cheap: Any
    recover_full: Any

    @classmethod
    def of(cls, runner: DevJudge) -> DevOnly:
        """The three methods of a runner, and no more."""
        return cls(runner.uncut, runner.judge_cheap, runner.recover_full)


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The same recipe with at most `epochs` epochs in every training after the removal, and without QAT.

    Where the recipe zeroes weights or draws them anew, that training keeps one epoch: it cannot do without.
    """
    changes = {flag: min(recipe.value(flag), epochs) for flag in _TRAININGS}
    if recipe.sparsity.zeroes_weights:
        changes["sparsity_epochs"] = max(changes["sparsity_epochs"], 1)
    if recipe.recovery.from_scratch:
        changes["recovery_epochs"] = max(changes["recovery_epochs"], 1)
    changes["qat_epochs"] = max(changes["qat_epochs"], 1)
    return recipe.with_values(**changes, qat="never")


def folder_name(recipe: Recipe) -> str:
    """A folder for all that is made of one candidate: its name, and a hash of the rest of its recipe."""
    return f"{recipe.name}-{recipe_hash(recipe)[:12]}"


def recipe_hash(recipe: Recipe) -> str:
    """The hash of all choices of a recipe."""
    # Not sorted inside: the order of `overrides` is one of them.
    return hashlib.sha256(json.dumps(recipe.to_dict()).encode()).hexdigest()

"""What a loss of AUROC shows, one verdict for each of several losses.

A verdict is one of `NOT_INFERIOR` (a loss of the margin or more is ruled out), `WORSE` (a loss is shown, and one of the
margin is not ruled out) and `UNDECIDED` (the images are too few to tell; never taken for good news). Each counts after
Holm's adjustment for how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.evaluate.finding import or_none
from cxr_compress.metrics import LEVEL, Loss, holm

NOT_INFERIOR, WORSE, UNDECIDED = "not inferior", "worse", "not enough images"


@dataclass(frozen=True)
class Judged:
    """A loss of AUROC and what it shows.

    Attributes:
        loss: of the reference minus that of the candidate.
        margin: what it may be.
        tests: in how many this was one.
        shown_small: adjusted chance of so small a loss if the true one were the margin.
        shown_worse: adjusted chance of so large a loss if there were none.
        reason: why it cannot be decided whatever these say; "" where it can.
    """

    loss: Loss
    margin: float
    tests: int
    shown_small: float
    shown_worse: float
    reason: str = ""

    @property
    def verdict(self) -> str:
        """One of the three of this module."""
        if self.reason:
            return UNDECIDED
        if self.shown_small <= LEVEL:
            return NOT_INFERIOR
        return WORSE if self.shown_worse <= LEVEL else UNDECIDED

    @property
    def level(self) -> float:
        """The strictest level that Holm may ask for, at which power and numbers of images are given."""
        return LEVEL / self.tests

    @property
    def more_positives(self) -> int | None:
        """How many more images of the rarer class would probably tell; None where nobody knows, or all is said."""
        return self.loss.more_needed(self.margin, self.level) if self.verdict == UNDECIDED else None

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        return {
            "verdict": self.verdict,
            "margin": self.margin,
            "p_not_inferior": self.shown_small,
            "p_worse": self.shown_worse,
            "adjusted": f"Holm, {self.tests} tests; shown at or below {LEVEL:g}",
            "power_if_equal": or_none(self.loss.power(self.margin, self.level)),
            "more_of_the_rarer_class": self.more_positives,
            "reason": self.reason,
        }


def judge(losses: Sequence[Loss], margin: float, reasons: Sequence[str]) -> list[Judged]:
    """The verdicts on several losses, adjusted for all of those that can be decided.

    Args:
        losses: of AUROC.
        margin: what each may be.
        reasons: why one cannot be decided, whatever it is; "" where it can.
    """
    open_ones = [index for index, reason in enumerate(reasons) if not reason]
    small = holm([losses[index].chance_if(margin, so_small=True) for index in open_ones])
    large = holm([losses[index].chance_if(0.0, so_small=False) for index in open_ones])
    adjusted = dict(zip(open_ones, zip(small, large, strict=True), strict=True))
    return [
        Judged(loss, margin, max(len(open_ones), 1), *adjusted.get(index, (1.0, 1.0)), reasons[index])
        for index, loss in enumerate(losses)
    ]

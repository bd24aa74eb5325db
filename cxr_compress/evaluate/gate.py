"""Whether a compressed model may stand in for the one it came from: bounds on what it may lose, decided beforehand."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from cxr_compress.evaluate.compare import Difference
from cxr_compress.metrics import Interval

_CHANCE = 0.5
_ONE_SIDED = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Gate:
    """The verdict on one candidate.

    Attributes:
        loss: AUROC, or balanced accuracy, of the reference minus that of the candidate.
        upper_bound: the one-sided 97.5 % bound of that loss, from resampled patients in pairs.
        max_loss: what `loss` may be at most.
        margin: what `upper_bound` must stay below.
        power: how often a candidate that is truly as good as its reference passes on a test set like this one; a low
            value says that the films are too few to tell.
    """

    loss: float
    upper_bound: float
    max_loss: float
    margin: float
    power: float

    @property
    def small_loss(self) -> bool:
        """Whether the loss, as measured, is small enough."""
        return self.loss <= self.max_loss

    @property
    def non_inferior(self) -> bool:
        """Whether a loss of the margin or more is ruled out."""
        return self.upper_bound < self.margin

    @property
    def holds(self) -> bool:
        """Both."""
        return self.small_loss and self.non_inferior

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, verdicts included."""
        return {
            **asdict(self),
            "small_loss": self.small_loss,
            "non_inferior": self.non_inferior,
            "holds": self.holds,
        }


def judge_difference(
    difference: Difference, *, max_loss: float, margin: float, reference: Interval | None = None
) -> dict[str, Any]:
    """The verdict on a candidate, JSON-ready: `Gate.to_dict` of the mean AUROC.

    Of classes that exclude one another the balanced accuracy is judged by the same bounds beside the mean one-vs-rest
    AUROC ("balanced_accuracy"), and the gate "holds" where both do: an AUROC does not see which class is predicted.

    Args:
        difference: candidate minus reference, on the same films.
        max_loss: as `judge_loss`, like `margin`.
        margin: see there.
        reference: the mean AUROC of the reference. Where its interval reaches down to 0.5 nothing can be lost, so
            nothing is shown: the gate does not hold, and says why ("reason").
    """
    found = judge_loss(difference.mean_auroc, max_loss=max_loss, margin=margin)
    verdict: dict[str, Any] = {**found.to_dict(), "reason": _no_reference(reference)}
    if difference.balanced_accuracy is not None:
        other = judge_loss(difference.balanced_accuracy, max_loss=max_loss, margin=margin)
        verdict |= {"balanced_accuracy": other.to_dict(), "holds": found.holds and other.holds}
    return {**verdict, "holds": verdict["holds"] and not verdict["reason"]}


def _no_reference(reference: Interval | None) -> str:
    """Why a reference is none to compare with; "" where nothing speaks against it."""
    if reference is None or math.isnan(reference.low) or reference.low > _CHANCE:
        return ""
    return (
        f"the original is no better than chance here (AUROC {reference.value:.3f} [{reference.low:.3f}, "
        f"{reference.high:.3f}]), so no loss can be measured against it"
    )


def judge_loss(difference: Interval, *, max_loss: float, margin: float) -> Gate:
    """Judge the difference of two AUROCs, or of two balanced accuracies, measured on the same films.

    Args:
        difference: candidate minus reference with its paired 95 % interval, whose lower end is the one-sided 97.5 %
            bound of the loss.
        max_loss: what may be lost, as measured.
        margin: what may be lost at most, given the doubt.

    Source: ICH E9, section 3.3.2 (non-inferiority); the power is that of a normal difference with the spread that the
    interval shows.
    """
    spread = (difference.high - difference.low) / (2 * _ONE_SIDED)
    if math.isnan(spread):
        power = math.nan
    elif spread <= 0:
        power = 1.0
    else:
        power = NormalDist().cdf(margin / spread - _ONE_SIDED)
    return Gate(-difference.value, -difference.low, max_loss, margin, power)

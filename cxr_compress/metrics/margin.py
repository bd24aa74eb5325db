"""Is a loss shown to be small, shown to be there, or are the images too few to tell: one-sided tests, Holm, power.

A loss is measured on pairs (two models on the same images), its standard error comes from resampled patients, and it
is judged by Student's distribution; `experiments/comparison_statistics.py` shows how well that does with few positives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cxr_compress.metrics.bootstrap import normal_of, student_of

LEVEL = 0.025  # of one side: 95 % two-sided, as for every interval here
WANTED_POWER = 0.8
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Loss:
    """A measured loss and how sure it is.

    Attributes:
        value: reference minus candidate; above 0 the candidate is worse.
        spread: its standard error; 0 where no resampled set differs, nan where it is undefined.
        images: of the rarer class, which decide how sure a loss is.
        patients: whose they are; how well the spread itself is known.
        same: the two models order all images alike, so that nothing can be lost on any others either.
    """

    value: float
    spread: float
    images: int
    patients: int
    same: bool = False

    @classmethod
    def of(cls, value: float, drawn: NDArray[np.float64], images: int, patients: int, *, same: bool = False) -> Loss:
        """The loss of a measurement and of the same on resampled patients (samples,); nan ones are left out."""
        defined = drawn[~np.isnan(drawn)]
        enough = not math.isnan(value) and 2 * len(defined) >= len(drawn) and len(defined) > 1 and patients > 1
        # Resampled sets of m patients spread as the sum over m does, not as its estimate over m - 1.
        spread = float(defined.std(ddof=1)) * math.sqrt(patients / (patients - 1)) if enough else math.nan
        return cls(value, spread, images, patients, same)

    def chance_if(self, true_loss: float, *, so_small: bool) -> float:
        """The chance of so small (or so large) a loss where the true one is `true_loss`: a p-value.

        1 where nothing is known. Where no resampled set differs though the models do, an error of 0 would promise too
        much: then it is the chance that none of the rarer class would show a loss that each has with the chance
        `true_loss`.
        """
        if math.isnan(self.value) or math.isnan(self.spread):
            return 1.0
        if self.spread > 0:
            chance = _NORMAL.cdf(normal_of((self.value - true_loss) / self.spread, self.patients - 1))
            return chance if so_small else 1 - chance
        beyond = self.value < true_loss if so_small else self.value > true_loss
        if not beyond:
            return 1.0
        if self.same or not so_small:
            return 0.0
        return float((1 - min(true_loss, 1.0)) ** self.patients)

    def power(self, margin: float, level: float = LEVEL) -> float:
        """How often a candidate that is truly as good as its reference is shown to lose less than the margin."""
        if self.patients <= 1:
            return math.nan
        return power_of(self.spread, margin, student_of(_NORMAL.inv_cdf(1 - level), self.patients - 1))

    def more_needed(self, margin: float, level: float = LEVEL) -> int | None:
        """How many more images of the rarer class, and as many times more of the other, would probably tell.

        The fewest that show with 80 % power that the loss is below the margin, or that there is one, if the true loss
        is the one measured here (none, where the candidate measured better). None where nothing is known.
        """
        if math.isnan(self.value) or math.isnan(self.spread) or not self.images:
            return None
        if self.spread <= 0:
            return max(0, math.ceil(math.log(level) / math.log1p(-margin)) - self.patients) if margin < 1 else 0
        true = max(self.value, 0.0)
        distance = max(margin - true, true)  # to the nearer of the two proofs
        wanted = distance / (_NORMAL.inv_cdf(1 - level) + _NORMAL.inv_cdf(WANTED_POWER))
        # The error falls with the root of the number of images.
        return max(0, math.ceil(self.images * ((self.spread / wanted) ** 2 - 1)))


def power_of(spread: float, margin: float, critical: float = _NORMAL.inv_cdf(1 - LEVEL)) -> float:
    """How often a difference that is truly 0 is measured so low that the margin is `critical` spreads or more above it.

    Source: the power of a one-sided test of a normal difference.
    """
    if math.isnan(spread):
        return math.nan
    return 1.0 if spread <= 0 else _NORMAL.cdf(margin / spread - critical)


def holm(chances: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are: compared with a level, the chance of any false proof is at most that.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(chances)), key=chances.__getitem__)
    adjusted, largest = [1.0] * len(chances), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[index]))
        adjusted[index] = largest
    return adjusted

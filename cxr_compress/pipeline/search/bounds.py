"""Whether a candidate keeps what it must, how far off it is, and which of two is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cxr_compress.pipeline.search.score import CandidateScore
from cxr_compress.pipeline.search.spec import SearchSpec

# A loss near 0 doubles by a rounding error: rises below this never count.
_SMALL_LOSS = 0.005
# AUROCs of a small dev set that agree to this are equal; the loss, which sees every film, then decides.
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


def bounds_of(score: CandidateScore, uncut: CandidateScore, spec: SearchSpec, *, full: bool) -> list[Bound]:
    """Everything that a candidate must keep, with what it has.

    Args:
        score: of the candidate.
        uncut: of the uncut float model.
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
            rise = max(spec.max_loss_rise * uncut.loss, _SMALL_LOSS) * times
            found.append(Bound("rise of the loss", score.loss - uncut.loss, rise))
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

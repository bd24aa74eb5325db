"""When weights are zeroed during a pruning run, and the check that the run is long enough for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cxr_compress.errors import CompressionError

_UPDATES = 50  # mask updates on the way: each sorts all weights, and more than this changes no result


@dataclass(frozen=True)
class PruningSteps:
    """The steps at which TF-MOT chooses the masks anew, on the way to the target or at it.

    Source: Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878), section 3.

    Attributes:
        begin_step: The sparsity is 0 before; the first training step is 1.
        end_step: The target holds from here on, and the masks never change again.
        frequency: Steps between two mask updates; ``end_step - begin_step`` is a multiple of it, since TF-MOT updates
            no mask at any other step and would stop short of the target.
    """

    begin_step: int
    end_step: int
    frequency: int

    def check(self, epochs: int, steps_per_epoch: int) -> None:
        """Refuse a schedule that cannot reach its target in the run, before anything is trained.

        Raises:
            CompressionError: The steps contradict one another, or the run is over before ``end_step``; says steps
                near these that this run reaches.
        """
        steps = epochs * steps_per_epoch
        reachable = f"this run reaches {self.reachable(steps)}"
        if not 0 <= self.begin_step < self.end_step or self.frequency < 1:
            raise CompressionError(
                f"a pruning schedule needs 0 <= begin_step < end_step and frequency >= 1, got {self}; {reachable}"
            )
        if (self.end_step - self.begin_step) % self.frequency:
            raise CompressionError(
                f"the masks are updated every {self.frequency} steps from step {self.begin_step}, which misses "
                f"end_step {self.end_step}: the sparsity would stop short of its target; choose a frequency that "
                f"divides {self.end_step - self.begin_step}; {reachable}"
            )
        if self.end_step > steps:
            raise CompressionError(
                f"the pruning schedule ends at step {self.end_step}, the run after {steps} "
                f"({epochs} epochs of {steps_per_epoch} batches): train more epochs, use smaller batches or end the "
                f"schedule sooner; {reachable}"
            )

    def reachable(self, steps: int) -> PruningSteps:
        """Return these steps, changed as little as it takes to reach the target in a run of so many steps."""
        begin = min(max(self.begin_step, 0), steps - 1)
        end = min(max(self.end_step, begin + 1), steps)
        frequency = min(max(self.frequency, 1), end - begin)
        while (end - begin) % frequency:
            frequency -= 1
        return PruningSteps(begin, end, frequency)

    def updates(self) -> Iterator[int]:
        """The training steps, from 1, in which TF-MOT chooses masks."""
        return (step for step in range(self.begin_step, self.end_step + 1, self.frequency) if step >= 1)

    def final_epoch(self, steps_per_epoch: int) -> int:
        """The first epoch (counted from 1) at whose end the masks are final."""
        return -(-self.end_step // steps_per_epoch)

    def __str__(self) -> str:
        return f"begin_step {self.begin_step}, end_step {self.end_step}, frequency {self.frequency}"


# TF-MOT cuts the pattern 2:4 at its first step, whatever the schedule says, and never again.
AT_ONCE = PruningSteps(begin_step=0, end_step=1, frequency=1)


def plan_steps(epochs: int, steps_per_epoch: int, ramp_fraction: float = 0.5) -> PruningSteps:
    """Plan a schedule that raises the sparsity in the first part of a run and leaves the rest to recover.

    Args:
        epochs: Of the pruning run.
        steps_per_epoch: Batches in an epoch.
        ramp_fraction: Share of the run until the target is reached (or, with a constant schedule, until the masks are
            final); a short ramp leaves more steps to recover in, a long one is gentler on the way.

    Raises:
        CompressionError: ``ramp_fraction`` is not in (0, 1], or the run has a single step.
    """
    steps = epochs * steps_per_epoch
    if not 0 < ramp_fraction <= 1:
        raise CompressionError(f"ramp_fraction must be in (0, 1], got {ramp_fraction}")
    if steps < 2:  # noqa: PLR2004 - one step to zero weights, one to recover
        raise CompressionError(f"pruning needs at least 2 training steps, got {steps}: train more epochs or more films")
    ramp = max(1, int(steps * ramp_fraction))
    frequency = max(1, ramp // _UPDATES)
    return PruningSteps(begin_step=0, end_step=ramp - ramp % frequency, frequency=frequency)

"""What a second file does worse or better than a first one, on the same films."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import DataError
from cxr_compress.evaluate.class_score import class_differences
from cxr_compress.evaluate.finding_score import interval_dict
from cxr_compress.evaluate.score import Evaluation
from cxr_compress.metrics import Interval, auroc_per_finding, auroc_samples, bootstrap_mean, interval


@dataclass(frozen=True)
class Difference:
    """AUROC of a candidate minus that of its reference; below 0 is harm.

    Attributes:
        mean_auroc: Of the means over findings, with the paired interval.
        per_finding: Finding -> difference with its paired interval.
        decisions_changed: Share of the decisions (film and finding) that differ; None where a model decides nothing.
            Of classes that exclude one another the share of films whose predicted class differs.
        accuracy: Likewise of the share of films whose predicted class is right, where classes exclude one another.
        balanced_accuracy: Likewise of its mean over classes.
    """

    mean_auroc: Interval
    per_finding: dict[str, Interval]
    decisions_changed: float | None
    accuracy: Interval | None = None
    balanced_accuracy: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        of_classes = {"accuracy": self.accuracy, "balanced_accuracy": self.balanced_accuracy}
        return {
            "mean_auroc": interval_dict(self.mean_auroc),
            "findings": {finding: interval_dict(change) for finding, change in self.per_finding.items()},
            "decisions_changed": self.decisions_changed,
            **{name: interval_dict(change) for name, change in of_classes.items() if change is not None},
        }


def auroc_difference(candidate: Evaluation, reference: Evaluation) -> Difference:
    """Candidate minus reference, measured on the same resampled patients.

    An interval that includes 0 does not show that nothing was lost: look at its lower end.

    Args:
        candidate: The compressed file, say.
        reference: The uncut one, scored on the same films.

    Raises:
        DataError: The two were not scored on the same films and findings, or give classes that exclude one another
            and findings of their own.
    """
    same = candidate.findings == reference.findings and candidate.patients == reference.patients
    if not same or not np.array_equal(candidate.labels, reference.labels, equal_nan=True):
        raise DataError(
            f"a difference needs two files scored on the same films, got {len(candidate.labels)} and "
            f"{len(reference.labels)} films that differ in findings, patients or labels; score both on one set"
        )
    if candidate.activation != reference.activation:
        raise DataError(
            f"a difference needs two files of one kind, got probabilities by {candidate.activation} and by "
            f"{reference.activation}: classes that exclude one another cannot be compared with findings of their own"
        )
    values = auroc_per_finding(candidate.labels, candidate.ranking) - auroc_per_finding(
        reference.labels, reference.ranking
    )
    drawn = _drawn(candidate, candidate) - _drawn(reference, candidate)
    per_finding = {finding: interval(float(values[k]), drawn[:, k]) for k, finding in enumerate(candidate.findings)}
    changed: float | None = None
    of_classes: tuple[Interval | None, Interval | None] = (None, None)
    if candidate.decisions is not None and reference.decisions is not None:
        differs = candidate.decisions != reference.decisions
        changed = float(np.mean(differs.any(axis=1) if candidate.shares is not None else differs))
        if candidate.classes is not None and reference.classes is not None:
            both, options = (candidate.decisions, reference.decisions), {"samples": candidate.samples}
            of_classes = class_differences(candidate.labels, both, candidate.patients, seed=candidate.seed, **options)
    return Difference(bootstrap_mean(values, drawn), per_finding, changed, *of_classes)


def _drawn(scored: Evaluation, options: Evaluation) -> np.ndarray:
    """(samples, k) AUROCs on the resampled sets of ``options``."""
    return auroc_samples(scored.labels, scored.ranking, scored.patients, samples=options.samples, seed=options.seed)

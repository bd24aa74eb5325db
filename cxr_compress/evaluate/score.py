"""Runs a model file on a labelled set, through the code that will run it on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile
from cxr_compress.device.preprocess import normalize
from cxr_compress.errors import DataError
from cxr_compress.metrics import Interval, auroc_per_finding, auroc_samples, bootstrap_mean, interval

_BATCH = 32  # films normalised at a time: at 224 px their float32 tensors take 19 MB


@dataclass(frozen=True)
class FindingScore:
    """How well one finding is told apart.

    Attributes:
        finding: Its name.
        positives: Films that have it.
        negatives: Films that do not.
        auroc: With its interval; nan where undefined.
        threshold: On the probability, from the model file.
        sensitivity: Share of the positives at or above the threshold; nan without positives.
        specificity: Share of the negatives below it; nan without negatives.
        distinct_codes: Number of different outputs on this set: few mean ties, and thresholds that cannot be met.
    """

    finding: str
    positives: int
    negatives: int
    auroc: Interval
    threshold: float
    sensitivity: float
    specificity: float
    distinct_codes: int

    @property
    def reason(self) -> str | None:
        """Why the AUROC or its interval is undefined; None if both are defined."""
        if not self.positives or not self.negatives:
            return f"no film {'without' if self.positives else 'with'} the finding"
        if np.isnan(self.auroc.low):
            return "too few patients with the rarer class for an interval"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values; what is undefined is null, with a reason."""
        fields = {
            "positives": self.positives,
            "negatives": self.negatives,
            "auroc": interval_dict(self.auroc),
            "threshold": self.threshold,
            "sensitivity": _or_none(self.sensitivity),
            "specificity": _or_none(self.specificity),
            "distinct_codes": self.distinct_codes,
        }
        return {**fields, "reason": self.reason} if self.reason else fields


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model file on a set of films; what its numbers rest on is kept, so that two files can be compared in pairs.

    Attributes:
        logits: float32 (n, k) as the device gives them.
        labels: float32 (n, k).
        patients: (n,) the patient of each film.
        decisions: bool (n, k), probability at or above the file's threshold.
        scores: One per finding.
        mean_auroc: Over the findings that have both classes.
        samples: Number of resampled sets behind each interval.
        seed: Of the resampling.
        runtime: What ran the file, or None if the logits were given.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.float32]
    patients: tuple[str, ...]
    decisions: NDArray[np.bool_]
    scores: tuple[FindingScore, ...]
    mean_auroc: Interval
    samples: int
    seed: int
    runtime: str | None = None

    @property
    def findings(self) -> tuple[str, ...]:
        """The names, in the order of the logits."""
        return tuple(score.finding for score in self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values: summaries only, nothing of a single film or patient."""
        fields: dict[str, Any] = {
            "films": len(self.labels),
            "patients": len(set(self.patients)),
            "mean_auroc": interval_dict(self.mean_auroc),
            "findings": {score.finding: score.to_dict() for score in self.scores},
            "interval": f"95 % percentile bootstrap, {self.samples} resamplings of patients, seed {self.seed}",
            "runtime": self.runtime,
        }
        if np.isnan(self.mean_auroc.value):
            fields["reason"] = "no finding has films with and without it"
        return fields


def score_file(
    model: str | Path | ModelFile,
    images: NDArray[np.uint8],
    labels: NDArray[np.float32],
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    num_threads: int = 1,
    runtime: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores a .tflite file as a clinic would run it: same preprocessing, runtime, calibration and thresholds.

    Args:
        model: The file, or what ``read_model`` gave.
        images: uint8 (n, h, w[, 3]) at the model's size, as ``data.decode_split`` gives them.
        labels: (n, k), 0 or 1.
        patients: (n,) the patient of each film; intervals resample these.
        findings: (k,) what the columns of ``labels`` mean; must be those of the file, in its order.
        samples: Resampled sets per interval.
        seed: Of the resampling.
        num_threads: Threads of the TFLite kernels.
        runtime: "auto", "litert" or "tflite-runtime".
        progress: Called as (films done, films in all).

    Raises:
        DataError: Findings, sizes or numbers of films do not agree.
        ModelFileError, RuntimeUnavailableError: As ``Classifier``.
    """
    classifier = Classifier(model, num_threads=num_threads, runtime=runtime)
    if tuple(findings) != classifier.labels:
        raise DataError(
            f"expected the findings of the model file ({', '.join(classifier.labels)}) in that order, the data set has "
            f"{', '.join(findings)}; score it on the kind of set it was made for"
        )
    if len(images) != len(labels):
        raise DataError(f"expected one row of labels per film, got {len(images)} films and {len(labels)} rows")
    parts = []
    for start in range(0, len(images), _BATCH):
        parts.append(classifier.logits(normalize(images[start : start + _BATCH], classifier.spec)))
        if progress is not None:
            progress(min(start + _BATCH, len(images)), len(images))
    logits = np.concatenate(parts) if parts else np.empty((0, len(findings)), np.float32)
    thresholds = np.asarray(classifier.info.thresholds, np.float32)
    decisions = classifier.probabilities(logits) >= thresholds  # as Classifier.decide
    return score_logits(
        logits,
        labels,
        patients,
        findings,
        decisions=decisions,
        thresholds=classifier.info.thresholds,
        samples=samples,
        seed=seed,
        runtime=classifier.runtime,
    )


def score_logits(
    logits: NDArray[np.float32],
    labels: NDArray[np.float32],
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    decisions: NDArray[np.bool_],
    thresholds: Sequence[float],
    samples: int = 1000,
    seed: int = 0,
    runtime: str | None = None,
) -> Evaluation:
    """The numbers of ``score_file`` from logits that are there already.

    Args:
        logits: (n, k).
        labels: (n, k), 0 or 1.
        patients: (n,).
        findings: (k,).
        decisions: (n, k), what was called positive.
        thresholds: (k,) that led to the decisions; recorded.
        samples: Resampled sets per interval.
        seed: Of the resampling.
        runtime: Recorded.

    Raises:
        DataError: Shapes disagree, there are no films, or a logit is nan.
    """
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.float32)
    columns = {len(findings), len(thresholds), *logits.shape[1:], *labels.shape[1:], *decisions.shape[1:]}
    if len(columns) != 1 or logits.shape != labels.shape or decisions.shape != labels.shape:
        raise DataError(
            f"expected logits, labels and decisions of shape (films, {len(findings)}) and as many thresholds, got "
            f"{logits.shape}, {labels.shape}, {decisions.shape} and {len(thresholds)}"
        )
    values = auroc_per_finding(labels, logits)
    drawn = auroc_samples(labels, logits, patients, samples=samples, seed=seed)
    scores = tuple(
        FindingScore(
            finding=finding,
            positives=int(labels[:, k].sum()),
            negatives=int((1 - labels[:, k]).sum()),
            auroc=interval(float(values[k]), drawn[:, k]),
            threshold=float(thresholds[k]),
            sensitivity=_share(decisions[labels[:, k] == 1, k]),
            specificity=_share(~decisions[labels[:, k] == 0, k]),
            distinct_codes=len(np.unique(logits[:, k])),
        )
        for k, finding in enumerate(findings)
    )
    mean = bootstrap_mean(values, drawn)
    return Evaluation(logits, labels, tuple(patients), decisions, scores, mean, samples, seed, runtime)


def interval_dict(measured: Interval) -> dict[str, float | None]:
    """Gives an interval as JSON-ready values: null, not nan, where it is undefined."""
    return {"value": _or_none(measured.value), "low": _or_none(measured.low), "high": _or_none(measured.high)}


def _share(flags: NDArray[np.bool_]) -> float:
    """The share that is true; nan of nothing."""
    return float(np.mean(flags)) if len(flags) else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value

"""Score a model on labeled images, a .tflite through the code that will run it on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, ModelInfo
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.evaluate.finding import (
    UNDEFINED,
    ClassScore,
    Drawn,
    FindingScore,
    draw,
    interval_dict,
    score_classes,
    score_findings,
)
from cxr_compress.metrics import (
    Interval,
    auroc_per_finding,
    bootstrap_mean,
    has_enough_data,
    predicted_classes,
    softmax,
)

Progress = Callable[[int, int], None]
Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

BATCH = 32  # images at a time: at 224 px their float32 tensors take 19 MB
_UNDECIDED = 0.5


@dataclass(frozen=True)
class ScorableModel:
    """A model that turns images into logits, of a .tflite or any other kind.

    Attributes:
        findings: (k,) what each logit means; None where the model does not say.
        spec: the preprocessing; images come decoded at its size.
        logits: turns uint8 images (n, h, w[, 3]), n at most `BATCH`, into float32 (n, k).
        probabilities: turns logits (n, k) into probabilities; None where the model does not say how.
        thresholds: (k,) on them; None where the model has none.
        calibrated: the probabilities are meant to be the chance of the finding, and are worth a Brier score.
        runtime: what runs it, for the record.
        activation: "softmax" where the logits are of classes that exclude one another; else "sigmoid".
    """

    findings: tuple[str, ...] | None
    spec: PreprocessSpec
    logits: Callable[[Images], Floats]
    probabilities: Callable[[Floats], Floats] | None = None
    thresholds: tuple[float, ...] | None = None
    calibrated: bool = False
    runtime: str | None = None
    activation: str = "sigmoid"


def from_classifier(classifier: Classifier) -> ScorableModel:
    """The device's own code as a model to score, with the calibration and the thresholds of its file."""
    info, spec = classifier.info, classifier.spec
    # What cxr_convert writes when nothing was chosen on data: a sigmoid of the raw logit promises no probability.
    # A softmax of more classes does: it is the model's own.
    untouched = not any(info.logit_offset) and set(info.logit_slope) == {1.0} and set(info.thresholds) == {_UNDECIDED}
    plain = untouched and not info.exclusive
    return ScorableModel(
        classifier.labels,
        spec,
        lambda images: classifier.logits(normalize(images, spec)),
        classifier.probabilities,
        None if info.exclusive else info.thresholds,
        calibrated=not plain,
        runtime=classifier.runtime,
        activation="softmax" if info.exclusive else "sigmoid",
    )


def run_model(model: ScorableModel, images: Images, progress: Progress | None = None) -> Floats:
    """The logits of all images, a batch at a time.

    Args:
        model: what to run, and what its logits mean.
        images: uint8 (n, h, w[, 3]).
        progress: called as (images done, images in all).

    Returns:
        float32 (n, k); (0, k) of no images, or (0, 0) where the model does not say k.
    """
    parts = []
    for start in range(0, len(images), BATCH):
        parts.append(model.logits(images[start : start + BATCH]))
        if progress is not None:
            progress(min(start + BATCH, len(images)), len(images))
    return np.concatenate(parts) if parts else np.empty((0, len(model.findings or ())), np.float32)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of n images, k findings.

    Attributes:
        logits: float32 (n, k).
        probabilities: float32 (n, k); None where the model does not say how logits become such.
        decisions: bool (n, k): at or above the threshold, or the likeliest class; None where it decides nothing.
        activation: "softmax" of classes that exclude one another, else "sigmoid".
    """

    logits: Floats
    probabilities: Floats | None
    decisions: NDArray[np.bool_] | None
    activation: str = "sigmoid"

    @property
    def ranking(self) -> Floats:
        """(n, k), what images are ordered by: a logit alone does not order them by a softmax's share."""
        return self.logits if self.activation != "softmax" or self.probabilities is None else self.probabilities


def answer(model: ScorableModel, images: Images, progress: Progress | None = None) -> Answers:
    """Run a model on images (see `run_model`) and decide as the device does."""
    logits = run_model(model, images, progress)
    probabilities = None if model.probabilities is None or not len(logits) else model.probabilities(logits)
    if model.activation == "softmax":
        # The softmax is of all the model's classes, whichever of them are scored.
        probabilities = softmax(logits).astype(np.float32) if probabilities is None else probabilities
        return Answers(logits, probabilities, predicted_classes(probabilities), model.activation)
    decisions = None
    if probabilities is not None and model.thresholds is not None:
        decisions = probabilities >= np.asarray(model.thresholds, np.float32)  # as Classifier.decide
    return Answers(logits, probabilities, decisions, model.activation)


def answer_file(model: str | Path | ModelFile, images: Images, *, num_threads: int = 1) -> Answers:
    """What a .tflite file says of images (see `run_model`), with its own calibration and thresholds."""
    return answer(from_classifier(Classifier(model, num_threads=num_threads)), images)


def file_logits(
    content: bytes, info: ModelInfo, images: Images, *, num_threads: int = 1, progress: Progress | None = None
) -> Floats:
    """Logits of a flatbuffer of any quant type that is not packed yet, through the device's own code.

    Args:
        content: as `lite.convert` gives it.
        info: labels and preprocessing.
        images: uint8 (n, h, w[, 3]) at the size of the preprocessing.
        num_threads: of the TFLite kernels.
        progress: called as (images done, images in all).

    Returns:
        float32 (n, findings).
    """
    file = ModelFile(Path("unnamed"), content, info, len(content), "")
    return run_model(from_classifier(Classifier(file, num_threads=num_threads)), images, progress)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model file on a set of images; what its numbers rest on is kept, so that two files can be compared in pairs.

    Attributes:
        logits: float32 (n, k) as the device gives them.
        labels: float32 (n, k), nan where unknown.
        patients: (n,) the patient of each image.
        decisions: bool (n, k), probability at or above the file's threshold; None for a model without thresholds. Of
            classes that exclude one another True for the likeliest.
        scores: one per finding.
        mean_auroc: over all findings that have both classes, however few images of one.
        samples: number of resampled sets behind each interval.
        seed: of the resampling.
        runtime: what ran the file, or None if the logits were given.
        mean_auroc_enough_data: over the findings with at least 20 images of each class: the mean to quote.
        classes: of classes that exclude one another: accuracy, balanced accuracy and confusion matrix; else None.
        shares: float32 (n, k), of such classes the probabilities, by which each is ranked against the others; None
            where the logits themselves rank.
        probabilities: float32 (n, k), calibrated; None where the model gives none.
        drawn: the measurements on resampled patients that the intervals come from: those of two files on the same
            images and with the same seed are pairs.
    """

    logits: Floats
    labels: Floats
    patients: tuple[str, ...]
    decisions: NDArray[np.bool_] | None
    scores: tuple[FindingScore, ...]
    mean_auroc: Interval
    samples: int
    seed: int
    runtime: str | None = None
    mean_auroc_enough_data: Interval = UNDEFINED
    classes: ClassScore | None = None
    shares: Floats | None = None
    probabilities: Floats | None = None
    drawn: Drawn | None = None

    @property
    def activation(self) -> str:
        """What made the probabilities: "softmax" of classes that exclude one another, else "sigmoid"."""
        return "sigmoid" if self.shares is None else "softmax"

    @property
    def ranking(self) -> Floats:
        """(n, k), what images are ordered by for an AUROC: a logit alone does not order them by a softmax's share."""
        return self.logits if self.shares is None else self.shares

    @property
    def findings(self) -> tuple[str, ...]:
        """The names, in the order of the logits."""
        return tuple(score.finding for score in self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values: summaries only, nothing of a single image or patient."""
        fields: dict[str, Any] = {
            "images": len(self.labels),
            "patients": len(set(self.patients)),
            "mean_auroc": interval_dict(self.mean_auroc),
            "mean_auroc_enough_data": interval_dict(self.mean_auroc_enough_data),
            "mean_over": {
                "mean_auroc": [score.finding for score in self.scores if not np.isnan(score.auroc.value)],
                "mean_auroc_enough_data": [score.finding for score in self.scores if score.enough_data],
            },
            "findings": {score.finding: score.to_dict() for score in self.scores},
            "interval": f"95 % percentile bootstrap, {self.samples} resamplings of patients, seed {self.seed}",
            "runtime": self.runtime,
        }
        if self.shares is not None:
            fields["activation"] = self.activation
            fields["auroc"] = "one-vs-rest: each class against all others, ranked by its probability"
        if self.classes is not None:
            fields["classes"] = self.classes.to_dict()
        if np.isnan(self.mean_auroc.value):
            fields["reason"] = "no finding has images with and without it"
        return fields


def score_file(
    model: str | Path | ModelFile,
    images: Images,
    labels: Floats,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    num_threads: int = 1,
    runtime: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Score a .tflite file as a clinic would run it: same preprocessing, runtime, calibration and thresholds.

    Args:
        model: the file, or what `read_model` gave.
        images: uint8 (n, h, w[, 3]) at the model's size, as `data.decode_split` gives them.
        labels: (n, k), 0 or 1, or nan where unknown.
        patients: (n,) the patient of each image; intervals resample these.
        findings: (k,) what the columns of `labels` mean; must be those of the file, in its order
            (`match_findings` brings others into it).
        samples: resampled sets per interval.
        seed: of the resampling.
        num_threads: threads of the TFLite kernels.
        runtime: "auto", "litert" or "tflite-runtime".
        progress: called as (images done, images in all).

    Raises:
        DataError: findings, sizes or numbers of images do not agree.
        ModelFileError, RuntimeUnavailableError: as `Classifier`.
    """
    file = from_classifier(Classifier(model, num_threads=num_threads, runtime=runtime))
    if tuple(findings) != file.findings:
        raise DataError(
            f"expected the findings of the model file ({', '.join(file.findings or ())}) in that order, the data set "
            f"has {', '.join(findings)}; score it on the kind of set it was made for"
        )
    return score_model(file, images, labels, patients, findings, samples=samples, seed=seed, progress=progress)


def score_model(
    model: ScorableModel,
    images: Images,
    labels: Floats,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    columns: Sequence[int] | None = None,
    samples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Score any model that turns images into logits.

    Args:
        model: what to run, and what its logits mean.
        images: uint8 (n, h, w[, 3]) at the model's size.
        labels: (n, k), 0 or 1, or nan where unknown.
        patients: (n,) the patient of each image.
        findings: (k,) what the columns of `labels` mean.
        columns: (k,) which logit belongs to each; None for the first k in order.
        samples: resampled sets per interval.
        seed: of the resampling.
        progress: called as (images done, images in all).

    Raises:
        DataError: sizes or numbers of images do not agree, a label is soft, or a logit is nan.
    """
    if len(images) != len(labels):
        raise DataError(f"expected one row of labels per image, got {len(images)} images and {len(labels)} rows")
    found = answer(model, images, progress)
    chosen = list(range(len(findings)) if columns is None else columns)
    logits, probabilities = found.logits, found.probabilities
    options: dict[str, Any] = {}
    if found.decisions is not None:
        options["decisions"] = found.decisions[:, chosen]
    if found.activation == "softmax" and probabilities is not None:
        # What another class is called says nothing of a set that does not know it.
        options |= {"shares": probabilities[:, chosen], "complete": sorted(chosen) == list(range(logits.shape[1]))}
    elif found.decisions is not None and model.thresholds is not None:
        options["thresholds"] = [model.thresholds[column] for column in chosen]
    return score_logits(
        logits[:, chosen],
        labels,
        patients,
        findings,
        probabilities=None if probabilities is None or not model.calibrated else probabilities[:, chosen],
        samples=samples,
        seed=seed,
        runtime=model.runtime,
        **options,
    )


def score_logits(
    logits: Floats,
    labels: Floats,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    decisions: NDArray[np.bool_] | None = None,
    thresholds: Sequence[float] | None = None,
    probabilities: Floats | None = None,
    shares: Floats | None = None,
    complete: bool = True,
    samples: int = 1000,
    seed: int = 0,
    runtime: str | None = None,
) -> Evaluation:
    """The numbers of `score_file` from logits that were computed before.

    Args:
        logits: (n, k).
        labels: (n, k), 0 or 1, or nan where unknown.
        patients: (n,).
        findings: (k,).
        decisions: (n, k), what was called positive; None where nothing was decided.
        thresholds: (k,) that led to the decisions; recorded.
        probabilities: (n, k), calibrated; None where there are none.
        shares: (n, k) of classes that exclude one another: their probabilities, which rank them; None for findings.
        complete: the findings are all classes of the model, so that accuracy and confusion matrix mean something.
        samples: resampled sets per interval.
        seed: of the resampling.
        runtime: recorded.

    Raises:
        DataError: shapes disagree, there are no images, a label is soft, or a logit is nan; an image has no class or
            several where they exclude one another.
    """
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.float32)
    _check_shapes(logits, labels, findings, decisions, thresholds)
    options: dict[str, Any] = {"decisions": decisions, "probabilities": probabilities}
    ranking = logits if shares is None else np.asarray(shares, np.float32)
    values = auroc_per_finding(labels, ranking)  # first: it checks labels and logits
    classes = None
    if shares is not None and complete:
        called = predicted_classes(shares) if decisions is None else decisions
        classes = score_classes(labels, called, patients, findings, samples=samples, seed=seed)
    drawn = draw(labels, ranking, patients, samples=samples, seed=seed, **options)
    scores = score_findings(labels, ranking, findings, drawn, thresholds=thresholds, codes=logits, **options)
    enough = has_enough_data(labels)
    return Evaluation(
        logits,
        labels,
        tuple(patients),
        decisions,
        scores,
        bootstrap_mean(values, drawn.auroc),
        samples,
        seed,
        runtime,
        bootstrap_mean(values[enough], drawn.auroc[:, enough]),
        classes,
        None if shares is None else ranking,
        probabilities,
        drawn,
    )


def _check_shapes(
    logits: Floats,
    labels: Floats,
    findings: Sequence[str],
    decisions: NDArray[np.bool_] | None,
    thresholds: Sequence[float] | None,
) -> None:
    """One column per finding and one row per image, everywhere."""
    called = labels if decisions is None else decisions
    count = len(findings) if thresholds is None else len(thresholds)
    columns = {len(findings), count, *logits.shape[1:], *labels.shape[1:], *called.shape[1:]}
    if len(columns) != 1 or logits.shape != labels.shape or called.shape != labels.shape:
        raise DataError(
            f"expected logits, labels and decisions of shape (images, {len(findings)}) and as many thresholds, got "
            f"{logits.shape}, {labels.shape}, {called.shape} and {count}"
        )

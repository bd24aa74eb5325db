"""What a file says of its probabilities and decisions, fitted on dev images with the logits of that very file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, ModelInfo
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.evaluate.calibrate import NO_THRESHOLDS, Calibration, choose_calibration, choose_class_calibration

Progress = Callable[[int, int], None]
Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

BATCH = 32  # images at a time: at 224 px their float32 tensors take 19 MB
_UNDECIDED = 0.5


@dataclass(frozen=True)
class ScorableModel:
    """A model as scoring sees it.

    Attributes:
        findings: (k,) what each logit means; None where the model does not say.
        spec: The preprocessing; images come decoded at its size.
        logits: uint8 images (n, h, w[, 3]), n at most ``BATCH``, to float32 (n, k).
        probabilities: Logits (n, k) to probabilities; None where the model has no say in that.
        thresholds: (k,) on them; None where the model has none.
        calibrated: The probabilities are meant to be the chance of the finding, and are worth a Brier score.
        runtime: What runs it, for the record.
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
        model: See there.
        images: uint8 (n, h, w[, 3]).
        progress: Called as (images done, images in all).

    Returns:
        float32 (n, k); (0, k) of no images, or (0, 0) where the model does not say k.
    """
    parts = []
    for start in range(0, len(images), BATCH):
        parts.append(model.logits(images[start : start + BATCH]))
        if progress is not None:
            progress(min(start + BATCH, len(images)), len(images))
    return np.concatenate(parts) if parts else np.empty((0, len(model.findings or ())), np.float32)


HELD_OUT = "patients held out of training"


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


def fit_info(
    info: ModelInfo,
    labels: ArrayLike,
    logits: ArrayLike,
    pos_weight: ArrayLike,
    *,
    images: str,
    held_out: str = HELD_OUT,
    columns: Sequence[int] | None = None,
    force: bool = False,
) -> ModelInfo:
    """The same with slope, offset and threshold of each finding fitted on dev (`choose_calibration`), and said so.

    Of classes that exclude one another one slope is fitted for all (`choose_class_calibration`), and there are no
    thresholds; where the labels are of some classes only, nothing is fitted, since which other one an image has is
    unknown.

    Args:
        info: of the file; findings that are not fitted keep what it says.
        labels: (n, m), 0 or 1, or nan where unknown.
        logits: (n, m) of this very file.
        pos_weight: (m,) of the training loss; ones for an unweighted loss.
        images: what the labels are of, in words.
        held_out: why the images may be used for that, in words.
        columns: (m,) the file's findings that these are; all of them by default.
        force: go on where a finding becomes rarer as its logit rises; its source then says so.

    Raises:
        DataError: as `choose_calibration` and `choose_class_calibration`, or a calibration that falls by more than
            chance.
    """
    columns = range(len(info.labels)) if columns is None else columns
    if info.exclusive:
        return _fit_classes(info, labels, logits, pos_weight, images, list(columns), force)
    chosen = choose_calibration(labels, logits, pos_weight)
    named = [info.labels[column] for column in columns]
    warning = _warn_of_falling(chosen, named, images, info.model_name, force)
    slope, offset, thresholds = (list(own) for own in (info.logit_slope, info.logit_offset, info.thresholds))
    for place, column in enumerate(columns):
        slope[column], offset[column] = chosen.slope[place], chosen.offset[place]
        thresholds[column] = chosen.thresholds[place]
    left = ", ".join(name for column, name in enumerate(info.labels) if column not in set(columns))
    rule = f"largest sensitivity + specificity on {images}, {held_out}; choose your own before any use"
    source = chosen.source(images, named) + warning
    return replace(
        info,
        logit_slope=tuple(slope),
        logit_offset=tuple(offset),
        thresholds=tuple(thresholds),
        threshold_source=f"{rule}; of {left}: {info.threshold_source}" if left else rule,
        calibration_source=f"{source}; of {left}: {info.calibration_source}" if left else source,
    )


def _warn_of_falling(calibration: Calibration, named: Sequence[str], images: str, model: str, force: bool) -> str:
    """What the source of a calibration says of findings that become rarer as their logit rises; "" where none does.

    Raises:
        DataError: there are some, and the user does not force it.
    """
    falling = ", ".join(name for name, falls in zip(named, calibration.falling, strict=True) if falls)
    if falling and not force:
        raise DataError(
            f"the calibration of {falling} falls on {images}: the higher the logit of {model}, the rarer the finding; "
            "most likely its outputs stand in another order, the finding is the other of two classes, or its images "
            "were prepared in another way: correct that, or go on with --force"
        )
    return f"; the calibration of {falling} FALLS: worse than chance" if falling else ""


def _fit_classes(  # noqa: PLR0917 - what `fit_info` was given
    info: ModelInfo,
    labels: ArrayLike,
    logits: ArrayLike,
    weights: ArrayLike,
    images: str,
    columns: list[int],
    force: bool,
) -> ModelInfo:
    """The same with one slope for all classes and offsets that undo the class weights."""
    lacking = [name for column, name in enumerate(info.labels) if column not in columns]
    if lacking:
        source = f"{info.calibration_source}; {images} do not say which images are {', '.join(lacking)}"
        return replace(info, calibration_source=source, threshold_source=NO_THRESHOLDS)
    chosen = choose_class_calibration(labels, logits, weights)
    warning = _warn_of_falling(chosen, [info.labels[column] for column in columns], images, info.model_name, force)
    places = [columns.index(column) for column in range(len(info.labels))]
    return replace(
        info,
        logit_slope=tuple(chosen.slope[place] for place in places),
        logit_offset=tuple(chosen.offset[place] for place in places),
        thresholds=chosen.thresholds,
        threshold_source=NO_THRESHOLDS,
        calibration_source=chosen.source(images, info.labels) + warning,
    )


def fittable(labels: ArrayLike) -> list[int]:
    """The columns of labels (n, k) that hold both a 0 and a 1: of others no threshold can be chosen."""
    values = np.asarray(labels, np.float64)
    return [column for column in range(values.shape[1]) if {0.0, 1.0} <= set(values[:, column])]

"""Anything that turns films into logits, seen from here: a .tflite through the device's code, or a callable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.spec import PreprocessSpec

Progress = Callable[[int, int], None]
Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

BATCH = 32  # films at a time: at 224 px their float32 tensors take 19 MB
_UNDECIDED = 0.5


@dataclass(frozen=True)
class ScorableModel:
    """A model as scoring sees it.

    Attributes:
        findings: (k,) what each logit means; None where the model does not say.
        spec: The preprocessing; films come decoded at its size.
        logits: uint8 films (n, h, w[, 3]), n at most ``BATCH``, to float32 (n, k).
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
        lambda films: classifier.logits(normalize(films, spec)),
        classifier.probabilities,
        None if info.exclusive else info.thresholds,
        calibrated=not plain,
        runtime=classifier.runtime,
        activation="softmax" if info.exclusive else "sigmoid",
    )


def run_model(model: ScorableModel, images: Images, progress: Progress | None = None) -> Floats:
    """The logits of all films, a batch at a time.

    Args:
        model: See there.
        images: uint8 (n, h, w[, 3]).
        progress: Called as (films done, films in all).

    Returns:
        float32 (n, k); (0, k) of no films, or (0, 0) where the model does not say k.
    """
    parts = []
    for start in range(0, len(images), BATCH):
        parts.append(model.logits(images[start : start + BATCH]))
        if progress is not None:
            progress(min(start + BATCH, len(images)), len(images))
    return np.concatenate(parts) if parts else np.empty((0, len(model.findings or ())), np.float32)

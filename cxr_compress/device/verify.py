"""Check that a model file answers on this machine as it did where it was made: same logits, same decisions.

The images that it is asked are drawn from a seed, not stored: no patient is in them, and a few hundred bytes of a file
check the whole way from pixels to decisions.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.device.modelinfo import ModelInfo, ReferenceOutputs
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.runner import Runner
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError
from cxr_compress.quant_types import TYPES

REFERENCE_IMAGES = 4
_GRID = 24  # the images have this many flat fields a side, whatever their size in pixels
# TFLite's kernels may round one way or the other: measured between LiteRT 2.3 and tflite-runtime 2.14 on DenseNets.
MAX_STEPS = 3
# Kernels of yet another processor round in other places again.
KERNEL_ROOM = 1.5
_MAX_SHARE = 1e-3  # of the spread of logits, for files that do not say their quant type


@dataclass(frozen=True)
class Verification:
    """What became of the reference outputs of a file on this machine.

    Attributes:
        runtime: what ran it here.
        made_with: what ran it where it was made.
        images: reference images.
        tolerance: how far a logit may be off: 3 codes; where they are float, 1e-3 of the spread of the recorded ones,
            or 3/255 of it in a dynamic file.
        largest_difference: of a logit from its record; infinite where it is no number.
        logits_off: logits beyond the tolerance.
        decisions: images times findings; where classes exclude one another one for each image, its likeliest class.
        too_close: decisions whose score lies within the tolerance of its threshold, or whose two likeliest classes lie
            within what both logits may be off; they are not judged.
        flipped: judged decisions that differ from their record.
        varied: the recorded logits depend on the image; where they do not, the comparison proves nothing.
    """

    runtime: str
    made_with: str
    images: int
    tolerance: float
    largest_difference: float
    logits_off: int
    decisions: int
    too_close: int
    flipped: int
    varied: bool

    @property
    def passed(self) -> bool:
        """Every logit within the tolerance, no judged decision flipped, and a record that depends on the image."""
        return self.varied and not self.logits_off and not self.flipped

    def to_dict(self) -> dict[str, Any]:
        """Give the fields and `passed` as JSON-ready values; an infinite difference becomes None."""
        finite = np.isfinite(self.largest_difference)
        return {
            **asdict(self),
            "largest_difference": self.largest_difference if finite else None,
            "passed": self.passed,
        }

    def to_text(self) -> str:
        """One line for people."""
        if not self.varied:
            return "FAILED: the recorded logits are the same for every image, which proves nothing; train it first"
        return (
            f"{'passed' if self.passed else 'FAILED'}: {self.images} reference images on {self.runtime}, largest "
            f"difference {self.largest_difference:.2g} of {self.tolerance:.2g} allowed, {self.logits_off} logits off, "
            f"{self.flipped} of {self.decisions} decisions flipped ({self.too_close} too close to call)"
        )


def verify_model(
    model: str | Path | ModelFile, *, num_threads: int = 1, runtime: str = "auto", delegate: str | None = None
) -> Verification:
    """Draw the reference images of a file, run it on them, and compare with what it recorded when it was packed.

    The file's own hashes say that it is whole; this says that runtime, processor and delegate compute it right. Costs
    four inferences.

    Args:
        model: a path, or what `read_model` gave.
        num_threads: threads of the TFLite kernels.
        runtime: "auto", "litert" or "tflite-runtime".
        delegate: library of an accelerator; None runs on the processor.

    Raises:
        ModelFileError: the file is damaged, not ours, or carries no reference outputs.
        RuntimeUnavailableError: no TFLite runtime here can run it.
    """
    file = model if isinstance(model, ModelFile) else read_model(model)
    reference = file.info.reference
    if reference is None:
        raise ModelFileError(f"{file.path}: carries no reference outputs to verify it with; convert the model again")
    classifier = Classifier(file, num_threads=num_threads, runtime=runtime, delegate=delegate)
    logits = classifier.logits(_inputs(file.info, reference.seed, len(reference.logits)))
    positive = np.array([classifier.decide(row).positive for row in logits])
    return compare(file.info, logits, positive, classifier.runtime)


def record(content: bytes, info: ModelInfo, *, step: float | None = None, seed: int = 0) -> ReferenceOutputs:
    """Run a flatbuffer on reference images and note what it answers.

    Args:
        content: the flatbuffer.
        info: what the file will say about itself; its preprocessing and thresholds count.
        step: the value of one code of the logits where a float output hides it; None takes the output's own.
        seed: of the images.

    Raises:
        ModelFileError: the flatbuffer contradicts `info`.
        RuntimeUnavailableError: no TFLite runtime here can run it.
    """
    classifier = Classifier(ModelFile(Path("unnamed"), content, info, len(content), ""))
    inputs = _inputs(info, seed, REFERENCE_IMAGES)
    logits = classifier.logits(inputs)
    other = info.logits_of(Runner(content, xnnpack=False)(inputs))
    # Codes of probabilities are no even steps of their logits.
    step = classifier.output_scale or step if info.outputs == "logits" else None
    return ReferenceOutputs(
        seed=seed,
        # By way of its text, a float32 becomes the shortest number that reads back as it.
        logits=tuple(tuple(float(str(value)) for value in row) for row in logits),
        positive=tuple(classifier.decide(row).positive for row in logits),
        step=step,
        runtime=classifier.runtime,
        kernels=float(str(np.abs(other - logits).max())),
    )


def compare(info: ModelInfo, logits: np.ndarray, positive: np.ndarray, runtime: str) -> Verification:
    """Compare logits and decisions (n, k), and what computed them, with the record that `info` carries.

    Raises:
        ModelFileError: it carries none.
    """
    reference = info.reference
    if reference is None:
        raise ModelFileError("the file carries no reference outputs to verify it with; convert the model again")
    expected = np.asarray(reference.logits, np.float32).astype(np.float64)
    spread = float(np.ptp(expected, axis=0).max())
    quant_type = TYPES.get(info.quant_type)
    share = quant_type.logit_tolerance if quant_type else _MAX_SHARE
    tolerance = max(MAX_STEPS * reference.step if reference.step else share * spread, KERNEL_ROOM * reference.kernels)
    # What is no number agrees with nothing. Not np.nan_to_num: after an emulated or old ARM runtime has switched tiny
    # numbers off, it warns about the processor.
    difference = np.abs(logits.astype(np.float64) - expected)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    # Logits are rounded to float32: exactly three steps are three steps.
    off = difference > tolerance * (1 + 1e-6)
    changed = positive != np.asarray(reference.positive)
    if info.exclusive:
        judged = _class_margins(info, expected) > tolerance
        changed = changed.any(axis=1)
    else:
        judged = _margins(info, expected) > tolerance
    flipped = judged & changed
    return Verification(
        runtime=runtime,
        made_with=reference.runtime,
        images=len(expected),
        tolerance=tolerance,
        largest_difference=float(difference.max()),
        logits_off=int(off.sum()),
        decisions=judged.size,
        too_close=int((~judged).sum()),
        flipped=int(flipped.sum()),
        varied=spread > 0,
    )


def draw_reference_images(spec: PreprocessSpec, seed: int, count: int = REFERENCE_IMAGES) -> np.ndarray:
    """Draw images of the size that a model takes: uint8 (n, height, width), or (n, height, width, 3) for rgb.

    Whole-number arithmetic on the raw stream of a PCG64, which NumPy promises never to change, and no resampling: the
    same bytes with every version of NumPy and OpenCV. The images differ in far more than noise (brightness, tilt, shape
    of the lungs, round shadows), so that a model that looks at them answers differently to each.
    """
    planes = 3 if spec.color == "rgb" else 1
    images = [_draw(seed * 1_000_003 + number, spec.height, spec.width) for number in range(count * planes)]
    if planes == 1:
        return np.stack(images)
    return np.stack([np.stack(images[3 * number : 3 * number + 3], axis=-1) for number in range(count)])


def _draw(seed: int, height: int, width: int) -> np.ndarray:
    """One plane, uint8 (height, width)."""
    raw = (np.random.PCG64(seed).random_raw(16 + _GRID * _GRID) >> np.uint64(33)).astype(np.int64)
    draws, noise = raw[:16], raw[16:].reshape(_GRID, _GRID) % 32
    down, across = np.mgrid[0:_GRID, 0:_GRID].astype(np.int64) - _GRID // 2
    image = 50 + draws[0] % 130 + (draws[1] % 9 - 4) * down + (draws[2] % 5 - 2) * across
    image = np.where(across**2 < 3 + draws[3] % 8, image + 50, image)
    lung = (np.abs(across) - 6) ** 2 * (2 + draws[4] % 4) + down**2 < 30 + draws[5] % 60
    image = np.where(lung, image // (2 + draws[6] % 3), image)
    for row, column, size in draws[7:16].reshape(3, 3):
        away = (down - row % 17 + 8) ** 2 + (across - column % 17 + 8) ** 2
        image = np.where(away < 2 + size % 10, image + 70, image)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    rows, columns = np.arange(height) * _GRID // height, np.arange(width) * _GRID // width
    return np.ascontiguousarray(image[rows][:, columns])


def _inputs(info: ModelInfo, seed: int, count: int) -> np.ndarray:
    """The reference images as the model takes them."""
    return normalize(draw_reference_images(info.preprocess, seed, count), info.preprocess)


def _class_margins(info: ModelInfo, logits: np.ndarray) -> np.ndarray:
    """How far every logit of an image (n, k) may be off, all at once, before another class is the likeliest: (n,).

    Of the class with the highest calibrated score and another one, both logits may be off, each times its slope: hence
    the distance of the scores over the sum of the slopes.
    """
    slope, offset = np.asarray(info.logit_slope), np.asarray(info.logit_offset)
    scores = logits * slope + offset
    best = scores.argmax(axis=1)
    ahead = scores.max(axis=1, keepdims=True) - scores
    steepness = np.maximum(np.abs(slope)[best][:, None] + np.abs(slope), sys.float_info.min)
    margins = ahead / steepness
    margins[np.arange(len(logits)), best] = np.inf
    return np.asarray(margins.min(axis=1))


def _margins(info: ModelInfo, logits: np.ndarray) -> np.ndarray:
    """How far each logit (n, k) is from where its decision changes; infinite where no logit would change it."""
    slope, offset = np.asarray(info.logit_slope), np.asarray(info.logit_offset)
    thresholds = np.asarray(info.thresholds)
    with np.errstate(divide="ignore", invalid="ignore"):
        edge = (np.log(thresholds) - np.log1p(-thresholds) - offset) / slope
        margins = np.abs(logits - edge)
    return np.where(np.isnan(margins), np.inf, margins)

"""From a chest X-ray file to findings, with a .tflite model that knows its own labels and preprocessing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.dicom import FIRST_VIEW, DicomView
from cxr_compress.device.heatmap import no_map, pick_map
from cxr_compress.device.image_checks import blank_text, image_warnings
from cxr_compress.device.interpreter import try_model
from cxr_compress.device.modelfile import ModelFile, ModelInfo, read_model
from cxr_compress.device.preprocess import normalize, prepare
from cxr_compress.device.runner import Runner
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError, ModelFileError


@dataclass(frozen=True, eq=False)
class Findings:
    """What a model says about one image; every array but the map is float32 (k,), one entry a label.

    Attributes:
        labels: the k findings.
        logits: the model's output, dequantized; of a file that gives probabilities, their logits.
        probabilities: sigmoid(slope * logit + offset) with the calibration of the model file; of classes that exclude
            one another the softmax of all of them, which adds up to 1.
        thresholds: on the probabilities; of exclusive classes 0.5 each, and not used.
        positive: probability at or above its threshold; of exclusive classes True for the likeliest alone, the first
            of equally likely ones.
        warnings: what a person should check about the image before believing a finding: that it looks inverted, is
            nearly black or noise, or how a file was read that contradicts itself. `image_checks.in_short` shortens one.
        cam: float32 (h, w, k), what each part of the image adds to each logit; None where the model file has no map.
        activation: "softmax" where the labels are classes that exclude one another; else as `ModelInfo.activation`.
    """

    labels: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    positive: tuple[bool, ...]
    warnings: tuple[str, ...] = ()
    cam: np.ndarray | None = None
    activation: str = "sigmoid"

    @property
    def predicted(self) -> str | None:
        """The one class that the image is said to be; None where findings do not exclude one another."""
        return self.labels[self.positive.index(True)] if self.activation == "softmax" else None

    def top(self, k: int = 1) -> list[tuple[str, float]]:
        """The k likeliest labels with their probabilities, the likeliest first; equal ones in the order of the labels.

        Raises:
            DataError: k is not from 1 to the number of labels.
        """
        if not 1 <= k <= len(self.labels):
            raise DataError(f"expected k from 1 to {len(self.labels)}, the number of labels; got {k}")
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.labels[column], _short(self.probabilities[column])) for column in order]

    def heatmap(self, label: str) -> np.ndarray:
        """Where the logit of one finding comes from: float32 (h, w), whose mean plus the model's bias is the logit.

        Rows and columns are those of the network's last grid, stretched over the whole image; `device.heatmap.overlay`
        makes a picture of it. It shows where evidence came from; it is no outline of disease.

        Raises:
            ModelFileError: the model file has no map: it was exported without --head=logits+cam.
            DataError: an unknown label.
        """
        return pick_map(self.cam, self.labels, label)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-ready values: {"findings": [{label, probability, threshold, positive, logit}], "warnings": []}.

        Of exclusive classes also "activation" and "predicted", the likeliest label; "threshold" is then None.
        """
        exclusive = self.activation == "softmax"
        columns = zip(self.labels, self.probabilities, self.thresholds, self.positive, self.logits, strict=True)
        return {
            "findings": [
                {
                    "label": label,
                    "probability": _short(probability),
                    "threshold": None if exclusive else _short(threshold),
                    "positive": positive,
                    "logit": _short(logit),
                }
                for label, probability, threshold, positive, logit in columns
            ],
            **({"activation": self.activation, "predicted": self.predicted} if exclusive else {}),
            "warnings": list(self.warnings),
        }


class Classifier:
    """Classify images with one model file; what is scored here is what ships.

    One interpreter is built and reused, so a Classifier is cheap to call and not safe to share between threads. The
    same image gives the same findings alone and in any batch: images run one by one.

    Attributes:
        info: what the model file says about itself.
        labels: the findings, in the order of the logits.
        spec: the preprocessing.
        runtime: which TFLite runtime runs it, for instance "ai-edge-litert 2.3.0".
        output_scale: one step (LSB) of the logits of a quantized output; None for a float output.
    """

    info: ModelInfo
    labels: tuple[str, ...]
    spec: PreprocessSpec
    runtime: str
    output_scale: float | None

    def __init__(
        self,
        model: str | Path | ModelFile,
        *,
        num_threads: int = 1,
        runtime: str = "auto",
        delegate: str | None = None,
        gate: str = "error",
        view: DicomView = FIRST_VIEW,
    ) -> None:
        """Load a model.

        Args:
            model: a path, or what `read_model` gave.
            num_threads: threads of the TFLite kernels.
            runtime: "auto", "litert" or "tflite-runtime".
            delegate: library of an accelerator, as "libedgetpu.so.1"; None runs on the processor.
            gate: "error" refuses a blank image, and a color image for a gray model; "off" goes on, with a warning in
                the findings for the one and an `ImageGateWarning` for the other.
            view: which frame and window of DICOM files, and the bit depth of what stores 16 bits.

        Raises:
            ModelFileError: the file is damaged, not ours, or its tensors contradict what it says about itself.
            RuntimeUnavailableError: no TFLite runtime here can run it.
        """
        file = model if isinstance(model, ModelFile) else read_model(model)
        if delegate is None:  # an accelerator is there for one process only
            try_model(file.content, runtime=runtime)
        self._run = Runner(file.content, num_threads=num_threads, runtime=runtime, delegate=delegate)
        self.info, self.runtime = file.info, self._run.runtime
        self.labels, self.spec = file.info.labels, file.info.preprocess
        self._gate, self._view = gate, view
        if self.spec.input == "uint8" and not self._run.input.takes_pixels:
            raise ModelFileError(
                f"the model takes {self._run.input.dtype}, its own metadata says uint8 pixels; convert it again"
            )
        _check_shape("input", self._run.input_shape, (1, *self.spec.input_shape))
        _check_shape("output", self._run.output_shape, (1, len(self.labels)))
        self.output_scale = self._run.output.scale

    def require_map(self) -> None:
        """Refuse a model file whose findings have no `heatmap`.

        Raises:
            ModelFileError: says how to export one that has.
        """
        if self._run.cam is None:
            raise no_map()

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Run preprocessed images through the model; what gives probabilities is turned into their logits.

        Args:
            batch: (n, *spec.input_shape) of dtype `spec.input`, as `device.preprocess.normalize` gives it: float32, or
                uint8 where the model normalizes; n may be 0.

        Returns:
            float32 (n, k), dequantized.

        Raises:
            DataError: another shape or dtype, or NaN or infinite values.
        """
        batch = np.asarray(batch)
        shape, dtype = self.spec.input_shape, self.spec.input
        if batch.dtype != dtype or batch.shape[1:] != shape or batch.ndim != 4:  # noqa: PLR2004
            raise DataError(f"expected {dtype} of shape (n, *{shape}), got {batch.dtype} {batch.shape}")
        finite = np.isfinite(batch).all(axis=(1, 2, 3))
        if not finite.all():
            raise DataError(f"expected finite pixels, image {np.argmin(finite)} of the batch holds NaN or infinity")
        return self.info.logits_of(self._run(batch))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits (..., k) into calibrated probabilities, float32 of the same shape.

        Raises:
            DataError: the last axis does not hold one logit a label.
        """
        return self.info.probabilities(logits)

    def predict(self, image: Any) -> Findings:
        """Classify one image, whatever it comes as.

        What looks odd about it is said in `Findings.warnings`; that does not change the findings.

        Args:
            image: the path of a PNG, JPEG, BMP, TIFF, WebP or DICOM file; the content of one as bytes; a file object
                opened in binary mode; a Pillow image; or an array, uint8 or uint16, (H, W), (H, W, 1) or (H, W, 3) in
                the order RGB. `cv2.imread` gives BGR and loses the bits of 16: give the path instead. Orientation
                (EXIF) and bit depth are treated alike in all of them.

        Raises:
            DataError: the image is missing, damaged, or not what the model was trained on.
        """
        prepared = prepare(image, self.spec, self._gate, self._view)
        if self._gate == "error" and (text := blank_text(prepared.image)) is not None:
            named = f"{os.fsdecode(image)}: " if isinstance(image, str | os.PathLike) else ""
            raise DataError(f"{named}{text}; go on at your own risk with --gate=off")
        logits, cam = self._run.both(normalize(prepared.pixels, self.spec))
        warnings = prepared.notes + image_warnings(prepared.image, min(self.spec.height, self.spec.width))
        return replace(self.decide(self.info.logits_of(logits)), warnings=warnings, cam=cam)

    def decide(self, logits: np.ndarray) -> Findings:
        """Give the findings that belong to the logits (k,) of one image."""
        probabilities = self.probabilities(logits)
        thresholds = np.asarray(self.info.thresholds, np.float32)
        # argmax gives the first of equals: exactly one class, whatever the logits.
        called = (
            np.arange(len(probabilities)) == probabilities.argmax()
            if self.info.exclusive
            else (probabilities >= thresholds)
        )
        return Findings(
            self.labels,
            np.asarray(logits, np.float32),
            probabilities,
            thresholds,
            tuple(bool(flag) for flag in called),
            activation=self.info.activation,
        )


def _check_shape(role: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise ModelFileError(
            f"the model's {role} has shape {found}, its own metadata says {shape}; the file was packed with the wrong "
            "metadata, convert it again"
        )


def _short(value: np.floating[Any]) -> float:
    """Give a float32 as the shortest float that reads back as it, for JSON."""
    return float(np.format_float_scientific(value, unique=True))

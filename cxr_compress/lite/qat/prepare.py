"""A float model -> a model that trains with the rounding of its int8 file, and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.lite.calibration import DEFAULT_STEPS, collect_images
from cxr_compress.lite.freeze import static_shape
from cxr_compress.lite.qat.fold import FoldedModel, Origin, fold_batch_norms
from cxr_compress.lite.qat.graph import read_steps
from cxr_compress.lite.qat.ranges import calibrate, share_ranges
from cxr_compress.lite.qat.wrap import wrap_steps
from cxr_compress.models.masked import hold_zeros

Progress = Callable[[str], None]


@dataclass(frozen=True)
class QatModel:
    """A model in quantisation-aware training.

    Attributes:
        model: what is trained, with `train.fit` as any other: its weights hold all of its state, ranges included. It
            cannot be saved as a file; `prepare_qat` with the same arguments and its weights make it again.
        original: the float model it was made of; `strip_qat` gives the same architecture back.
        kernels: layer of `model` without PREFIX -> its kernel variable and its bias variable or None.
        origins: by the same names, where in `original` those weights belong.
        masks: by the same names, where kernels stay zero (0) or may train (1).
    """

    model: Any = field(repr=False)
    original: Any = field(repr=False)
    kernels: Mapping[str, tuple[Any, Any]] = field(repr=False)
    origins: Mapping[str, Origin] = field(repr=False)
    masks: Mapping[str, np.ndarray] = field(repr=False)


def prepare_qat(
    model: Any,
    calibration: Iterable[np.ndarray],
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    calibration_steps: int = DEFAULT_STEPS,
    input_size: int | tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> QatModel:
    """Return a trainable copy of `model` that rounds as its int8 file will; `model` is left as it is.

    Batch norms are folded (see `fold`), kernels are rounded per channel, activations to ranges that start from the
    calibration images and then follow the training batches. It is worth its time where int8 after training loses too
    much: a step costs one to two float ones. Train with a tenth or less of the float learning rate. The same model
    and images give the same weights, ranges included.

    Args:
        model: functional or Sequential tf_keras model of one image input that gives logits; nested models are opened
            up. Layers that are frozen stay frozen.
        calibration: batches float32 (n, height, width, channels), preprocessed as the model's input: training images.
        masks: layer of `model` (nested models' names in front) -> 1 kept, 0 zero, of its kernel's shape
            (`models.masked.zero_masks`): those weights are set to 0, and stay it through training and conversion.
        calibration_steps: images taken from `calibration` at most.
        input_size: of the calibration images, where the model leaves its height and width open.
        progress: is told each stage and its seconds.

    Raises:
        UnsupportedLayerError: a layer that cannot be trained quantised: its name, its type and what to do.
        DataError: the calibration images are not what the model takes, or too few.
        CompressionError: a mask fits no kernel, or an activation is NaN or infinite on the calibration images.
    """
    report = _Stages(progress or (lambda line: None))
    folded = fold_batch_norms(model)
    by_kernel = _masks_of_kernels(folded, masks or {})
    _, *shape = static_shape(tuple(model.inputs[0].shape), 1, input_size)
    images = collect_images(calibration, (shape[0], shape[1], shape[2]), calibration_steps)
    report.done("batch norms folded")
    steps = read_steps(folded.model)
    groups = share_ranges(steps)
    names = [steps.calls[number].name for group in groups for number in group]
    ranges = calibrate(folded.model, names, images)
    report.done(f"ranges calibrated on {len(images)} images")
    trained, kernels = wrap_steps(folded.model, steps, groups, ranges)
    hold_zeros([(kernels[name][0], mask) for name, mask in by_kernel.items()])
    report.done(f"{len(kernels)} layers wrapped")
    return QatModel(trained, model, kernels, folded.origins, by_kernel)


class _Stages:
    """Tells when a stage is done and how long it took."""

    def __init__(self, report: Progress) -> None:
        self._report, self._since = report, time.perf_counter()

    def done(self, stage: str) -> None:
        now = time.perf_counter()
        self._report(f"{stage} {now - self._since:.1f} s")
        self._since = now


def _masks_of_kernels(folded: FoldedModel, masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks by the names of the folded model's layers.

    Raises:
        CompressionError: a mask's layer has no kernel in the model, or a kernel of another shape.
    """
    found = {
        name: masks[origin.layer]
        for name, origin in folded.origins.items()
        if origin.layer in masks and not origin.spatial
    }
    unknown = sorted(set(masks) - {folded.origins[name].layer for name in found})
    if unknown:
        raise CompressionError(
            f"masks for {', '.join(unknown)}, where the model has no kernel: take the masks from this very model"
        )
    for name, mask in found.items():
        shape = tuple(folded.model.get_layer(name).weights[0].shape)
        if tuple(np.shape(mask)) != shape:
            raise CompressionError(
                f"the mask of {name} has shape {np.shape(mask)}, its kernel {shape}: take the masks from this "
                "very model"
            )
    return found

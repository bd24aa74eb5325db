"""What a file says of its probabilities and decisions, fitted on dev films with the logits of that very file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, ModelInfo
from cxr_compress.errors import DataError
from cxr_compress.evaluate.calibrate import choose_calibration
from cxr_compress.evaluate.scorable import Floats, Images, Progress, from_classifier, run_model

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
        progress: called as (films done, films in all).

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
    films: str,
    held_out: str = HELD_OUT,
    columns: Sequence[int] | None = None,
    force: bool = False,
) -> ModelInfo:
    """The same with slope, offset and threshold of each finding fitted on dev (`choose_calibration`), and said so.

    Args:
        info: of the file; findings that are not fitted keep what it says.
        labels: (n, m), 0 or 1, or nan where unknown.
        logits: (n, m) of this very file.
        pos_weight: (m,) of the training loss; ones for an unweighted loss.
        films: what the labels are of, in words.
        held_out: why the films may be used for that, in words.
        columns: (m,) the file's findings that these are; all of them by default.
        force: go on where a finding becomes rarer as its logit rises; its source then says so.

    Raises:
        DataError: as `choose_calibration`, or a calibration that falls by more than chance.
    """
    columns = range(len(info.labels)) if columns is None else columns
    chosen = choose_calibration(labels, logits, pos_weight)
    falling = [info.labels[column] for column, falls in zip(columns, chosen.falling, strict=True) if falls]
    if falling and not force:
        raise DataError(
            f"the calibration of {', '.join(falling)} falls on {films}: the higher the logit of {info.model_name}, the "
            "rarer the finding; most likely its outputs stand in another order, the finding is the other of two "
            "classes, or its images were prepared in another way: correct that, or go on with --force"
        )
    slope, offset, thresholds = (list(own) for own in (info.logit_slope, info.logit_offset, info.thresholds))
    for place, column in enumerate(columns):
        slope[column], offset[column] = chosen.slope[place], chosen.offset[place]
        thresholds[column] = chosen.thresholds[place]
    left = ", ".join(name for column, name in enumerate(info.labels) if column not in set(columns))
    rule = f"largest sensitivity + specificity on {films}, {held_out}; choose your own before any use"
    source = chosen.source(films, [info.labels[column] for column in columns])
    if falling:
        source = f"{source}; the calibration of {', '.join(falling)} FALLS: worse than chance"
    return replace(
        info,
        logit_slope=tuple(slope),
        logit_offset=tuple(offset),
        thresholds=tuple(thresholds),
        threshold_source=f"{rule}; of {left}: {info.threshold_source}" if left else rule,
        calibration_source=f"{source}; of {left}: {info.calibration_source}" if left else source,
    )


def fittable(labels: ArrayLike) -> list[int]:
    """The columns of labels (n, k) that hold both a 0 and a 1: of others no threshold can be chosen."""
    values = np.asarray(labels, np.float64)
    return [column for column in range(values.shape[1]) if {0.0, 1.0} <= set(values[:, column])]

"""What is measured of a candidate on the dev images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy.typing as npt

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.evaluate.degradation import measure_degradation

_MEASURED = ("auroc", "auroc_drop", "loss", "logit_distance")


@dataclass(frozen=True)
class CandidateScore:
    """A compressed model on the dev images, beside the original float model on the same.

    Attributes:
        auroc: mean over findings.
        auroc_low: lower end of its 95 % interval over patients; None where it has none.
        auroc_high: upper end.
        auroc_drop: AUROC of the original model minus this one.
        auroc_drop_high: one-sided 97.5 % upper bound of the drop, paired bootstrap over patients; None where dev is
            too small for one.
        loss: mean weighted cross-entropy, as in training.
        logit_distance: root mean square distance of the logits from the original model's, in standard deviations of the
            latter per finding; 0 for the original model itself.
        tflite_bytes: of the file, metadata included; as predicted where none was made yet.
        macs: multiply-accumulates per image; None where they are not known.
        seconds: what recovering and judging took.
        deflated_bytes: of the file after DEFLATE.
        params: of the Keras model.
        latency_ms: per image, where it was measured or predicted.
    """

    auroc: float
    auroc_low: float | None
    auroc_high: float | None
    auroc_drop: float
    auroc_drop_high: float | None
    loss: float
    logit_distance: float
    tflite_bytes: int
    macs: int | None
    seconds: float = 0.0
    deflated_bytes: int | None = None
    params: int | None = None
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; nan and infinity become None, which is what JSON knows."""
        return {name: None if _unknown(value) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CandidateScore:
        """The inverse of `to_dict`.

        Raises:
            CompressionError: other fields.
        """
        if not isinstance(values, dict) or set(values) != {field.name for field in fields(cls)}:
            raise CompressionError("expected the score of a candidate as this version writes it, got other fields")
        measured: dict[str, Any] = {name: math.nan for name in _MEASURED if values[name] is None}
        return cls(**{**values, **measured})


def score_on_dev(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    original_logits: npt.ArrayLike,
    patients: Sequence[str],
    *,
    tflite_bytes: int,
    macs: int | None,
    seconds: float = 0.0,
    deflated_bytes: int | None = None,
    params: int | None = None,
    latency_ms: float | None = None,
    pos_weight: npt.ArrayLike = 1.0,
    activation: str = "sigmoid",
    samples: int = 1000,
    seed: int = 0,
) -> CandidateScore:
    """Judge a candidate by its logits on the dev images.

    Args:
        labels: (images, findings), 0 to 1, or nan where unknown; soft ones count in the loss alone.
        logits: like labels, of the candidate.
        original_logits: like labels, of the original float model.
        patients: (images,) whose they are.
        tflite_bytes: of the file, metadata included; as predicted where none was made yet.
        macs: multiply-accumulates per image; None where they are not known.
        seconds: what recovering and scoring took.
        deflated_bytes: of the file after DEFLATE.
        params: of the Keras model.
        latency_ms: per image, where it was measured or predicted.
        pos_weight: (findings,) or one number, what training counted positives with.
        activation: "sigmoid", or "softmax" for classes that exclude one another.
        samples: resampled sets of patients.
        seed: of the resampling.

    Raises:
        DataError: shapes disagree, or no finding has both classes on dev.
    """
    degradation = measure_degradation(
        labels,
        logits,
        original_logits,
        patients,
        pos_weight=pos_weight,
        activation=activation,
        samples=samples,
        seed=seed,
    )
    auroc, drop = degradation.auroc, degradation.auroc_drop
    if math.isnan(auroc.value):
        raise DataError(
            f"no finding has images with and without it among the {len(patients)} dev images, so nothing can be chosen "
            "on them: give a larger dev_fraction in the file of --recipe"
        )
    return CandidateScore(
        auroc=auroc.value,
        auroc_low=_known(auroc.low),
        auroc_high=_known(auroc.high),
        auroc_drop=drop.value,
        auroc_drop_high=_known(drop.high),
        loss=degradation.loss,
        logit_distance=degradation.logit_distance,
        tflite_bytes=tflite_bytes,
        macs=macs,
        seconds=seconds,
        deflated_bytes=deflated_bytes,
        params=params,
        latency_ms=latency_ms,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

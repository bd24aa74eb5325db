"""From logits on dev to what a model file carries: how they become probabilities, and where a finding begins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.errors import DataError
from cxr_compress.metrics import choose_threshold


class Calibration(NamedTuple):
    """What turns logits into probabilities and decisions, one number per finding.

    Attributes:
        slope: probability = sigmoid(slope * logit + offset).
        offset: See slope.
        thresholds: On that probability.
    """

    slope: tuple[float, ...]
    offset: tuple[float, ...]
    thresholds: tuple[float, ...]


def choose_calibration(labels_dev: ArrayLike, logits_dev: ArrayLike, pos_weight: ArrayLike) -> Calibration:
    """Undoes the class weights of the training loss, and picks each threshold on the dev set.

    A loss that counts positives ``pos_weight`` times teaches a network logits that are log(pos_weight) too high: the
    offset takes that away again, so that probabilities refer to the prevalence of the training set. The slope stays
    1: over- or underconfidence of the network itself is not corrected, so read the probabilities as scores that are
    roughly calibrated. Thresholds maximise sensitivity + specificity; they come from dev alone, carry its sampling
    error, and must be chosen again for a clinic with other patients or other costs of a missed finding.

    Args:
        labels_dev: (n, k), 0 or 1, or nan where unknown.
        logits_dev: (n, k), from the very file that will ship: quantisation moves logits.
        pos_weight: (k,) as in the loss; ones for an unweighted loss.

    Raises:
        DataError: Shapes disagree, a weight is not above 0, or a finding has one class only in dev.
    """
    labels, logits = np.asarray(labels_dev, np.float64), np.asarray(logits_dev, np.float64)
    weights = np.asarray(pos_weight, np.float64)
    if labels.shape != logits.shape or labels.shape[1:] != weights.shape or weights.ndim != 1:
        raise DataError(
            f"expected labels and logits (films, findings) and one weight per finding, got {labels.shape}, "
            f"{logits.shape} and {weights.shape}"
        )
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise DataError(f"expected class weights above 0, got {weights.tolist()}")
    offset = -np.log(weights)
    probabilities = undo_class_weights(logits, weights)
    thresholds = tuple(choose_threshold(labels[:, k], probabilities[:, k]) for k in range(len(weights)))
    return Calibration((1.0,) * len(weights), tuple(float(value) for value in offset), thresholds)


def undo_class_weights(logits: ArrayLike, pos_weight: ArrayLike) -> NDArray[np.float32]:
    """Probabilities from the logits of a network whose loss counted positives ``pos_weight`` times.

    Args:
        logits: (n, k).
        pos_weight: (k,), above 0; ones for an unweighted loss.

    Returns:
        float32 (n, k); they refer to the prevalence of the training set.
    """
    return _sigmoid(np.asarray(logits, np.float64) - np.log(np.asarray(pos_weight, np.float64)))


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float32]:
    """In float32, as the device computes it: a threshold must lie between probabilities that can occur there."""
    small = np.exp(-np.abs(z))  # never of a positive number: no overflow at extreme logits
    return (np.where(z >= 0, 1.0, small) / (1.0 + small)).astype(np.float32)

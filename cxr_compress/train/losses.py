"""The training loss: binary cross-entropy per finding on logits, with rare findings weighted up."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.train.config import FitConfig

_LARGEST_WEIGHT = 50.0  # a finding with a handful of positives must not drown the others, nor blow up the gradient


class WeightedBce(keras.losses.Loss):
    """Mean over films and known labels of ``pos_weight * y * softplus(-z) + (1 - y) * softplus(z)`` for logits ``z``.

    Weighting positives by ``p`` adds ``log(p)`` to the logits that the network learns, so a probability has to
    subtract it again: ``sigmoid(z - log(p))``. With ``focal_gamma`` g the first term is multiplied by ``(1 - q)^g``
    and the second by ``q^g``, where ``q = sigmoid(z)``: films that are easy count less.

    Source: Rajpurkar et al., "CheXNet" (arXiv 1711.05225), section 2.1, with its two class weights divided by the
    negative one; softplus form as in ``tf.nn.weighted_cross_entropy_with_logits``; Lin et al., "Focal Loss for Dense
    Object Detection" (arXiv 1708.02002), equation 5.
    """

    def __init__(
        self, pos_weight: np.ndarray, *, masked: bool = False, focal_gamma: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(name="weighted_bce")
        self.pos_weight = _checked(pos_weight)
        self.masked = masked
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per film, (batch,), from labels and logits of shape (batch, findings)."""
        logits = tf.cast(y_pred, tf.float32)
        labels = tf.cast(y_true, tf.float32)
        if not self.masked:
            return tf.reduce_mean(self._terms(labels, logits), axis=-1)
        known = tf.math.is_finite(labels)
        # Unknown labels are replaced before the loss is formed: a NaN times 0 would still be one, in the gradient too.
        terms = tf.where(known, self._terms(tf.where(known, labels, 0.0), logits), 0.0)
        share = tf.maximum(tf.reduce_mean(tf.cast(known, tf.float32)), 1.0 / tf.cast(tf.size(known), tf.float32))
        return tf.reduce_mean(terms, axis=-1) / share

    def _terms(self, labels: Any, logits: Any) -> Any:
        """The loss of each label."""
        if self.label_smoothing:
            labels = labels * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        weights = tf.constant(self.pos_weight)
        positive, negative = tf.nn.softplus(-logits), tf.nn.softplus(logits)
        if self.focal_gamma:
            # (1 - q)^g as exp(-g * softplus(z)): finite for every logit, and so is its gradient.
            easy = tf.exp(-self.focal_gamma * negative), tf.exp(-self.focal_gamma * positive)
            positive, negative = positive * easy[0], negative * easy[1]
        return weights * labels * positive + (1.0 - labels) * negative

    def get_config(self) -> dict[str, Any]:
        """Return what the constructor needs, JSON-ready."""
        return {
            "pos_weight": [float(weight) for weight in self.pos_weight],
            "masked": self.masked,
            "focal_gamma": self.focal_gamma,
            "label_smoothing": self.label_smoothing,
        }


def weighted_bce(
    pos_weight: np.ndarray, *, masked: bool = False, focal_gamma: float = 0.0, label_smoothing: float = 0.0
) -> WeightedBce:
    """Make the loss that weights the positives of finding ``i`` by ``pos_weight[i]``.

    Args:
        pos_weight: (findings,), positive and finite; ones give the plain cross-entropy.
        masked: Labels may be NaN, which means unknown: they do not count, and the others of the batch count more.
        focal_gamma: 0 for the cross-entropy; 2 is usual for a focal loss.
        label_smoothing: Share by which labels move towards 0.5.

    Raises:
        CompressionError: A weight is not a positive number.
    """
    return WeightedBce(pos_weight, masked=masked, focal_gamma=focal_gamma, label_smoothing=label_smoothing)


def distillation_loss(their_logits: Any, logits: Any) -> Any:
    """Mean cross-entropy between a teacher's probabilities and what a student's logits say; no gradient reaches it.

    Args:
        their_logits: (films, findings) of the teacher.
        logits: Of the student, of the same type.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2, at
    temperature 1, per finding.
    """
    soft = tf.sigmoid(tf.stop_gradient(their_logits))
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=soft, logits=logits))


def make_loss(config: FitConfig, pos_weight: np.ndarray, *labels: np.ndarray) -> WeightedBce:
    """The loss that a training asks for; unknown labels are looked for only where there are some.

    Args:
        config: Kind of loss, its exponent, smoothing.
        pos_weight: As ``weighted_bce``.
        labels: Every table of labels that it will see.
    """
    return weighted_bce(
        pos_weight,
        masked=any(np.isnan(table).any() for table in labels),
        focal_gamma=config.focal_gamma if config.loss == "focal" else 0.0,
        label_smoothing=config.label_smoothing,
    )


def pos_weights(labels: np.ndarray) -> np.ndarray:
    """Return negatives per positive for each finding, clipped to [1/50, 50]: the usual choice of ``pos_weight``.

    Args:
        labels: (films, findings), 0 to 1 (above 0.5 is a positive), or NaN for unknown, which is not counted.

    Returns:
        float32 (findings,).

    Raises:
        DataError: ``labels`` is not a table, or a finding has no positive or no negative film.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels):  # noqa: PLR2004 - films x findings
        raise DataError(f"labels must be (films, findings) with at least one film, got shape {labels.shape}")
    known = np.count_nonzero(np.isfinite(labels), axis=0).astype(np.float64)
    positives = np.count_nonzero(labels > 0.5, axis=0).astype(np.float64)  # noqa: PLR2004 - soft labels: likelier so
    one_sided = np.flatnonzero((positives == 0) | (positives == known))
    if one_sided.size:
        column = int(one_sided[0])
        raise DataError(
            f"each finding needs positive and negative films to be trained; column {column} of the labels has "
            f"{int(positives[column])} positives among {int(known[column])} films: leave the finding out or add films"
        )
    weights = (known - positives) / positives
    return np.clip(weights, 1.0 / _LARGEST_WEIGHT, _LARGEST_WEIGHT).astype(np.float32)


def _checked(pos_weight: np.ndarray) -> np.ndarray:
    weights = np.atleast_1d(np.asarray(pos_weight, dtype=np.float32))
    if weights.ndim != 1 or not np.all(np.isfinite(weights)) or not np.all(weights > 0):
        raise CompressionError(f"pos_weight must be one positive number per finding, got {weights.tolist()}")
    return weights

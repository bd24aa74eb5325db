"""The training losses: cross-entropy on logits, of each finding by itself or of classes that exclude one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.metrics import check_exclusive
from cxr_compress.train.config import FitConfig

_LARGEST_WEIGHT = 50.0  # a finding with a handful of positives must not drown the others, nor blow up the gradient


class WeightedBce(keras.losses.Loss):
    """Mean over images and known labels of `pos_weight * y * softplus(-z) + (1 - y) * softplus(z)` for logits `z`.

    Weighting positives by `p` adds `log(p)` to the logits that the network learns, so a probability has to
    subtract it again: `sigmoid(z - log(p))`. With `focal_gamma` g the first term is multiplied by `(1 - q)^g`
    and the second by `q^g`, where `q = sigmoid(z)`: images that are easy count less.

    Source: Rajpurkar et al., "CheXNet" (arXiv 1711.05225), section 2.1, with its two class weights divided by the
    negative one; softplus form as in `tf.nn.weighted_cross_entropy_with_logits`; Lin et al., "Focal Loss for Dense
    Object Detection" (arXiv 1708.02002), equation 5.
    """

    def __init__(
        self, pos_weight: np.ndarray, *, masked: bool = False, focal_gamma: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        """Check the weights.

        Args:
            pos_weight: (findings,), positive and finite; ones give the plain cross-entropy.
            masked: labels may be NaN, which means unknown: they do not count, and the others of the batch count more.
            focal_gamma: 0 for the cross-entropy; 2 is usual for a focal loss.
            label_smoothing: share by which labels move towards 0.5.

        Raises:
            CompressionError: a weight is not a positive number.
        """
        super().__init__(name="weighted_bce")
        self.pos_weight = _checked(pos_weight)
        self.masked = masked
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per image, (batch,), from labels and logits of shape (batch, findings)."""
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

    def known(self, labels: Any) -> Any:
        """Which labels count, bool (batch, findings)."""
        return tf.math.is_finite(labels)


class CategoricalCrossEntropy(keras.losses.Loss):
    """Mean over images of known class of `-sum(class_weight * y * log(softmax(z)))` for logits `z`.

    The classes exclude one another: labels `y` of an image add up to 1, whether they are 0 and 1 or soft shares. An
    image with an unknown label is left out as a whole. Weighting class i by `w_i` adds `log(w_i)` to the logits
    that the network learns, so a probability has to subtract it again: `softmax(z - log(w))`. Label smoothing moves
    labels towards equal shares of all classes.

    Source: softmax form as in `tf.nn.softmax_cross_entropy_with_logits`; Szegedy et al., "Rethinking the Inception
    Architecture" (arXiv 1512.00567), section 7, for the smoothing.
    """

    def __init__(self, class_weight: np.ndarray, *, masked: bool = False, label_smoothing: float = 0.0) -> None:
        super().__init__(name="categorical_cross_entropy")
        self.class_weight = _checked(class_weight)
        self.masked = masked
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per image, (batch,), from labels and logits of shape (batch, classes)."""
        logits = tf.cast(y_pred, tf.float32)
        labels = tf.cast(y_true, tf.float32)
        if not self.masked:
            return self._terms(labels, logits)
        known = self.known(labels)
        terms = tf.where(known, self._terms(tf.where(known[:, None], labels, 0.0), logits), 0.0)
        share = tf.maximum(tf.reduce_mean(tf.cast(known, tf.float32)), 1.0 / tf.cast(tf.size(known), tf.float32))
        return terms / share

    def known(self, labels: Any) -> Any:
        """Which images count, bool (batch,)."""
        return tf.reduce_all(tf.math.is_finite(labels), axis=-1)

    def _terms(self, labels: Any, logits: Any) -> Any:
        if self.label_smoothing:
            classes = len(self.class_weight)
            labels = labels * (1.0 - self.label_smoothing) + self.label_smoothing / classes
        return -tf.reduce_sum(tf.constant(self.class_weight) * labels * tf.nn.log_softmax(logits), axis=-1)


_TrainingLoss = WeightedBce | CategoricalCrossEntropy


def distillation_loss(their_logits: Any, logits: Any, activation: str = "sigmoid", of: str = "probabilities") -> Any:
    """How far a student is from its teacher, by what both say of the same images; no gradient reaches the teacher.

    Of "probabilities" it is the mean cross-entropy between theirs and what the student's logits say. It hardly asks
    for more where a teacher is sure: logits of 4 and 8 are 0.98 and 1.00. Of "logits" it is their mean squared
    difference, divided by 8 (by 2 over classes that exclude one another, whose logits count from their mean), which is
    what the cross-entropy rises by next to a teacher that is undecided.

    Args:
        their_logits: (images, findings) of the teacher.
        logits: of the student, of the same type.
        activation: "sigmoid", per finding, or "softmax", over classes that exclude one another.
        of: "probabilities" or "logits".

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2, at
    temperature 1 and, for logits, in the limit of high temperature (section 2.1).
    """
    theirs = tf.stop_gradient(their_logits)
    exclusive = activation == "softmax"
    if of == "logits":
        difference = logits - theirs
        if exclusive:
            difference -= tf.reduce_mean(difference, axis=-1, keepdims=True)
        return tf.reduce_mean(tf.square(difference)) / (2.0 if exclusive else 8.0)
    if exclusive:
        return -tf.reduce_mean(tf.reduce_sum(tf.nn.softmax(theirs) * tf.nn.log_softmax(logits), axis=-1))
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.sigmoid(theirs), logits=logits))


def make_loss(config: FitConfig, pos_weight: np.ndarray, *labels: np.ndarray) -> _TrainingLoss:
    """The loss that a training asks for; unknown labels are looked for only where there are some.

    Args:
        config: kind of loss, its exponent, smoothing.
        pos_weight: as `WeightedBce`, or the weight of each class where they exclude one another.
        labels: every table of labels that it will see.
    """
    masked = any(np.isnan(table).any() for table in labels)
    if config.activation == "softmax":
        return CategoricalCrossEntropy(pos_weight, masked=masked, label_smoothing=config.label_smoothing)
    return WeightedBce(
        pos_weight,
        masked=masked,
        focal_gamma=config.focal_gamma if config.loss == "focal" else 0.0,
        label_smoothing=config.label_smoothing,
    )


def pos_weights(labels: np.ndarray) -> np.ndarray:
    """Return negatives per positive for each finding, clipped to [1/50, 50]: the usual choice of `pos_weight`.

    Args:
        labels: (images, findings), 0 to 1 (above 0.5 is a positive), or NaN for unknown, which is not counted.

    Returns:
        float32 (findings,).

    Raises:
        DataError: `labels` is not a table, or a finding has no positive or no negative image.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels):  # noqa: PLR2004 - images x findings
        raise DataError(f"labels must be (images, findings) with at least one image, got shape {labels.shape}")
    known = np.count_nonzero(np.isfinite(labels), axis=0).astype(np.float64)
    positives = np.count_nonzero(labels > 0.5, axis=0).astype(np.float64)  # noqa: PLR2004 - soft labels: likelier so
    one_sided = np.flatnonzero((positives == 0) | (positives == known))
    if one_sided.size:
        column = int(one_sided[0])
        raise DataError(
            f"each finding needs positive and negative images to be trained; column {column} of the labels has "
            f"{int(positives[column])} positives among {int(known[column])} images: leave the finding out or add images"
        )
    weights = (known - positives) / positives
    return np.clip(weights, 1.0 / _LARGEST_WEIGHT, _LARGEST_WEIGHT).astype(np.float32)


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Return the weight of each class so that all count alike in the loss, clipped to [1/50, 50].

    Images in all, divided by the number of classes and by the images of the class: on average an image weighs 1.

    Args:
        labels: (images, classes) of classes that exclude one another; a row with NaN is not counted.

    Returns:
        float32 (classes,).

    Raises:
        DataError: an image has no class or several, or a class has no image.
    """
    labels = np.asarray(labels)
    known = check_exclusive(labels, where="training")
    shares = labels[known].astype(np.float64).sum(axis=0)
    if not shares.all():
        raise DataError(
            f"each class needs images to be trained; column {int(np.argmin(shares))} of the labels has none among "
            f"{len(shares)} classes and {int(known.sum())} images: leave the class out or add images"
        )
    weights = shares.sum() / (len(shares) * shares)
    return np.clip(weights, 1.0 / _LARGEST_WEIGHT, _LARGEST_WEIGHT).astype(np.float32)


def balanced_weights(labels: np.ndarray, activation: str) -> np.ndarray:
    """`class_weights` of classes that exclude one another ("softmax"), `pos_weights` of findings ("sigmoid").

    Raises:
        DataError: as those two.
    """
    return class_weights(labels) if activation == "softmax" else pos_weights(labels)


def _checked(pos_weight: np.ndarray) -> np.ndarray:
    weights = np.atleast_1d(np.asarray(pos_weight, dtype=np.float32))
    if weights.ndim != 1 or not np.all(np.isfinite(weights)) or not np.all(weights > 0):
        raise CompressionError(f"pos_weight must be one positive number per finding, got {weights.tolist()}")
    return weights

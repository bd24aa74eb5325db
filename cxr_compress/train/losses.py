"""The training loss: binary cross-entropy per finding on logits, with rare findings weighted up."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras

_LARGEST_WEIGHT = 50.0  # a finding with a handful of positives must not drown the others, nor blow up the gradient


class WeightedBce(keras.losses.Loss):
    """Mean over films and findings of ``pos_weight * y * softplus(-z) + (1 - y) * softplus(z)`` for logits ``z``.

    Weighting positives by ``p`` adds ``log(p)`` to the logits that the network learns, so a probability has to
    subtract it again: ``sigmoid(z - log(p))``.

    Source: Rajpurkar et al., "CheXNet" (arXiv 1711.05225), section 2.1, with its two class weights divided by the
    negative one; softplus form as in ``tf.nn.weighted_cross_entropy_with_logits``.
    """

    def __init__(self, pos_weight: np.ndarray) -> None:
        super().__init__(name="weighted_bce")
        self.pos_weight = _checked(pos_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per film, (batch,), from labels and logits of shape (batch, findings)."""
        labels = tf.cast(y_true, y_pred.dtype)
        weights = tf.constant(self.pos_weight, dtype=y_pred.dtype)
        terms = weights * labels * tf.nn.softplus(-y_pred) + (1.0 - labels) * tf.nn.softplus(y_pred)
        return tf.reduce_mean(terms, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return what the constructor needs, JSON-ready."""
        return {"pos_weight": [float(weight) for weight in self.pos_weight]}


def weighted_bce(pos_weight: np.ndarray) -> WeightedBce:
    """Make the loss that weights the positives of finding ``i`` by ``pos_weight[i]``.

    Args:
        pos_weight: (findings,), positive and finite; ones give the plain cross-entropy.

    Raises:
        CompressionError: A weight is not a positive number.
    """
    return WeightedBce(pos_weight)


def pos_weights(labels: np.ndarray) -> np.ndarray:
    """Return negatives per positive for each finding, clipped to [1/50, 50]: the usual choice of ``pos_weight``.

    Args:
        labels: (films, findings), 0 or 1.

    Returns:
        float32 (findings,).

    Raises:
        DataError: ``labels`` is not a table, or a finding has no positive or no negative film.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels):  # noqa: PLR2004 - films x findings
        raise DataError(f"labels must be (films, findings) with at least one film, got shape {labels.shape}")
    positives = np.count_nonzero(labels, axis=0).astype(np.float64)
    one_sided = np.flatnonzero((positives == 0) | (positives == len(labels)))
    if one_sided.size:
        column = int(one_sided[0])
        raise DataError(
            f"each finding needs positive and negative films to be trained; column {column} of the labels has "
            f"{int(positives[column])} positives among {len(labels)} films: leave the finding out or add films"
        )
    weights = (len(labels) - positives) / positives
    return np.clip(weights, 1.0 / _LARGEST_WEIGHT, _LARGEST_WEIGHT).astype(np.float32)


def _checked(pos_weight: np.ndarray) -> np.ndarray:
    weights = np.atleast_1d(np.asarray(pos_weight, dtype=np.float32))
    if weights.ndim != 1 or not np.all(np.isfinite(weights)) or not np.all(weights > 0):
        raise CompressionError(f"pos_weight must be one positive number per finding, got {weights.tolist()}")
    return weights

"""A running average of a model's weights, which generalises better than the last of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf


class WeightAverage:
    """The exponential moving average of all weights of a model, batch-norm statistics included.

    It costs a copy of the weights and one multiply-add each per step. The decay of step ``t`` is
    ``min(decay, (1 + t) / (10 + t))``, so that the random start is forgotten within the first epoch.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (arXiv 1703.01780), section 2; the warm-up is
    that of ``tf.train.ExponentialMovingAverage``.

    Attributes:
        weights: The averages, in the order of the model's weights.
        variables: What has to be saved to go on: the averages and the number of updates.
    """

    def __init__(self, weights: Sequence[Any], decay: float) -> None:
        """Start from the weights as they are.

        Args:
            weights: ``model.weights``.
            decay: In (0, 1); about 1 / (1 - decay) steps are averaged over.
        """
        self._live = list(weights)
        self._decay = decay
        self.weights = [_own(weight.numpy(), "average") for weight in weights]
        self._updates = _own(0.0, "updates")

    @property
    def variables(self) -> list[Any]:
        """The averages, then the number of updates."""
        return [*self.weights, self._updates]

    def update(self) -> None:
        """Take in the weights as they are now; may be called inside a ``tf.function``."""
        self._updates.assign_add(1.0)
        decay = tf.minimum(self._decay, (1.0 + self._updates) / (10.0 + self._updates))
        for average, weight in zip(self.weights, self._live, strict=True):
            average.assign_sub((1.0 - decay) * (average - weight))

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model have the averages, and its own weights again afterwards."""
        own = [weight.numpy() for weight in self._live]
        try:
            for weight, average in zip(self._live, self.weights, strict=True):
                weight.assign(average)
            yield
        finally:
            for weight, value in zip(self._live, own, strict=True):
                weight.assign(value)


def _own(value: Any, name: str) -> Any:
    """A variable that, where a model is replicated, each replica keeps up by itself: all of them do the same sums."""
    return tf.Variable(
        value,
        trainable=False,
        name=name,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )

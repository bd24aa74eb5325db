"""How one process trains, and how the replicas of a distribution do: the same few verbs for both.

`fit` asks one of the two for everything that differs, and has no other branch for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.models.keras_graph import rebuilt
from cxr_compress.train.checkpoints import RunFolder
from cxr_compress.train.distribute import Distribution
from cxr_compress.train.step import (
    Forward,
    Objective,
    Step,
    WeightAverage,
    make_forward,
    make_terms,
    make_train_step,
    training_step,
)

_T = TypeVar("_T")


class Alone:
    """Trains in this process, on the device that TensorFlow takes by itself."""

    is_chief = True

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are made."""
        return contextlib.nullcontext()

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        """Where the training happens."""
        return contextlib.nullcontext()

    def share(self, _batch_size: int) -> tuple[int, int]:
        """Part 0 of 1: whole batches."""
        return 0, 1

    def adopt(self, model: Any) -> Any:
        """The model that is trained: the given one itself."""
        return model

    def follow(self, teacher: Any | None) -> Any | None:
        """The model that is learnt from."""
        return teacher

    def give_back(self, _trained: Any, _model: Any) -> None:
        """Nothing to do: they are the same."""

    def open_folder(self, path: Path, facts: Mapping[str, Any]) -> RunFolder:
        """The folder of the run."""
        return RunFolder(path, facts)

    def agree(self, value: Any) -> Any:
        """One process agrees with itself."""
        return value

    def on_chief(self, act: Callable[[], _T]) -> _T | None:
        """Do it."""
        return act()

    def make_step(self, model: Any, objective: Objective, optimizer: Any, average: WeightAverage | None) -> Step:
        """As `make_train_step`."""
        return make_train_step(model, objective, optimizer, average)

    def make_forward(self, model: Any) -> Forward:
        """As `step.make_forward`."""
        return make_forward(model)


class Replicated:
    """Trains replicas of a model, each on its rows of every batch, as one process would train on the whole batch."""

    def __init__(self, distribution: Distribution) -> None:
        """Train on these workers and devices."""
        self._together = distribution
        self._strategy = distribution.strategy
        self.is_chief = distribution.is_chief
        self.guard = distribution.guard
        self.share = distribution.share
        self.open_folder = distribution.open_folder
        self.agree = distribution.agree
        self.on_chief = distribution.on_chief

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are made, one per replica."""
        return self._strategy.scope()

    def adopt(self, model: Any) -> Any:
        """A replicated copy of a model whose batch normalizations see the whole batch; `model` stays as it is.

        Raises:
            UnsupportedLayerError: the model cannot be rebuilt from its configuration.
        """
        return self._copy(model, synchronized=True)

    def follow(self, teacher: Any | None) -> Any | None:
        """A replicated copy of the model that is learnt from."""
        return None if teacher is None else self._copy(teacher, synchronized=False)

    def give_back(self, trained: Any, model: Any) -> None:
        """Put the weights of `adopt`'s copy back into the model, whose batch normalizations are plain ones."""
        for ours, theirs in zip(self._together.own_parts(trained.weights), model.weights, strict=True):
            theirs.assign(ours.numpy())

    def make_step(self, model: Any, objective: Objective, optimizer: Any, average: WeightAverage | None) -> Step:
        """Compile one step: this worker's images in, the loss of the whole batch out, the same on all workers."""
        strategy, replicas = self._strategy, self._together.replicas
        # Not the loss itself: Keras refuses to take means within a strategy, since it cannot know of what.
        loss = objective.loss
        mean_loss = lambda *of: tf.reduce_mean(loss.call(*of))  # noqa: E731
        terms = make_terms(model, replace(objective, loss=mean_loss))

        def share_of_loss(images: Any, labels: Any) -> Any:
            value, others = terms(images, labels)
            value *= _share_of_labels(loss.known(labels)) if loss.masked else 1.0 / replicas
            return tf.add_n([value, *(other / replicas for other in others)])

        one_replica = training_step(model, share_of_loss, optimizer, average)

        @tf.function
        def step(images: Any, labels: Any) -> Any:
            values = strategy.run(one_replica, args=(images, labels))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

        local = replicas // self._together.workers
        return lambda images, labels: step(self._spread(images, local), self._spread(labels, local))

    def make_forward(self, model: Any) -> Forward:
        """Compile the model's inference: each replica takes a part of the images, and every worker gets all logits."""
        strategy, replicas = self._strategy, self._together.replicas

        @tf.function
        def run(images: Any) -> Any:
            return strategy.run(lambda part: model(part, training=False), args=(images,))

        def forward(images: np.ndarray) -> np.ndarray:
            missing = -len(images) % replicas
            filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
            logits = strategy.gather(run(self._spread(filled, replicas)), axis=0)
            return logits.numpy().astype(np.float32, copy=False)[: len(images)]

        return forward

    def _spread(self, rows: np.ndarray, parts: int) -> Any:
        """Give each local replica its part: of this worker's rows, or of all rows if `parts` counts all replicas."""
        size = len(rows) // parts

        def part(context: Any) -> Any:
            index = context.replica_id_in_sync_group % parts
            return tf.constant(rows[index * size : (index + 1) * size])

        return self._strategy.experimental_distribute_values_from_function(part)

    def _copy(self, model: Any, *, synchronized: bool) -> Any:
        try:
            with self._strategy.scope():
                copy = rebuilt(model, lambda config: _synchronize_norms(config, synchronized=synchronized))
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UnsupportedLayerError(
                f"expected a Functional or Sequential model to replicate, but {model.name} cannot be rebuilt from its "
                f"configuration ({error}): train it with distribution none"
            ) from error
        for ours, theirs in zip(copy.weights, model.weights, strict=True):
            self._together.assign(ours, theirs.numpy())
        return copy


Engine = Alone | Replicated


def make_engine(distribution: Distribution | None) -> Engine:
    """What `fit` trains with."""
    return Alone() if distribution is None else Replicated(distribution)


def _share_of_labels(counting: Any) -> Any:
    """What counts in this replica's images, of all that counts in the batch: a mean weighs as much as it was over."""
    known = tf.reduce_sum(tf.cast(counting, tf.float32))
    context = tf.distribute.get_replica_context()
    return known / tf.maximum(context.all_reduce(tf.distribute.ReduceOp.SUM, known), 1.0)


def _synchronize_norms(config: dict[str, Any], *, synchronized: bool) -> None:
    """Make the batch normalizations of a model, and of the models within it, see the batches of all replicas."""
    for layer in config.get("layers", ()):
        inner = layer.get("config", {})
        if layer.get("class_name") == "BatchNormalization":
            inner["synchronized"] = synchronized
        elif isinstance(inner, dict) and "layers" in inner:
            _synchronize_norms(inner, synchronized=synchronized)

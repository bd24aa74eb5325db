"""One training step and one forward pass as compiled TensorFlow functions, and the optimizer they use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.keras2 import keras
from cxr_compress.train.config import FitConfig
from cxr_compress.train.distill import FeatureTerm, with_map
from cxr_compress.train.losses import distillation_loss


class WeightAverage:
    """The exponential moving average of all weights of a model, batch-norm statistics included.

    It costs a copy of the weights and one multiply-add each per step. The decay of step `t` is
    `min(decay, (1 + t) / (10 + t))`, so that the random start is forgotten within the first epoch.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (arXiv 1703.01780), section 2; the warm-up is
    that of `tf.train.ExponentialMovingAverage`.

    Attributes:
        weights: the averages, in the order of the model's weights.
        variables: what has to be saved to go on: the averages and the number of updates.
    """

    def __init__(self, weights: Sequence[Any], decay: float) -> None:
        """Start from the weights as they are.

        Args:
            weights: `model.weights`.
            decay: in (0, 1); about 1 / (1 - decay) steps are averaged over.
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
        """Take in the weights as they are now; may be called inside a `tf.function`."""
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


Step = Callable[[np.ndarray, np.ndarray], Any]
Forward = Callable[[np.ndarray], np.ndarray]
Terms = Callable[[Any, Any], tuple[Any, list[Any]]]

_LossScaleOptimizer = keras.mixed_precision.LossScaleOptimizer


def make_optimizer(config: FitConfig, steps: int, *, scale_loss: bool = False) -> Any:
    """Adam with a linear warm-up and a half cosine down to 0 over `steps` steps, or with the end of a longer one.

    The rate follows the optimizer's own step counter, so restoring the optimizer's variables resumes it exactly.

    Args:
        config: rate, warm-up and decay.
        steps: of the whole training.
        scale_loss: multiply the loss by a factor that adapts, as training in float16 needs.
    """
    if config.schedule_epochs:
        rate: Any = _CosineTail(config.learning_rate, config.schedule_epochs * (steps // config.epochs), steps)
    else:
        warmup = round(config.warmup_fraction * steps)
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else config.learning_rate,
            decay_steps=max(1, steps - warmup),
            warmup_target=config.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    optimizer = keras.optimizers.Adam(rate, weight_decay=config.weight_decay or None)
    if config.weight_decay:
        # Decay towards 0 makes sense for kernels only: it would shrink what batch normalization scales by.
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return _LossScaleOptimizer(optimizer) if scale_loss else optimizer


class _CosineTail(keras.optimizers.schedules.LearningRateSchedule):
    """The last `steps` steps of a half cosine from `peak` down to 0 over `planned_steps`: a rewound rate.

    Source: Renda, Frankle and Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning" (arXiv
    2003.02389), section 2: retrain the pruned network with the rates that its last epochs were first trained with.
    """

    def __init__(self, peak: float, planned_steps: int, steps: int) -> None:
        """Remember the schedule and where it is entered."""
        super().__init__()
        self.peak = peak
        self.planned_steps = planned_steps
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step of the run, counted from 0; 0 from the end on."""
        share_to_go = tf.maximum(float(self.steps) - tf.cast(step, tf.float32), 0.0) / float(self.planned_steps)
        # (1 + cos(pi * (1 - left))) / 2, which in float32 would lose the digits of the small rates of a short tail.
        return self.peak * tf.square(tf.sin(0.5 * math.pi * share_to_go))

    def get_config(self) -> dict[str, Any]:
        """Return what the constructor needs, JSON-ready."""
        return {"peak": self.peak, "planned_steps": self.planned_steps, "steps": self.steps}


@dataclass(frozen=True)
class Objective:
    """What a training minimizes.

    With a teacher it is `(1 - w) * loss(labels) + w * cross-entropy(teacher's probabilities)`, plus the term of the
    maps where `features` gives one. The teacher sees the very same changed images, once for both terms.

    Attributes:
        loss: from (labels, logits) to a number.
        activation: what the logits are of, see `distillation_loss`.
        teacher: the model that is learnt from; None for the labels alone.
        distill_weight: w, the share of the teacher's probabilities.
        features: the term of the maps, which needs a teacher.
        distill_loss: of what the pull is, see `distillation_loss`.
        holds_norms: batch normalizations use the statistics that they have, and leave them as they are.
    """

    loss: Any
    activation: str = "sigmoid"
    teacher: Any | None = None
    distill_weight: float = 0.0
    features: FeatureTerm | None = None
    distill_loss: str = "probabilities"
    holds_norms: bool = False

    def distance(self, their_logits: Any, logits: Any) -> Any:
        """From the teacher, unweighted."""
        return distillation_loss(their_logits, logits, self.activation, self.distill_loss)


def make_train_step(model: Any, objective: Objective, optimizer: Any, average: WeightAverage | None = None) -> Step:
    """Compile one step: batch in, weights updated, loss out."""
    terms = make_terms(model, objective)

    def whole_loss(images: Any, labels: Any) -> Any:
        value, others = terms(images, labels)
        for other in others:
            value += other
        return value

    step = tf.function(training_step(model, whole_loss, optimizer, average))
    return lambda images, labels: step(tf.constant(images), tf.constant(labels))


def make_terms(model: Any, objective: Objective) -> Terms:
    """The terms of a batch's loss: a mean over its known labels, then means over its images and what is no mean.

    Returns:
        A function from (images, labels) to (loss of the labels, list of the other terms).
    """
    teacher, features, weight = objective.teacher, objective.features, objective.distill_weight
    ours = _viewed(model, features.match.student if features else None)
    theirs = None if teacher is None else _viewed(teacher, features.match.teacher if features else None)

    def terms(images: Any, labels: Any) -> tuple[Any, list[Any]]:
        with _norms_held(model) if objective.holds_norms else contextlib.nullcontext():
            raw, our_map = ours(images, training=True)
        logits = tf.cast(raw, tf.float32)
        value, others = objective.loss(labels, logits), []
        if theirs is not None:
            their_logits, their_map = theirs(images, training=False)
            if weight:
                value = (1.0 - weight) * value
                others.append(weight * objective.distance(their_logits, logits))
            if features is not None:
                others.append(features.of(our_map, their_map))
        return value, [*others, tf.add_n(model.losses)] if model.losses else others

    return terms


@contextlib.contextmanager
def _norms_held(model: Any) -> Iterator[None]:
    """Within it batch normalizations compute as they do in inference, whatever the rest of the network does.

    A layer that is not trainable does so in Keras. It matters only while a step is traced: what is trained was chosen
    before, so scale and offset are.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.trainable for layer in norms]
    try:
        for layer in norms:
            layer.trainable = False
        yield
    finally:
        for layer, trainable in zip(norms, before, strict=True):
            layer.trainable = trainable


def _viewed(model: Any, layer: str | None) -> Callable[..., tuple[Any, Any]]:
    """A model as a function to (logits, map of a layer), the latter None where no layer is asked for."""
    if layer is not None:
        return with_map(model, layer)
    return lambda images, training: (model(images, training=training), None)


def training_step(
    model: Any, whole_loss: Callable[[Any, Any], Any], optimizer: Any, average: WeightAverage | None = None
) -> Callable[[Any, Any], Any]:
    """One step, not yet compiled: batch in, weights updated, loss out."""
    # In float16 small gradients would underflow: the loss is multiplied before it is differentiated, and divided after.
    scales_loss = isinstance(optimizer, _LossScaleOptimizer)
    variables = model.trainable_variables

    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            value = whole_loss(images, labels)
            scaled = optimizer.get_scaled_loss(value) if scales_loss else value
        gradients = tape.gradient(scaled, variables)
        if scales_loss:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if average is not None:
            average.update()
        return value

    return step


def make_forward(model: Any) -> Forward:
    """Compile the model's inference: float32 images (batch, height, width, channels) to logits (batch, findings)."""
    compiled = tf.function(lambda images: model(images, training=False))
    return lambda images: compiled(tf.constant(images)).numpy().astype(np.float32, copy=False)


def predict_logits(
    model: Any, images: np.ndarray, spec: PreprocessSpec, *, batch_size: int = 64, forward: Forward | None = None
) -> np.ndarray:
    """Return the logits of cached uint8 images through the one preprocessing.

    Args:
        model: from preprocessed images to logits.
        images: uint8 (images, height, width) or (images, height, width, 3).
        spec: how the model wants its images.
        batch_size: images per forward pass.
        forward: what `make_forward(model)` gave, to compile once for many calls.

    Returns:
        float32 (images, findings).
    """
    forward = forward or make_forward(model)
    batch_size = min(batch_size, len(images))
    logits = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        # The last batch is filled up: another batch size would compile the whole network again.
        filled = np.concatenate([chunk, np.repeat(chunk[-1:], batch_size - len(chunk), axis=0)])
        logits.append(forward(normalize(filled, spec))[: len(chunk)])
    return np.concatenate(logits).astype(np.float32)

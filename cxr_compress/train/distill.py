"""The teacher's last feature map as a second thing to learn from, besides its probabilities.

A logit per finding says little about an image; the maps before the pooling say where and what. A pruned network keeps
some of the teacher's filters in that layer, so the maps can be compared channel by channel, without the extra layer
that learns a translation between networks of different widths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import calls_of, require_graph

_MAP_RANK = 4  # image, row, column, channel
_GLOBAL_POOLS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)


@dataclass(frozen=True)
class FeatureMatch:
    """Which map of the student is to look like which map of the teacher.

    Attributes:
        student: layer of the student whose output is matched, by its name.
        teacher: layer of the teacher.
        keep: integer (channels of the student,): the teacher's channels that the student still has, in the student's
            order; None where both have the same channels.
    """

    student: str
    teacher: str
    keep: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what decides a training, JSON-ready; the channels by their hash."""
        keep = None if self.keep is None else hashlib.sha256(np.asarray(self.keep, np.int64).tobytes()).hexdigest()
        return {"student": self.student, "teacher": self.teacher, "keep": keep}


@dataclass(frozen=True)
class FeatureTerm:
    """The term of the loss that a `FeatureMatch` makes.

    Attributes:
        match: the maps.
        weight: factor of the term; 1 makes a student without any map (all zeros) cost 1.
    """

    match: FeatureMatch
    weight: float

    def of(self, student_map: Any, teacher_map: Any) -> Any:
        """`weight * mean((s - t)^2) / mean(t^2)` over all images, places and channels of the batch.

        Dividing by the teacher's own mean square makes the term free of the scale of its activations, which differs
        between networks by orders of magnitude, so one weight serves all of them. The divisor is that of the whole
        batch, also where replicas share it: an image on which the teacher is silent does not weigh more than others.

        Source: Romero et al., "FitNets" (arXiv 1412.6550), equation 3, without its regressor (the channels are the
        teacher's own) and at once instead of in a stage before; Hinton et al., "Distilling the Knowledge in a Neural
        Network" (arXiv 1503.02531), for the logits beside it.
        """
        teacher_map = tf.cast(tf.stop_gradient(teacher_map), tf.float32)
        if self.match.keep is not None:
            teacher_map = tf.gather(teacher_map, tf.constant(np.asarray(self.match.keep, np.int32)), axis=-1)
        context = tf.distribute.get_replica_context()
        power = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.reduce_mean(tf.square(teacher_map)))
        distance = tf.reduce_mean(tf.math.squared_difference(tf.cast(student_map, tf.float32), teacher_map))
        # A teacher that is silent on a whole batch (all zeros behind a ReLU) must not divide by 0.
        return self.weight * distance / tf.maximum(power, keras.backend.epsilon())


def with_map(model: Any, layer: str) -> Any:
    """A view of a model that gives (logits, map of a layer) from one pass; layers and weights are the model's own.

    Args:
        model: functional or Sequential, built.
        layer: name of a layer of the model itself; a model within it counts as one layer.

    Raises:
        UnsupportedLayerError: the model is subclassed, has no such layer, or calls it more than once.
    """
    require_graph(model)
    calls = [node for node in calls_of(model) if node.layer.name == layer]
    if len(calls) != 1 or isinstance(calls[0].outputs, list | tuple | dict):
        raise UnsupportedLayerError(
            f"expected the name of one layer of {model.name} that is called once and gives one map, got {layer!r} "
            f"(called {len(calls)} times): give a layer of the model itself, such as last_feature_map names"
        )
    return keras.Model(model.inputs, [model.output, calls[0].outputs])


def last_feature_map(model: Any) -> str:
    """Name the layer whose map feeds the head: the input of the last global pooling, else the last map of all.

    Args:
        model: functional or Sequential, built, with one output.

    Raises:
        UnsupportedLayerError: the model is subclassed, or its last map is inside of a model within it, or it has none.
    """
    require_graph(model)
    if len(model.outputs) != 1:
        raise UnsupportedLayerError(f"expected a network with one output, {model.name} has {len(model.outputs)}")
    names = sorted({node.layer.name for node in _maps_above(model.outputs[0], set())})
    if len(names) != 1:
        reads = f"reads {', '.join(names)}" if names else "reads none (maps inside of a model within it do not count)"
        raise UnsupportedLayerError(
            f"expected a network whose head reads the map of one layer of its own; that of {model.name} {reads}: name "
            "the layers to match yourself, or train without matching maps"
        )
    return str(names[0])


def check_match(match: FeatureMatch, model: Any, teacher: Any, input_shape: tuple[int, int, int]) -> None:
    """Refuse maps that cannot be compared, before anything slow begins.

    Args:
        match: the maps.
        model: the student.
        teacher: the teacher.
        input_shape: (height, width, channels) of the images that both get.

    Raises:
        CompressionError: rows and columns differ, or `keep` does not lead from one's channels to the other's.
        UnsupportedLayerError: as `with_map`.
    """
    ours = _map_shape(with_map(model, match.student), input_shape)
    theirs = _map_shape(with_map(teacher, match.teacher), input_shape)
    where = f"the student's {match.student!r} {ours} and the teacher's {match.teacher!r} {theirs}"
    if len(ours) != len(theirs) or ours[:-1] != theirs[:-1]:
        raise CompressionError(f"maps to match must have as many rows and columns, got {where}: name other layers")
    kept = np.arange(theirs[-1]) if match.keep is None else np.asarray(match.keep)
    if kept.ndim != 1 or kept.dtype.kind not in "iu" or len(kept) != ours[-1]:
        raise CompressionError(
            f"keep must be one of the teacher's channels for each of the student's, got {len(kept.ravel())} "
            f"({kept.dtype}) for {where}: give their indices"
        )
    if not np.all((kept >= 0) & (kept < theirs[-1])):
        raise CompressionError(f"keep must be indices from 0 to {theirs[-1] - 1}, got {kept.min()} to {kept.max()}")


def _map_shape(viewed: Any, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape of a map without the axis of images; a network of open size is run once to know."""
    shape = tuple(viewed.outputs[-1].shape)[1:]
    if None in shape:
        shape = tuple(viewed(np.zeros((1, *input_shape), np.float32), training=False)[-1].shape)[1:]
    return shape


def _maps_above(tensor: Any, seen: set[int]) -> Iterator[Any]:
    """The calls that made the maps from which a tensor was made, the nearest ones only."""
    if id(tensor) in seen:
        return
    seen.add(id(tensor))
    node = tensor.node
    if node.is_input or (isinstance(node.layer, keras.Model) and len(tensor.shape) != _MAP_RANK):
        return
    if isinstance(node.layer, _GLOBAL_POOLS):
        before = node.keras_inputs[0].node
        yield from () if before.is_input else (before,)
    elif len(tensor.shape) == _MAP_RANK and tuple(tensor.shape[1:3]) != (1, 1):
        yield node
    else:  # a vector, or one pixel: behind a pooling that keeps the axes, a head may be made of 1x1 convolutions
        for above in node.keras_inputs:
            yield from _maps_above(above, seen)

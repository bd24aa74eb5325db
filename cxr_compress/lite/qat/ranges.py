"""Which results of a model are rounded, which of them share a scale, and the ranges they start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat.graph import Steps, is_linear, is_rectifier, passes_on

layers = keras.layers
_BATCH = 16  # films at once: every activation is held

Range = tuple[float, float]
_TAKES_IN_RECTIFIER = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense, layers.Add)


def share_ranges(steps: Steps) -> list[list[int]]:
    """Group the steps whose results are rounded by the scale that TFLite makes them share.

    Not rounded are layers that hand codes on (their operators need the scale of their input at both ends) and those
    whose only reader is a ReLU that becomes part of them. A mean pool keeps its input's scale too, but rounds to it.

    Returns:
        Lists of step numbers, in order; every step that is rounded is in one of them.
    """
    parent = list(range(len(steps.calls)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for number, step in enumerate(steps.calls):
        if passes_on(step.layer):
            for source in step.inputs:
                parent[root(number)] = root(source)
    readers = steps.readers()
    groups: dict[int, list[int]] = {}
    for number, step in enumerate(steps.calls):
        handed_on = passes_on(step.layer) and type(step.layer) is not layers.AveragePooling2D
        if not handed_on and not _is_fused(steps, readers, number):
            groups.setdefault(root(number), []).append(number)
    return sorted(groups.values())


def _is_fused(steps: Steps, readers: list[list[int]], number: int) -> bool:
    """Whether a step becomes one operator with the ReLU behind it."""
    layer, behind = steps.calls[number].layer, readers[number]
    if type(layer) not in _TAKES_IN_RECTIFIER or number == steps.output or len(behind) != 1:
        return False
    computes_alone = type(layer) is layers.Add or is_linear(layer)
    return computes_alone and is_rectifier(steps.calls[behind[0]].layer)


def calibrate(model: Any, names: list[str], images: np.ndarray) -> Mapping[str, Range]:
    """Smallest and largest value of layers' results over images; the same images give the same ranges.

    Args:
        model: flat model in which every layer is called once.
        names: of the layers to look at.
        images: float32 (n, height, width, channels).

    Raises:
        CompressionError: a result is NaN or infinite; it names the layer.
    """
    watched = keras.Model(model.inputs, [model.get_layer(name).output for name in names])

    @tf.function(reduce_retracing=True, autograph=False)
    def ends(batch: Any) -> Any:
        results = tf.nest.flatten(watched(batch, training=False))
        finite = [tf.reduce_all(tf.math.is_finite(result)) for result in results]  # minimum and maximum may skip NaN
        lows, highs = ([take(result) for result in results] for take in (tf.reduce_min, tf.reduce_max))
        return tf.stack([tf.where(finite, lows, np.nan), tf.where(finite, highs, np.nan)])

    found = np.stack(
        [ends(tf.constant(images[start : start + _BATCH])).numpy() for start in range(0, len(images), _BATCH)]
    )
    bad = np.flatnonzero(~np.isfinite(found).all(axis=(0, 1)))
    if bad.size:
        raise CompressionError(
            f"the result of {names[int(bad[0])]} is NaN or infinite on the calibration images: check the weights and "
            "the preprocessing"
        )
    low, high = found[:, 0].min(axis=0), found[:, 1].max(axis=0)
    return {name: (float(lo), float(hi)) for name, lo, hi in zip(names, low, high, strict=True)}

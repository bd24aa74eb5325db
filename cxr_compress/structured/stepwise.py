"""Run a Keras model one layer at a time, so that what any layer reads can be looked at and repaired on the way.

A model with a second output per layer of interest would keep every one of those tensors alive. Here a tensor is
dropped as soon as the last layer that reads it has run, and two models of one wiring, the original and the pruned one,
walk side by side: one forward pass of each is enough to repair a hundred layers front to back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cxr_compress.errors import DataError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import Steps

FloatArray = npt.NDArray[np.float32]


Visitor = Callable[[int, list[list[list[Any]]]], None]


def walk(models: Sequence[Steps], batches: Sequence[FloatArray], stops: Iterable[int], visit: Visitor) -> None:
    """Run models of one wiring side by side over all batches, layer by layer, up to the last stop.

    Args:
        models: the original model and, where wanted, pruned ones.
        batches: what all of them read; everything alive at one layer is held for all batches at once.
        stops: the places of the calls before which `visit` is called with (place, inputs by model, by batch). The
            visitor may change the weights of the layers that are still to run.
        visit: see `stops`.
    """
    halts = sorted(set(stops))
    if not halts:
        return
    last = [steps.last_reads() for steps in models]
    alive: list[list[dict[int, Any]]] = [
        [{steps.source: tf.convert_to_tensor(batch)} for batch in batches] for steps in models
    ]
    pending = set(halts)
    for place in range(halts[-1] + 1):
        if place in pending:
            visit(place, [_arguments(steps, place, values) for steps, values in zip(models, alive, strict=True)])
        for steps, values, ends in zip(models, alive, last, strict=True):
            for tensors in values:
                _advance(steps, place, tensors, ends)


def _arguments(steps: Steps, place: int, values: list[dict[int, Any]]) -> list[list[Any]]:
    return [[tensors[number] for number in steps.calls[place].reads] for tensors in values]


def _advance(steps: Steps, place: int, tensors: dict[int, Any], ends: dict[int, int]) -> None:
    """Run one call of one batch and drop what nobody reads any more."""
    step = steps.calls[place]
    outputs = step.run([tensors[number] for number in step.reads])
    tensors.update((number, value) for number, value in zip(step.makes, outputs, strict=True) if number in ends)
    for number in set(step.reads):
        if ends[number] == place:
            del tensors[number]


def take_images(
    model: keras.Model, batches: Iterable[Any] | None, images: int, what: str, size: int = 16
) -> list[FloatArray]:
    """The first images of some batches, cut into small batches; labels beside them are passed over.

    Args:
        model: whose input they must fit.
        batches: float32 (n, h, w, c), or pairs with labels.
        images: at most this many.
        what: names the step in errors.
        size: images per batch, at most.

    Raises:
        DataError: no batches, or batches that do not fit the model.
    """
    taken: list[FloatArray] = []
    wanted = max(1, images)
    for batch in checked(model, batches, what):
        part = batch[0][:wanted]
        taken += [part[start : start + size] for start in range(0, len(part), size)]
        wanted -= len(part)
        if wanted <= 0:
            break
    return taken


def checked(
    model: keras.Model, batches: Iterable[Any] | None, what: str, *, labels: bool = False
) -> Iterator[tuple[FloatArray, Any]]:
    """Batches as (images, labels or None), each checked against the model's input.

    Raises:
        DataError: none, labels missing where needed, the wrong shape, or values that are not finite.
    """
    expected = tuple(model.inputs[0].shape)[1:]
    count = 0
    for batch in () if batches is None else batches:
        images, truth = batch if isinstance(batch, (tuple, list)) else (batch, None)
        if labels and truth is None:
            raise DataError(f"{what}: expected batches of (images, labels), got images alone")
        images = np.asarray(images, dtype=np.float32)
        if images.shape[1:] != expected:
            raise DataError(f"{what}: expected batches of shape (n, {_text(expected)}), got {images.shape}")
        if not np.isfinite(images).all():
            raise DataError(f"{what}: expected finite images, got NaN or infinity")
        if len(images):
            count += len(images)
            yield images, truth
    if not count:
        raise DataError(f"{what} needs images: pass batches={'(images, labels)' if labels else 'images'}; got none")


def _text(shape: tuple[Any, ...]) -> str:
    return ", ".join(map(str, shape))

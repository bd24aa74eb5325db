"""Run a Keras model one layer at a time, so that what any layer reads can be looked at and repaired on the way.

A model with a second output per layer of interest would keep every one of those tensors alive. Here a tensor is
dropped as soon as the last layer that reads it has run, and two models of one wiring, the original and the pruned one,
walk
side by side: one forward pass of each is enough to repair a hundred layers front to back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Step:
    """One call of one layer.

    Attributes:
        path: the layer's name, those of the nested models around it in front.
        layer: the layer.
        node: the call, as Keras recorded it.
        reads: the numbers of the tensors that it takes.
        makes: the numbers of the tensors that it gives.
    """

    path: str
    layer: Any
    node: Any
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    def run(self, arguments: Sequence[Any]) -> list[Any]:
        """The layer's outputs for these tensors, in inference mode."""
        given: dict[str, list[Any]] = {}
        for tensor, value in zip(self.node.keras_inputs, arguments, strict=True):
            given.setdefault(str(id(tensor)), []).append(value)
        positional, named = self.node.map_arguments(given)
        return _flat(self.layer(*positional, **named))


@dataclass(frozen=True, eq=False)
class Steps:
    """A model as a straight list of calls, nested models unrolled.

    Attributes:
        calls: in the order in which they run.
        source: the number of the tensor that is the model's input.
        results: the numbers of the model's outputs.
    """

    calls: tuple[Step, ...]
    source: int
    results: tuple[int, ...]

    def last_reads(self) -> dict[int, int]:
        """By tensor, the place of the last call that reads it; the model's outputs are not kept for longer."""
        return {tensor: place for place, step in enumerate(self.calls) for tensor in step.reads}

    def readers(self, tensor: int) -> list[Step]:
        """The calls that read a tensor."""
        return [step for step in self.calls if tensor in step.reads]


def unroll(model: keras.Model) -> Steps:
    """The calls of a model's layers.

    Raises:
        CompressionError: a model with several inputs.
    """
    if len(model.inputs) != 1:
        raise CompressionError(f"expected a model with one input to run on batches, got {len(model.inputs)} inputs")
    calls: list[Step] = []
    count = iter(range(1, 1 << 30))
    results = _visit(model, "", [0], calls, count)
    return Steps(tuple(calls), 0, tuple(results))


def _visit(model: keras.Model, prefix: str, inputs: list[int], calls: list[Step], count: Iterator[int]) -> list[int]:
    known = {id(tensor): number for tensor, number in zip(model.inputs, inputs, strict=True)}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            reads = [known[id(tensor)] for tensor in node.keras_inputs]
            outputs = _flat(node.outputs)
            if isinstance(node.layer, keras.Model):
                makes = _visit(node.layer, f"{prefix}{node.layer.name}/", reads, calls, count)
            else:
                makes = [next(count) for _ in outputs]
                calls.append(Step(prefix + node.layer.name, node.layer, node, tuple(reads), tuple(makes)))
            known.update((id(tensor), number) for tensor, number in zip(outputs, makes, strict=True))
    return [known[id(tensor)] for tensor in model.outputs]


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


Visitor = Callable[[int, list[list[list[Any]]]], None]


def walk(models: Sequence[Steps], batches: Sequence[FloatArray], stops: Iterable[int], visit: Visitor) -> None:
    """Run models of one wiring side by side over all batches, layer by layer, up to the last stop.

    Args:
        models: the original model and, where wanted, thinner ones.
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
    left = max(1, images)
    for batch in checked(model, batches, what):
        part = batch[0][:left]
        taken += [part[start : start + size] for start in range(0, len(part), size)]
        left -= len(part)
        if left <= 0:
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

"""The layers that sum over channels, as plain matrix products, and what arrives at them, one layer after another.

Models run one layer at a time (`walk`): a model with a second output per layer of interest would keep all those tensors
alive. Here a tensor is dropped as soon as the last layer that reads it has run, and two models of one wiring,
the original and the pruned one, walk side by side: one forward pass of each repairs a hundred layers front to back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import Step, Steps
from cxr_compress.structured.analysis import ChannelAnalysis
from cxr_compress.structured.cost import IntArray

FloatArray = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def is_depthwise(layer: Any) -> bool:
    """Whether a layer filters each channel by itself, with weights of its own."""
    return type(layer) is keras.layers.DepthwiseConv2D


def why_unreadable(layer: Any) -> str:
    """Why a layer is no plain matrix product over patches, all channels at once or one by one; empty when it is."""
    if type(layer) is keras.layers.Dense:
        return ""
    if type(layer) is not keras.layers.Conv2D and not is_depthwise(layer):
        return f"is a {type(layer).__name__}, not a Conv2D, DepthwiseConv2D or Dense"
    if type(layer) is keras.layers.Conv2D and layer.groups != 1:
        return "is a grouped convolution"
    return "" if layer.data_format == "channels_last" else "is channels_first"


@dataclass(frozen=True, eq=False)
class Places:
    """Sampled output positions of one batch: image and flat position of each row."""

    image: Indices
    position: Indices


class PatchReader:
    """Reads the patches of one Conv2D or DepthwiseConv2D (any kernel, stride, dilation, padding) or Dense layer.

    Args:
        layer: a layer that `why_unreadable` has nothing against.
        input_shape: of its input, without the batch axis.
    """

    def __init__(self, layer: Any, input_shape: Sequence[int]) -> None:
        self._shape = tuple(input_shape)
        self._dense = type(layer) is keras.layers.Dense
        if self._dense:
            self.taps, self._outputs = 1, (1, prod(self._shape[:-1]))
            return
        self._kernel, self._strides = layer.kernel_size, layer.strides
        self._dilation = layer.dilation_rate
        self.taps = prod(self._kernel)
        axes = [self._axis(number, layer.padding == "same") for number in range(2)]
        self._outputs = (axes[0][0], axes[1][0])
        self._before = (axes[0][1], axes[1][1])

    @property
    def columns(self) -> int:
        """How long a row is: taps times input channels, the taps outermost, as in a kernel."""
        return self.taps * self._shape[-1]

    def _axis(self, number: int, same: bool) -> tuple[int, int]:
        """Output length and padding in front, along one spatial axis; TensorFlow's rule for "same" and "valid"."""
        length, stride = self._shape[number], self._strides[number]
        reach = (self._kernel[number] - 1) * self._dilation[number] + 1
        if not same:
            return (length - reach) // stride + 1, 0
        outputs = ceil(length / stride)
        return outputs, max((outputs - 1) * stride + reach - length, 0) // 2

    def draw(self, images: int, positions: int, rng: np.random.Generator) -> Places:
        """For each of `images` images, `positions` different output positions, all where there are fewer."""
        every = prod(self._outputs)
        count = min(positions, every)
        order = rng.random((images, every)).argpartition(count - 1, axis=1)[:, :count]
        return Places(np.repeat(np.arange(images), count), np.sort(order, axis=1).reshape(-1))

    def rows(self, tensor: Any, places: Places) -> FloatArray:
        """(rows, columns) float32: what the layer reads at these places; padding reads zeros."""
        values = np.asarray(tensor)
        if self._dense:
            return values.reshape(len(values), -1, values.shape[-1])[places.image, places.position]
        y, valid_y = self._taps(0, places.position // self._outputs[1])
        x, valid_x = self._taps(1, places.position % self._outputs[1])
        patch = values[places.image[:, None, None], y[:, :, None], x[:, None, :]]
        patch *= (valid_y[:, :, None] & valid_x[:, None, :])[..., None]
        return patch.reshape(len(patch), -1)

    def _taps(self, number: int, outputs: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Per row, the input coordinates of the kernel's taps along one axis, and which lie inside."""
        offsets = np.arange(self._kernel[number]) * self._dilation[number] - self._before[number]
        raw = outputs[:, None] * self._strides[number] + offsets
        return np.clip(raw, 0, self._shape[number] - 1), (raw >= 0) & (raw < self._shape[number])


DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True, eq=False)
class Consumer:
    """One call of a Conv2D, DepthwiseConv2D or Dense.

    Attributes:
        path: the layer.
        place: of the call, in the model's steps.
        layer: the layer itself.
        reader: gathers what it reads.
        sets: (columns,) int32: the channel set of each column of a row.
        outputs: (outputs,) int32: the channel sets that it makes.
    """

    path: str
    place: int
    layer: Any
    reader: PatchReader
    sets: IntArray
    outputs: IntArray

    def kernel(self) -> FloatArray:
        """(columns, outputs) float32."""
        kernel = self.layer.get_weights()[0]
        return np.asarray(kernel.reshape(-1, kernel.shape[-1]))

    def bias(self) -> FloatArray:
        """(outputs,) float32, zero where the layer has none."""
        return np.asarray(self.layer.get_weights()[1]) if self.layer.use_bias else np.zeros(len(self.outputs), "f4")


def find_consumers(
    steps: Steps, analysis: ChannelAnalysis, *, depthwise: bool = False
) -> tuple[list[Consumer], dict[str, str]]:
    """The calls that can be read as matrix products, and by path why others cannot.

    Args:
        steps: the model's calls.
        analysis: of its channels.
        depthwise: take depthwise convolutions too, which sum over positions and not over channels.
    """
    consumers: list[Consumer] = []
    reasons: dict[str, str] = {}
    for place, step in enumerate(steps.calls):
        axes = (
            {axis.role: axis for axis in reversed(analysis.layers[step.path].axes)}
            if step.path in analysis.layers
            else {}
        )
        follows = depthwise and is_depthwise(step.layer) and "follow" in axes
        if "consume" not in axes and not follows:
            continue
        why = why_unreadable(step.layer)
        if why:
            reasons[step.path] = why
            continue
        reader = PatchReader(step.layer, tuple(step.node.keras_inputs[0].shape)[1:])
        read = axes["follow" if follows else "consume"].sets
        made = np.repeat(read, step.layer.depth_multiplier) if follows else axes["produce"].sets
        consumers.append(Consumer(step.path, place, step.layer, reader, np.tile(read, reader.taps), made))
    return consumers, reasons


def fitting_images(memory: int, *analyses: ChannelAnalysis) -> int:
    """How many images' live tensors fit into this many bytes when models run side by side, layer by layer."""
    return max(1, memory // sum(analysis.baseline.peak_activation_bytes for analysis in analyses))


def beside(pruned: Steps, steps: Steps) -> Steps:
    """The calls of a pruned model at the places that they have in the original one, so that the two can walk abreast.

    Layers that were removed as a whole have left a place without a call: a step there reads and makes nothing. The
    original's order suits the pruned model too: what is left of a model depends on nothing new.

    Raises:
        CompressionError: a call that the original does not have.
    """
    numbered = dict(zip(_numbered(pruned), pruned.calls, strict=True))
    places = _numbered(steps)
    if not numbered.keys() <= set(places):
        raise CompressionError("expected the pruned model that remove_channels made of this model; the layers differ")
    gone = (Step(step.path, step.layer, step.node, (), ()) for step in steps.calls)
    return replace(pruned, calls=tuple(numbered.get(key, empty) for key, empty in zip(places, gone, strict=True)))


def _numbered(steps: Steps) -> list[tuple[str, int]]:
    """By place, the path of the layer and how often it was called before."""
    calls: Counter[str] = Counter()
    keys = []
    for step in steps.calls:
        keys.append((step.path, calls[step.path]))
        calls[step.path] += 1
    return keys


Visitor = Callable[[int, list[list[list[Any]]]], None]


def walk(models: Sequence[Steps], batches: Sequence[FloatArray], stops: Iterable[int], visit: Visitor) -> None:
    """Run models of one wiring side by side over all batches, layer by layer, up to the last stop.

    Args:
        models: the original model and, where wanted, pruned ones, as `beside` gives them.
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
    if not step.makes:
        return
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

"""Folds the scale of a batch norm in front of a convolution into that convolution; what the graph computes stays.

A batch norm behind a concatenation cannot fold into what comes before it: in .tflite it is a MUL and an ADD, and int8
rounds what each of them gives. Its scale can move on through the ReLU instead. With m > 0

    relu(m x + a) = m relu(x + a / m)

so the MUL goes, and the convolution that reads the result has its kernel multiplied by m, channel by channel; zeros of
a padding stay zeros. Where some m is 0 or negative it stays. DenseNets are full of such batch norms: 62 of the 121 in a
DenseNet121.

This works on the float flatbuffer, not on the Keras model: all is seen that really is left as MUL and ADD, wherever the
graph came from, and it takes well under a second.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.lite.calibration import pick_evenly
from cxr_compress.lite.graph.flatbuffer import (
    Graph,
    Operator,
    drop_unused_codes,
    graphs_of,
    read_graphs,
    schema,
    to_bytes,
    to_object,
)
from cxr_compress.lite.graph.run import Observer

Floats = npt.NDArray[np.float64]
# What a scale per channel passes through unchanged on its way to the kernel that takes it.
_PASSING = ("MEAN", "PAD")
# Kernel kind -> the axis of its kernel that follows the channels it reads.
_CHANNEL_AXIS = {"CONV_2D": 3, "FULLY_CONNECTED": 1, "DEPTHWISE_CONV_2D": 3}
_INPUT, _KERNEL = 0, 1


@dataclass(frozen=True)
class Norm:
    """A batch norm and a ReLU as the graph has them: relu(scale * source + shift)."""

    multiply: Operator
    add: Operator
    source: int
    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class ScaleFold:
    """What was folded and what was left alone.

    Attributes:
        scaled: results of the ADDs that lost their MUL.
        left: result of an ADD behind a MUL -> why its scale stays.
    """

    scaled: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Foldable:
    """A batch norm whose scale can move on through its ReLU: m > 0 in all channels.

    Attributes:
        name: of the result of its ADD.
        product: tensor index of what its MUL gives.
        result: tensor index of what its ADD gives, after the ReLU.
        scale: m, float64 (channels,).
        kernels: of the operators that read the result, float64 (filters, taps, channels).
    """

    name: str
    product: int
    result: int
    scale: Floats
    kernels: tuple[Floats, ...]


def find_foldable(content: bytes) -> list[Foldable]:
    """The batch norms of a float flatbuffer that `fold_scales` would rid of their MUL, in the order they run."""
    model = to_object(content)
    editor = _Editor(model)
    found = []
    for norm in _norms(model, editor.graph):
        takers = editor.takers(norm.add.outputs[0])
        if isinstance(takers, list) and (norm.scale > 0).all():
            name = editor.graph.tensors[norm.add.outputs[0]].name
            kernels = editor.kernels(takers, len(norm.scale))
            found.append(Foldable(name, norm.multiply.outputs[0], norm.add.outputs[0], norm.scale, kernels))
    return found


def fold_scales(content: bytes, *, only: Collection[str] | None = None) -> tuple[bytes, ScaleFold]:
    """Fold what can be folded in a float flatbuffer; the same outputs but for the rounding of float32.

    Args:
        content: float flatbuffer.
        only: names of those to fold, as `find_foldable` has them; None for all.

    Returns:
        The folded flatbuffer (as it came where nothing folds), and what was done.
    """
    model = to_object(content)
    editor = _Editor(model)
    scaled: list[str] = []
    left: dict[str, str] = {}
    for norm in _norms(model, editor.graph):
        name = editor.graph.tensors[norm.add.outputs[0]].name
        takers = editor.takers(norm.add.outputs[0])
        if only is not None and name not in only:
            left[name] = "was not chosen"
        elif isinstance(takers, str):
            left[name] = takers
        elif not (norm.scale > 0).all():
            left[name] = "some of its scales are not positive"
        else:
            editor.shift(norm, takers)
            scaled.append(name)
    if not scaled:
        return content, ScaleFold(left=left)
    editor.finish()
    return to_bytes(model), ScaleFold(tuple(scaled), left)


def fold_like(content: bytes, folded: bytes) -> bytes:
    """A float flatbuffer with those batch norms folded that are in another file of the same network, of any type."""
    graph = read_graphs(folded)[0]
    written = {graph.tensors[index].name for operator in graph.operators for index in operator.outputs}
    own = read_graphs(content)[0].tensors
    only = {one.name for one in find_foldable(content) if own[one.product].name not in written}
    return fold_scales(content, only=only)[0] if only else content


def _norms(model: Any, graph: Graph) -> list[Norm]:
    """The batch norms that are left as MUL and ADD with a ReLU, in the order they run."""
    relu = schema().ActivationFunctionType.RELU
    readers: dict[int, list[Operator]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    found = []
    for multiply in graph.operators:
        behind = readers.get(multiply.outputs[0], []) if multiply.kind == "MUL" else []
        if len(behind) != 1 or behind[0].kind != "ADD" or multiply.outputs[0] in graph.outputs:
            continue
        fused = [
            int(model.subgraphs[0].operators[one.index].builtinOptions.fusedActivationFunction)
            for one in (multiply, behind[0])
        ]
        product, total = _split(graph, multiply), _split(graph, behind[0])
        if fused == [0, relu] and product is not None and total is not None:
            found.append(Norm(multiply, behind[0], product[0], product[1], total[1]))
    return found


def _split(graph: Graph, operator: Operator) -> tuple[int, Floats] | None:
    """The computed operand of a MUL or ADD, and its constant as one value per channel; None where it has none."""
    first, second = operator.inputs
    constant, other = (first, second) if graph.tensors[first].values is not None else (second, first)
    values, shape = graph.tensors[constant].values, graph.tensors[other].shape
    channels = shape[-1] if shape else 0
    if (
        values is None
        or values.dtype != np.float32
        or values.size not in (1, channels)
        or values.shape[-1:]
        not in (
            (),
            (1,),
            (channels,),
        )
    ):
        return None
    return other, np.broadcast_to(values.astype(np.float64).ravel(), (channels,))


class _Editor:
    """Edits a `ModelT` in place; what it knows of the graph is as it was before the first edit."""

    def __init__(self, model: Any) -> None:
        self._model, self._fb = model, schema()
        self.graph = graphs_of(model)[0]
        self._subgraph = model.subgraphs[0]
        self._removed: list[int] = []
        # Kernels that are written already, and the tensors that hold them now.
        self._own: set[int] = set()

    def takers(self, result: int) -> list[Operator] | str:
        """The operators whose kernels take a scale per channel of a result; why there are none where one cannot."""
        if result in self.graph.outputs:
            return "is an output of the model"
        takers: list[Operator] = []
        for operator in self.graph.operators:
            if result not in operator.inputs:
                continue
            if operator.kind in _PASSING and _keeps_channels(self.graph, operator):
                more = self.takers(operator.outputs[0])
                if isinstance(more, str):
                    return more
                takers += [operator, *more]
            elif operator.kind in _CHANNEL_AXIS and self._takes(operator, result):
                takers.append(operator)
            else:
                return f"{operator.kind} reads it"
        return takers or "nothing reads it"

    def _takes(self, operator: Operator, result: int) -> bool:
        kernel = self.graph.tensors[operator.inputs[_KERNEL]]
        channels = self.graph.tensors[result].shape[-1]
        return (
            operator.inputs[_INPUT] == result
            and kernel.values is not None
            and kernel.dtype == "float32"
            and kernel.shape[_CHANNEL_AXIS[operator.kind]] == channels
        )

    def kernels(self, takers: list[Operator], channels: int) -> tuple[Floats, ...]:
        """The kernels of the takers as (filters, taps, channels)."""
        found = []
        for operator in takers:
            if operator.kind in _CHANNEL_AXIS:
                kernel = self._kernel(operator)[1]
                # A depthwise kernel (1, height, width, channels) has one filter of each channel: taken as one.
                found.append(kernel.reshape(len(kernel), -1, channels))
        return tuple(found)

    def shift(self, norm: Norm, takers: list[Operator]) -> None:
        """ADD of a / m straight on the source; kernels times m."""
        add = self._subgraph.operators[norm.add.index]
        add.inputs = np.array([norm.source, self._constant(norm.shift / norm.scale)], np.int32)
        self._removed.append(norm.multiply.index)
        self._multiply_kernels(takers, norm.scale)

    def finish(self) -> None:
        """Take out the operators that are no longer needed, and the values of constants that nobody reads any more."""
        for index in sorted(self._removed, reverse=True):
            del self._subgraph.operators[index]
        drop_unused_codes(self._model)
        read = {int(index) for operator in self._subgraph.operators for index in operator.inputs}
        kept = {tensor.buffer for number, tensor in enumerate(self._subgraph.tensors) if number in read}
        kept |= {tensor.buffer for other in self._model.subgraphs[1:] for tensor in other.tensors}
        for tensor in self._subgraph.tensors:
            if tensor.buffer not in kept:
                # The tensors stay, so that those of the graph keep their numbers.
                self._model.buffers[tensor.buffer].data = None

    def _multiply_kernels(self, takers: list[Operator], scale: Floats) -> None:
        for operator in takers:
            if operator.kind in _CHANNEL_AXIS:
                index, values = self._kernel(operator)
                shape = [1] * values.ndim
                shape[_CHANNEL_AXIS[operator.kind]] = len(scale)
                self._write(operator, index, values * scale.reshape(shape))

    def _kernel(self, operator: Operator) -> tuple[int, Floats]:
        """The kernel of an operator as it is by now, and its tensor."""
        index = int(self._subgraph.operators[operator.index].inputs[_KERNEL])
        tensor = self._subgraph.tensors[index]
        raw = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8)
        return index, raw.view(np.float32).reshape(tuple(tensor.shape)).astype(np.float64)

    def _write(self, operator: Operator, index: int, values: Floats) -> None:
        """Write the kernel of one operator; others may share the tensor, so each gets its own when first written."""
        if index not in self._own:
            index = self._constant(values, like=self._subgraph.tensors[index])
            edited = self._subgraph.operators[operator.index]
            edited.inputs = np.array([*edited.inputs[:_KERNEL], index, *edited.inputs[_KERNEL + 1 :]], np.int32)
        self._fill(index, values)

    def _constant(self, values: Floats, like: Any = None) -> int:
        """A new constant tensor; its index."""
        tensor = self._fb.TensorT() if like is None else copy.copy(like)
        tensor.type, tensor.shape = self._fb.TensorType.FLOAT32, np.array(values.shape, np.int32)
        number = len(self._subgraph.tensors)
        tensor.name = f"folded/{number}".encode() if like is None else like.name
        self._model.buffers.append(self._fb.BufferT())
        tensor.buffer = len(self._model.buffers) - 1
        self._subgraph.tensors.append(tensor)
        self._own.add(number)
        self._fill(number, values)
        return number

    def _fill(self, index: int, values: Floats) -> None:
        buffer = self._model.buffers[self._subgraph.tensors[index].buffer]
        buffer.data = np.frombuffer(values.astype(np.float32).tobytes(), np.uint8)


def _keeps_channels(graph: Graph, operator: Operator) -> bool:
    """True for a MEAN over positions and a PAD around them: the last axis stays as it is."""
    constant = graph.tensors[operator.inputs[1]].values
    if constant is None:
        return False
    rank = len(graph.tensors[operator.inputs[0]].shape)
    if operator.kind == "PAD":
        return bool((constant[-1] == 0).all())
    return (rank - 1) not in {int(axis) % rank for axis in constant.ravel()}


# Of 206 batch norms of four DenseNets trained on X-rays the worst has 3.6, most have less than 1. With all of them
# folded the error of the logits moved by -16 to +26 % (six networks), as chance has it; to leave those above 1.5 alone
# gained 5 % where it was worst. So the limit is not there for those: it catches channels that have all but died.
MOST_NOISE = 4.0
# It asks how wide ranges are, not how they end: a few images do.
_LOOKED_AT = 32
_ACTIVATION_STEPS, _WEIGHT_STEPS = 255, 127


class _Seen:
    """What occurred in one batch norm: sums over the images per channel, and the range of the product."""

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.largest, self.squares, self.active = (np.zeros(channels) for _ in range(3))
        # A quantized range always holds zero.
        self.low = self.high = 0.0

    def add(self, result: np.ndarray, product: np.ndarray) -> None:
        """Take one image's tensors, channels last."""
        self.images += 1
        flat = result.reshape(-1, result.shape[-1])
        self.largest = np.maximum(self.largest, flat.max(axis=0))
        self.squares = self.squares + np.square(flat, dtype=np.float64).mean(axis=0)
        self.active = self.active + (flat > 0).mean(axis=0)
        self.low, self.high = min(self.low, float(product.min())), max(self.high, float(product.max()))


def choose_folds(
    content: bytes,
    images: np.ndarray,
    *,
    num_threads: int = 1,
    most_noise: float = MOST_NOISE,
    progress: Callable[[str], None] | None = None,
) -> frozenset[str]:
    """The batch norms to fold, for `fold_scales(only=...)`.

    Args:
        content: float flatbuffer of batch 1.
        images: (images, height, width, channels); of more than 32 so many are taken, evenly.
        num_threads: for the interpreter; the result does not depend on it.
        most_noise: of a folded batch norm, as a multiple of the noise that it has as it is.
        progress: is told how many were chosen.

    Returns:
        Names as `find_foldable` gives them.
    """
    found = find_foldable(content)
    if not found:
        return frozenset()
    seen = _look(content, found, images[pick_evenly(range(len(images)), _LOOKED_AT)], num_threads)
    chosen = frozenset(
        one.name for one, stats in zip(found, seen, strict=True) if _noise_ratio(one, stats) <= most_noise
    )
    if progress is not None:
        progress(f"{len(chosen)} of {len(found)} batch norms in front of convolutions are folded into those")
    return chosen


def _look(content: bytes, found: list[Foldable], images: np.ndarray, num_threads: int) -> list[_Seen]:
    tensors = [index for one in found for index in (one.result, one.product)]
    observer = Observer(content, tensors, num_threads=num_threads)
    seen = [_Seen(len(one.scale)) for one in found]
    for image in images:
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        for one, stats in zip(found, seen, strict=True):
            stats.add(observer.view(one.result), observer.view(one.product))
    return seen


def _noise_ratio(one: Foldable, seen: _Seen) -> float:
    """Noise behind a folded batch norm over that behind the same as it is; 1 where nothing gets through either way."""
    scale, active, squares = one.scale, seen.active / seen.images, seen.squares / seen.images
    step = seen.largest.max() / _ACTIVATION_STEPS
    product = (seen.high - seen.low) / _ACTIVATION_STEPS
    folded_step = (seen.largest / scale).max() / _ACTIVATION_STEPS
    plain = folded = 0.0
    for kernel in one.kernels:
        power = np.square(kernel).sum(axis=(0, 1)) * active
        plain += float(power.sum() * (step**2 + product**2) + _of_weights(kernel, squares))
        folded += float((power * scale**2).sum() * folded_step**2 + _of_weights(kernel * scale, squares / scale**2))
    return folded / plain if plain > 0 else 1.0


def _of_weights(kernel: Floats, squares: Floats) -> float:
    steps = np.abs(kernel).max(axis=(1, 2)) / _WEIGHT_STEPS
    return float(np.square(steps).sum() * kernel.shape[1] * squares.sum())

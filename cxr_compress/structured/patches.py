"""What a convolution or dense layer reads at sampled positions, as rows of a matrix.

Row times kernel equals the layer's output at that position, so least squares and LASSO see every such layer as one
matrix product. Only the sampled patches are ever gathered: all patches of a 3x3 convolution would be nine times the
layer's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.keras2 import keras

FloatArray = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def why_unreadable(layer: Any) -> str:
    """Why a layer is no plain matrix product over patches; empty when it is one."""
    if type(layer) is keras.layers.Dense:
        return ""
    if type(layer) is not keras.layers.Conv2D:
        return f"is a {type(layer).__name__}, not a Conv2D or Dense"
    if layer.groups != 1:
        return "is a grouped convolution"
    return "" if layer.data_format == "channels_last" else "is channels_first"


@dataclass(frozen=True, eq=False)
class Places:
    """Sampled output positions of one batch: image and flat position of each row."""

    image: Indices
    position: Indices


class PatchReader:
    """Reads the patches of one Conv2D (any kernel, stride, dilation, padding) or Dense layer.

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

"""What a set of kept channels costs: parameters, MACs and activation memory, exactly, before anything is rebuilt.

Every weight and every tensor is a fixed number times the lengths of the channel axes it has, so a cost is a sum of
products of "how many channels of this axis are kept". All axes of a model are counted in one vectorised pass, which
makes a cost cheap enough to sit inside the search for a budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModelCost:
    """What a model costs for one image.

    Attributes:
        params: all weights, moving statistics included, as Keras counts them.
        macs: multiply-accumulates of convolutions and dense layers, over the thinner inputs of the next layer too.
        peak_activation_bytes: the largest sum of float32 tensors alive at once when layers run one by one in model
            order, none fused; runtimes that fuse or reuse need less, the ratio between two models is what counts.
    """

    params: int
    macs: int
    peak_activation_bytes: int

    def to_dict(self) -> dict[str, int]:
        """The numbers by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCost:
        """The inverse of `to_dict`."""
        return cls(int(values["params"]), int(values["macs"]), int(values["peak_activation_bytes"]))


@dataclass(frozen=True)
class Product:
    """`factor` times the number of kept channels of each axis in `axes` (at most two, by axis number)."""

    factor: int
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class _Products:
    factor: npt.NDArray[np.int64]
    first: IntArray
    second: IntArray

    @classmethod
    def of(cls, products: Sequence[Product], one: int) -> _Products:
        """Arrays of the products; `one` is the number of an axis that always has one channel."""
        factor = np.array([product.factor for product in products], dtype=np.int64)
        padded = np.array([(*product.axes, one, one)[:2] for product in products], dtype=np.int32).reshape(-1, 2)
        return cls(factor, padded[:, 0], padded[:, 1])

    def values(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.asarray(self.factor * counts[self.first] * counts[self.second])


class CostModel:
    """The cost of a model as a function of the units it keeps.

    Args:
        axes: per channel axis, (channels,) int32: the unit of each of its channels.
        params: one product per weight.
        macs: one product per use of a kernel.
        tensors: one product per tensor, in elements.
        lifetimes: per tensor, the first and the last step at which it is alive.
    """

    def __init__(
        self,
        *,
        axes: Sequence[IntArray],
        params: Sequence[Product],
        macs: Sequence[Product],
        tensors: Sequence[Product],
        lifetimes: Sequence[tuple[int, int]],
    ) -> None:
        lengths = [len(axis) for axis in axes]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._units = np.concatenate([*axes, np.empty(0, np.int32)])
        one = len(lengths)
        self._params = _Products.of(params, one)
        self._macs = _Products.of(macs, one)
        self._tensors = _Products.of(tensors, one)
        self._born = np.array([born for born, _ in lifetimes], dtype=np.int64)
        self._dies = np.array([dies for _, dies in lifetimes], dtype=np.int64)

    def cost(self, keep: BoolArray) -> ModelCost:
        """The exact cost of the model that keeps these units; keep: (units,), True = kept."""
        running = np.concatenate([[0], np.cumsum(keep[self._units], dtype=np.int64)])
        counts = np.append(np.diff(running[self._starts]), 1)
        return ModelCost(
            params=int(self._params.values(counts).sum()),
            macs=int(self._macs.values(counts).sum()),
            peak_activation_bytes=FLOAT_BYTES * self._peak(self._tensors.values(counts)),
        )

    def _peak(self, elements: npt.NDArray[np.int64]) -> int:
        """The largest number of elements alive at one step: births and deaths summed along the steps."""
        if not len(elements):
            return 0
        change = np.zeros(int(self._dies.max()) + 2, dtype=np.int64)
        np.add.at(change, self._born, elements)
        np.subtract.at(change, self._dies + 1, elements)
        return int(np.cumsum(change).max())

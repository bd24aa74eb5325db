"""Sums of products of channel counts: what every cost of a model is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


class Product(NamedTuple):
    """`factor` times the number of kept channels of each axis in `axes` (at most two, by axis number)."""

    factor: int
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Products:
    """Many products as arrays, counted in one pass."""

    factor: Counts
    first: IntArray
    second: IntArray

    @classmethod
    def of(cls, products: Sequence[Product], one: int) -> Products:
        """Arrays of the products; `one` is the number of an axis that always has one channel."""
        factor = np.array([product.factor for product in products], dtype=np.int64)
        padded = np.array([(*product.axes, one, one)[:2] for product in products], dtype=np.int32).reshape(-1, 2)
        return cls(factor, padded[:, 0], padded[:, 1])

    def values(self, counts: Counts) -> Counts:
        """(products,) The value of each; counts: (axes + 1,), the last one is 1."""
        return np.asarray(self.factor * counts[self.first] * counts[self.second])

    def total(self, counts: Counts) -> int:
        """Their sum."""
        return int(self.values(counts).sum())

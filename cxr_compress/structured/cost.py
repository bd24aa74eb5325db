"""What a set of kept channels costs: parameters, MACs and activation memory, exactly, before anything is rebuilt.

Every weight and every tensor is a fixed number times the lengths of the channel axes it has, so a cost is a sum of
products of "how many channels of this axis are kept". All axes of a model are counted in one vectorised pass, which
makes a cost cheap enough to sit inside the search for a budget. File bytes and latency are added where a table says
what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable
from cxr_compress.structured.measured import MeasuredCosts, MeasuredParts
from cxr_compress.structured.products import Counts, IntArray, Product, Products

__all__ = ["BoolArray", "CostModel", "IntArray", "ModelCost", "Product"]

BoolArray = npt.NDArray[np.bool_]

FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModelCost:
    """What a model costs for one image.

    Attributes:
        params: all weights, moving statistics included, as Keras counts them.
        macs: multiply-accumulates of all kernels, over the thinner inputs of the next layer too; None where the model
            has layers whose multiplications are not counted: a number without them would pass for a small model.
        peak_activation_bytes: the largest sum of float32 tensors alive at once when layers run one by one in model
            order, none fused; runtimes that fuse or reuse need less, the ratio between two models is what counts.
        tflite_bytes: predicted size of the int8 file; None where no bytes were measured.
        latency_ms: predicted milliseconds of a run on the measured machine; None where no layers were timed.
        uncounted: path and class of the layers for whose sake `macs` is None.
    """

    params: int
    macs: int | None
    peak_activation_bytes: int
    tflite_bytes: int | None = None
    latency_ms: float | None = None
    uncounted: tuple[str, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, int | float]:
        """The numbers by name, ready for JSON; what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if name != "uncounted" and value is not None}

    def macs_fraction(self, whole: ModelCost) -> float | None:
        """The share of another model's MACs that this one has; None where either is not known."""
        return None if self.macs is None or whole.macs is None else self.macs / whole.macs

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCost:
        """The inverse of `to_dict`."""
        macs, file_bytes, latency = (values.get(name) for name in ("macs", "tflite_bytes", "latency_ms"))
        return cls(
            int(values["params"]),
            None if macs is None else int(macs),
            int(values["peak_activation_bytes"]),
            None if file_bytes is None else int(file_bytes),
            None if latency is None else float(latency),
        )


class CostModel:
    """The cost of a model as a function of the units it keeps.

    Args:
        axes: per channel axis, (channels,) int32: the unit of each of its channels.
        params: one product per weight.
        macs: one product per use of a kernel.
        tensors: one product per tensor, in elements.
        lifetimes: per tensor, the first and the last step at which it is alive.
        measured: gives what measured costs are multiplied with; called once, when one is asked for.
        uncounted: the layers whose multiplications `macs` lacks.
    """

    def __init__(
        self,
        *,
        axes: Sequence[IntArray],
        params: Sequence[Product],
        macs: Sequence[Product],
        tensors: Sequence[Product],
        lifetimes: Sequence[tuple[int, int]],
        measured: Callable[[], MeasuredParts] = MeasuredParts,
        uncounted: Sequence[str] = (),
    ) -> None:
        lengths = [len(axis) for axis in axes]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._units = np.concatenate([*axes, np.empty(0, np.int32)])
        one = len(lengths)
        self._params = Products.of(params, one)
        self._macs = Products.of(macs, one)
        self._tensors = Products.of(tensors, one)
        self._measured = cache(lambda: MeasuredCosts(measured(), one))
        self._table = CostTable()
        self._uncounted = tuple(uncounted)
        self._born = np.array([born for born, _ in lifetimes], dtype=np.int64)
        self._dies = np.array([dies for _, dies in lifetimes], dtype=np.int64)

    @property
    def measured(self) -> MeasuredCosts:
        """Prices channel counts by measured costs; the copies of a model share it."""
        return self._measured()

    def priced(self, table: CostTable) -> CostModel:
        """The same model, whose costs also hold what this table of measured costs predicts."""
        model = copy(self)
        model._table = table
        return model

    def cost(self, keep: BoolArray) -> ModelCost:
        """The exact cost of the model that keeps these units, and the predicted ones; keep: (units,), True = kept.

        Raises:
            BudgetError: the table of measured costs is that of another model.
        """
        counts = self.counts(keep)
        sizes, times = self._table.file_bytes, self._table.layer_times
        return ModelCost(
            params=self._params.total(counts),
            macs=None if self._uncounted else self._macs.total(counts),
            peak_activation_bytes=FLOAT_BYTES * self._peak(self._tensors.values(counts)),
            tflite_bytes=None if sizes is None else self.measured.tflite_bytes(counts, sizes),
            latency_ms=None if times is None else self.measured.latency_ms(counts, times),
            uncounted=self._uncounted,
        )

    def counted_macs(self, keep: BoolArray) -> int:
        """The MACs of the layers that are counted; keep: (units,). Differences of two are exact where sums are not."""
        return self._macs.total(self.counts(keep))

    def counts(self, keep: BoolArray) -> Counts:
        """(axes + 1,) How many channels each axis keeps; the last one is 1."""
        running = np.concatenate([[0], np.cumsum(keep[self._units], dtype=np.int64)])
        return np.append(np.diff(running[self._starts]), 1)

    def _peak(self, elements: Counts) -> int:
        """The largest number of elements alive at one step: births and deaths summed along the steps."""
        if not len(elements):
            return 0
        change = np.zeros(int(self._dies.max()) + 2, dtype=np.int64)
        np.add.at(change, self._born, elements)
        np.subtract.at(change, self._dies + 1, elements)
        return int(np.cumsum(change).max())

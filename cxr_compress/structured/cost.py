"""What a set of kept channels costs: parameters, MACs and activation memory, exactly, before anything is rebuilt.

Every weight and every tensor is a fixed number times the lengths of the channel axes it has, so a cost is a sum of
products of "how many channels of this axis are kept". All axes of a model are counted in one vectorised pass, which
makes a cost cheap enough to sit inside the search for a budget. File bytes and latency are added where a table says
what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_compress.device.cost_table import CostTable, FileBytes, KernelKind, LayerTimes, LayerUse, ProbeSpec
from cxr_compress.errors import BudgetError
from cxr_compress.structured.wiring import Survivors, Wiring

IntArray = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


class Product(NamedTuple):
    """`factor` times the number of kept channels of each axis in `axes` (at most two, by axis number).

    It counts as long as call or layer number `alive` of the wiring's liveness still runs; None for always.
    """

    factor: int
    axes: tuple[int, ...] = ()
    alive: int | None = None


@dataclass(frozen=True, eq=False)
class Products:
    """Many products as arrays, counted in one pass."""

    factor: Counts
    first: IntArray
    second: IntArray
    living: IntArray

    @classmethod
    def of(cls, products: Sequence[Product], one: int) -> Products:
        """Arrays of the products; `one` is the number of an axis that always has one channel; liveness follows it."""
        factor = np.array([product.factor for product in products], dtype=np.int64)
        padded = np.array([(*product.axes, one, one)[:2] for product in products], dtype=np.int32).reshape(-1, 2)
        living = [one if product.alive is None else one + 1 + product.alive for product in products]
        return cls(factor, padded[:, 0], padded[:, 1], np.array(living, dtype=np.int32))

    def values(self, counts: Counts) -> Counts:
        """(products,) The value of each; counts: as `CostModel.counts`."""
        return np.asarray(self.factor * counts[self.first] * counts[self.second] * self.lives(counts))

    def lives(self, counts: Counts) -> Counts:
        """(products,) 1 for each that counts at all, 0 for those of calls and layers that are gone."""
        return np.asarray(counts[self.living])

    def total(self, counts: Counts) -> int:
        """Their sum."""
        return int(self.values(counts).sum())


# A picosecond: float noise below it must not make two equal models differ.
_MS_DIGITS = 9


@dataclass(frozen=True)
class KernelCall:
    """One use of a kernel: its kind, and the lengths of the kernel's two channel axes."""

    kind: KernelKind
    inputs: Product
    outputs: Product


@dataclass(frozen=True)
class MeasuredParts:
    """What measured costs are multiplied with.

    Attributes:
        kernels: elements of each weight with two or more axes.
        filters: filters of each kernel.
        norms: channels of each normalization that stays in the converted graph.
        calls: every use of a kernel.
        moved: elements that layers without a kernel read or write.
    """

    kernels: Sequence[Product] = ()
    filters: Sequence[Product] = ()
    norms: Sequence[Product] = ()
    calls: Sequence[KernelCall] = ()
    moved: Sequence[Product] = ()


@dataclass(frozen=True)
class FileCounts:
    """What `lite.file_bytes` splits a file by."""

    kernels: int
    filters: int
    norm_channels: int


class MeasuredCosts:
    """Prices channel counts by measured costs.

    Args:
        parts: what the costs are multiplied with.
        one: the number of an axis that always has one channel.
    """

    def __init__(self, parts: MeasuredParts, one: int) -> None:
        self._kernels = Products.of(parts.kernels, one)
        self._filters = Products.of(parts.filters, one)
        self._norms = Products.of(parts.norms, one)
        self._moved = Products.of(parts.moved, one)
        self._kinds = [call.kind for call in parts.calls]
        self._names = [kind.name for kind in self._kinds]
        self._inputs = Products.of([call.inputs for call in parts.calls], one)
        self._outputs = Products.of([call.outputs for call in parts.calls], one)

    def file_counts(self, counts: Counts) -> FileCounts:
        """Kernel elements, filters and channels of normalizations that stay."""
        return FileCounts(self._kernels.total(counts), self._filters.total(counts), self._norms.total(counts))

    def tflite_bytes(self, counts: Counts, table: FileBytes) -> int:
        """Predicted size of the int8 file."""
        split = self.file_counts(counts)
        parts = (
            table.kernel_element * split.kernels,
            table.filter * split.filters,
            table.norm_channel * split.norm_channels,
            table.fixed,
        )
        # An exact sum: the order of its terms, and so the way a model was pruned, cannot show in it.
        return round(math.fsum(parts))

    def latency_ms(self, counts: Counts, table: LayerTimes) -> float:
        """Predicted milliseconds of one run.

        Raises:
            BudgetError: the table has no times for a kind of kernel of this model.
        """
        missing = [name for name in dict.fromkeys(self._names) if name not in table.kinds]
        if missing:
            raise BudgetError(
                f"the latency table has no times for {missing[0]!r} and {len(missing) - 1} other kinds of kernel: it "
                "was measured for another model or input size; make a probe pack of this one and measure that"
            )
        terms = np.array([table.kinds[name] for name in self._names]).reshape(-1, 4)
        inputs, block = self._inputs.values(counts), table.output_block
        outputs = -(-self._outputs.values(counts) // block) * block
        widths = np.stack([self._inputs.lives(counts), inputs, outputs, inputs * outputs], axis=1)
        moved = table.per_element * self.moved(counts)
        return round(math.fsum([*(terms * widths).ravel().tolist(), moved, table.fixed]), _MS_DIGITS)

    def moved(self, counts: Counts) -> int:
        """Elements that layers without a kernel read or write in one run."""
        return self._moved.total(counts)

    def uses(self, counts: Counts) -> tuple[LayerUse, ...]:
        """Every use of a kernel with its widths."""
        widths = zip(
            self._names, self._inputs.values(counts).tolist(), self._outputs.values(counts).tolist(), strict=True
        )
        return tuple(LayerUse(*row) for row in widths)

    def probe_specs(self, counts: Counts, least: Counts) -> tuple[ProbeSpec, ...]:
        """Each kind of kernel once, with its widths from the smallest at `least` to the largest at `counts`."""
        kinds = {kind.name: kind for kind in reversed(self._kinds)}
        most, fewest = self.uses(counts), self.uses(least)
        specs = []
        for name in dict.fromkeys(self._names):
            inputs = [use.inputs for use in (*fewest, *most) if use.kind == name]
            outputs = [use.outputs for use in (*fewest, *most) if use.kind == name]
            specs.append(ProbeSpec(kinds[name], (min(inputs), max(inputs)), (min(outputs), max(outputs))))
        return tuple(specs)


BoolArray = npt.NDArray[np.bool_]

FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModelCost:
    """What a model costs for one image.

    Attributes:
        params: all weights, moving statistics included, as Keras counts them.
        macs: multiply-accumulates of all kernels, with the fewer inputs of the next layer too; None where the model
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
    """The cost of a model as a function of the channel sets it keeps.

    Layers that go as a whole with an empty group cost nothing. Where the model that is left could not be built (a group
    that its output needs is empty), every layer is counted with the channels that it keeps, none of them included.

    Args:
        axes: per channel axis, (channels,) int32: the channel set of each of its channels.
        params: one product per weight.
        macs: one product per use of a kernel.
        tensors: one product per tensor, in elements.
        lifetimes: per tensor, the first and the last step at which it is alive.
        measured: gives what measured costs are multiplied with; called once, when one is asked for.
        uncounted: the layers whose multiplications `macs` lacks.
        wiring: which layers go with an empty group; its tensors are those of `tensors`, in the same order.
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
        wiring: Wiring | None = None,
    ) -> None:
        lengths = [len(axis) for axis in axes]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._sets = np.concatenate([*axes, np.empty(0, np.int32)])
        one = len(lengths)
        self._params = Products.of(params, one)
        self._macs = Products.of(macs, one)
        self._tensors = Products.of(tensors, one)
        self._measured = cache(lambda: MeasuredCosts(measured(), one))
        self._table = CostTable()
        self._uncounted = tuple(uncounted)
        self._wiring = wiring or Wiring()
        self._settled: dict[bytes, Survivors] = {}
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
        """The exact cost of the model that keeps these channel sets, and the predicted ones; keep: (set_count,).

        Raises:
            BudgetError: the table of measured costs is that of another model.
        """
        left = self._left(keep)
        counts = self._counts(keep, left)
        sizes, times = self._table.file_bytes, self._table.layer_times
        return ModelCost(
            params=self._params.total(counts),
            macs=None if self._uncounted else self._macs.total(counts),
            peak_activation_bytes=FLOAT_BYTES * self._peak(self._tensors.values(counts), left),
            tflite_bytes=None if sizes is None else self.measured.tflite_bytes(counts, sizes),
            latency_ms=None if times is None else self.measured.latency_ms(counts, times),
            uncounted=self._uncounted,
        )

    def buildable(self, keep: BoolArray) -> bool:
        """Whether a model is left: no group that it cannot do without is empty."""
        return self._left(keep) is not None or bool(self._lengths(keep).all())

    def counted_macs(self, keep: BoolArray) -> int:
        """The MACs of the layers that are counted: differences of two are exact where sums are not."""
        return self._macs.total(self.counts(keep))

    def counts(self, keep: BoolArray) -> Counts:
        """(axes + 1 + calls + layers,) How many channels each axis keeps, then a 1, then what of the wiring lives."""
        return self._counts(keep, self._left(keep))

    def _counts(self, keep: BoolArray, left: Survivors | None) -> Counts:
        wiring = self._wiring
        alive = np.ones(len(wiring.calls) + len(wiring.layers), np.int64) if left is None else wiring.liveness(left)
        return np.concatenate([self._lengths(keep if left is None else keep & left.allowed), [1], alive])

    def _lengths(self, keep: BoolArray) -> Counts:
        running = np.concatenate([[0], np.cumsum(keep[self._sets], dtype=np.int64)])
        return np.asarray(np.diff(running[self._starts]))

    def _left(self, keep: BoolArray) -> Survivors | None:
        """What is left of the model's wiring; None where all calls stay, or what is left could not be built."""
        empty = self._lengths(keep) == 0
        if not empty.any():
            return None
        # Which axes are empty decides what is left of the wiring; a search asks for many widths of the same layers.
        key = empty.tobytes()
        if key not in self._settled:
            self._settled[key] = self._wiring.settle(keep)
        left = self._settled[key]
        return None if left.problem else left

    def _peak(self, elements: Counts, left: Survivors | None) -> int:
        """The largest number of elements alive at one step: births and deaths summed along the steps."""
        if not len(elements):
            return 0
        dies = self._dies
        if left is not None:
            elements, dies = elements * left.read, self._wiring.dies(left, self._born)
        change = np.zeros(int(dies.max()) + 2, dtype=np.int64)
        np.add.at(change, self._born, elements)
        np.subtract.at(change, dies + 1, elements)
        return int(np.cumsum(change).max())

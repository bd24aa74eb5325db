"""File bytes and latency of a thinner model from measured costs, before it is built.

Both are sums of products of at most two channel axes with factors of 0 or more, as parameters and MACs are. So they
never grow when a channel goes, which the search for a budget relies on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxr_compress.device.cost_table import FileBytes, LayerTimes
from cxr_compress.device.kernel_kind import KernelKind, LayerUse, ProbeSpec
from cxr_compress.errors import BudgetError
from cxr_compress.structured.products import Counts, Product, Products

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
        norms: channels of each normalisation that stays in the converted graph.
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
        """Kernel elements, filters and channels of normalisations that stay."""
        return FileCounts(self._kernels.total(counts), self._filters.total(counts), self._norms.total(counts))

    def tflite_bytes(self, counts: Counts, table: FileBytes) -> int:
        """Predicted size of the int8 file."""
        found = self.file_counts(counts)
        parts = (
            table.kernel_element * found.kernels,
            table.filter * found.filters,
            table.norm_channel * found.norm_channels,
            table.fixed,
        )
        # An exact sum: the order of its terms, and so the way a model was thinned, cannot show in it.
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
        widths = np.stack([np.ones_like(inputs), inputs, outputs, inputs * outputs], axis=1)
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

"""Least squares without negative coefficients: how a kernel's time grows with its widths, from a few measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Terms = tuple[float, float, float, float]

# What the kernels of today's runtimes compute at once: 4 or 8 channels on ARM, up to 32 on x86.
_BLOCKS = (1, 4, 8, 16, 32)
# A coarser block must explain the times clearly better: noise alone may favour any.
_CLEARLY = 0.9


@dataclass(frozen=True)
class KindTimes:
    """The widths and times of one kind of kernel: (probes,) each, times in milliseconds above 0."""

    inputs: Sequence[int]
    outputs: Sequence[int]
    times: FloatArray


@dataclass(frozen=True)
class KindsFit:
    """By kind of kernel, fitted terms and largest relative residual; and the block that outputs are rounded up to."""

    terms: dict[str, Terms]
    residuals: dict[str, float]
    output_block: int


def fit_kinds(kinds: Mapping[str, KindTimes]) -> KindsFit:
    """Fit every kind of kernel, with the one block of output channels that explains all of them best."""
    best, least = _fit_with_block(kinds, 1)
    for block in _BLOCKS[1:]:
        fit, error = _fit_with_block(kinds, block)
        if error < _CLEARLY * least:
            best, least = fit, error
    return best


def _fit_with_block(kinds: Mapping[str, KindTimes], block: int) -> tuple[KindsFit, float]:
    """The fit, and the sum of its squared relative residuals."""
    terms, residuals, total = {}, {}, 0.0
    for name, kind in kinds.items():
        outputs = whole_blocks(kind.outputs, block)
        terms[name] = fit_kind(kind.inputs, outputs, kind.times)
        relative = design(kind.inputs, outputs) @ np.array(terms[name]) / kind.times - 1
        residuals[name] = float(np.abs(relative).max())
        total += float(relative @ relative)
    return KindsFit(terms, residuals, block), total


def whole_blocks(outputs: Sequence[int], block: int) -> list[int]:
    """Each number rounded up to a multiple of the block."""
    return [-(-count // block) * block for count in outputs]


def fit_kind(inputs: Sequence[int], outputs: Sequence[int], times: FloatArray) -> Terms:
    """Non-negative (fixed, per input, per output, per pair) that give the times of one kind of kernel.

    Relative errors are minimised: a layer of 20 us counts as much as one of 2 ms, since a model has many small ones.

    Args:
        inputs: (probes,) input channels.
        outputs: (probes,) output channels.
        times: (probes,) milliseconds, above 0.
    """
    columns = design(inputs, outputs) / times[:, np.newaxis]
    fixed, per_in, per_out, per_in_out = non_negative_least_squares(columns, np.ones(len(times))).tolist()
    return fixed, per_in, per_out, per_in_out


def fit_slope(elements: Sequence[int], times: FloatArray) -> float:
    """Milliseconds per element, from layers of several sizes; what each takes in any case is fitted and left out.

    Args:
        elements: (layers,) that each moves.
        times: (layers,) milliseconds, above 0.
    """
    if not len(times):
        return 0.0
    columns = np.stack([np.ones(len(times)), np.asarray(elements, dtype=np.float64)], axis=1) / times[:, np.newaxis]
    return float(non_negative_least_squares(columns, np.ones(len(times)))[1])


def design(inputs: Sequence[int], outputs: Sequence[int]) -> FloatArray:
    """(layers, 4): what the four terms of each layer are multiplied with."""
    ins, outs = np.asarray(inputs, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    return np.stack([np.ones_like(ins), ins, outs, ins * outs], axis=1)


def non_negative_least_squares(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """The x >= 0 with the least |matrix x - target|; for few columns: every set of columns above 0 is tried.

    Exact: the best x has some set of positive entries, and is the plain least-squares solution on those columns.
    Collinear columns (a width that never changes) share what they explain.

    Args:
        matrix: (rows, columns).
        target: (rows,).
    """
    count = matrix.shape[1]
    sizes = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(sizes > 0, sizes, 1)
    # What NumPy takes when asked to choose; asking makes it warn where tflite-runtime flushes subnormals (ARM).
    rounding = max(matrix.shape) * 2.0**-52
    best, least = np.zeros(count), float(target @ target)
    for columns in chain.from_iterable(combinations(range(count), n) for n in range(1, count + 1)):
        part = list(columns)
        solution = np.linalg.lstsq(scaled[:, part], target, rcond=rounding)[0]
        error = float(np.sum((scaled[:, part] @ solution - target) ** 2))
        # Fewer terms win a tie: what a width that never changes would explain is told by the fixed term.
        if (solution >= 0).all() and error < least * (1 - 1e-12) - 1e-300:
            best, least = np.zeros(count), error
            best[part] = solution
    return best / np.where(sizes > 0, sizes, 1)

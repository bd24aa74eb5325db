"""Least squares over rows that arrive in pieces: only sums of products are kept, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


class NormalEquations:
    """The sums from which  min ||rows * weights + constant - targets||^2  is solved.

    float64, because the products of hundreds of correlated columns lose half of float32's digits.

    Args:
        columns: of the rows.
        outputs: columns of the targets.
        constant: whether a free constant per output is fitted too.
    """

    def __init__(self, columns: int, outputs: int, *, constant: bool) -> None:
        self.rows = 0
        self._constant = constant
        self._gram: Matrix = np.zeros((columns, columns))
        self._cross: Matrix = np.zeros((columns, outputs))
        self._sum_rows: Matrix = np.zeros(columns)
        self._sum_targets: Matrix = np.zeros(outputs)
        self._energy = 0.0

    def add(self, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """Add (n, columns) rows and their (n, outputs) targets."""
        rows64, targets64 = rows.astype(np.float64), targets.astype(np.float64)
        self.rows += len(rows64)
        self._gram += rows64.T @ rows64
        self._cross += rows64.T @ targets64
        self._sum_rows += rows64.sum(axis=0)
        self._sum_targets += targets64.sum(axis=0)
        self._energy += float(np.sum(targets64**2))

    def solve(self, start: npt.NDArray[Any], ridge: float) -> tuple[Matrix, Matrix]:
        """(columns, outputs) weights and (outputs,) constant.

        Args:
            start: the weights that directions without data keep; the ridge pulls towards them, not towards zero.
            ridge: its strength, as a share of the mean column's energy.
        """
        gram, cross = self._gram, self._cross
        if self._constant:
            gram = gram - np.outer(self._sum_rows, self._sum_rows) / self.rows
            cross = cross - np.outer(self._sum_rows, self._sum_targets) / self.rows
        strength = ridge * float(np.trace(gram)) / len(gram)
        weights = start.astype(np.float64)
        if strength > 0:
            damped = gram + strength * np.eye(len(gram))
            weights = weights + np.linalg.solve(damped, cross - gram @ weights)
        return weights, self.best_constant(weights)

    def best_constant(self, weights: Matrix) -> Matrix:
        """The constant that goes best with these weights; zero where none is fitted."""
        if not self._constant:
            return np.zeros_like(self._sum_targets)
        return np.asarray((self._sum_targets - self._sum_rows @ weights) / self.rows)

    def error(self, weights: npt.NDArray[Any], constant: npt.NDArray[Any]) -> float:
        """Squared error over the targets' variance, both summed over outputs: 0 is exact, 1 no better than the mean."""
        weights = weights.astype(np.float64)
        predicted = np.sum(weights * (self._gram @ weights)) + self.rows * np.sum(constant**2.0)
        predicted += 2 * np.sum(constant * (self._sum_rows @ weights))
        mixed = np.sum(weights * self._cross) + np.sum(constant * self._sum_targets)
        spread = self._energy - np.sum(self._sum_targets**2) / self.rows
        return float(max(self._energy + predicted - 2 * mixed, 0.0) / max(spread, 1e-300))

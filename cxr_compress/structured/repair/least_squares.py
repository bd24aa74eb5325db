"""Least squares from sums of products, pulled towards the weights before as strongly as held-out images ask for.

One object holds many small problems of one shape side by side: the channels of a depthwise convolution are a problem
each, any other layer is one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

# Strengths that are tried, as shares of the mean column's energy. Below the first, float32 weights cannot tell the
# difference; at the last, the weights before are all but kept.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
# What is usually chosen with few images; taken where there is nothing to try a fit on.
ONE_IMAGE_RIDGE = 0.1


class NormalEquations:
    """The sums from which  min ||rows * weights + constant - targets||^2  is solved.

    float64, because the products of hundreds of correlated columns lose half of float32's digits.

    Args:
        columns: of the rows.
        outputs: columns of the targets.
        constant: whether a free constant per output is fitted too.
        problems: how many problems of this shape there are.
    """

    def __init__(self, columns: int, outputs: int, *, constant: bool, problems: int = 1) -> None:
        self.rows = 0
        self._constant = constant
        self._gram: Matrix = np.zeros((problems, columns, columns))
        self._cross: Matrix = np.zeros((problems, columns, outputs))
        self._sum_rows: Matrix = np.zeros((problems, columns))
        self._sum_targets: Matrix = np.zeros((problems, outputs))
        self._energy: Matrix = np.zeros(problems)

    def add(self, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """Add (problems, n, columns) rows and their (problems, n, outputs) targets."""
        rows64, targets64 = rows.astype(np.float64), targets.astype(np.float64)
        turned = rows64.transpose(0, 2, 1)
        self.rows += rows64.shape[1]
        self._gram += turned @ rows64
        self._cross += turned @ targets64
        self._sum_rows += rows64.sum(axis=1)
        self._sum_targets += targets64.sum(axis=1)
        self._energy += np.sum(targets64**2, axis=(1, 2))

    def plus(self, other: NormalEquations, sign: int = 1) -> NormalEquations:
        """Those of the rows of both; with `sign=-1` those of the rows that are not in `other`."""
        problems, columns, outputs = self._cross.shape
        both = NormalEquations(columns, outputs, constant=self._constant, problems=problems)
        both.rows = self.rows + sign * other.rows
        for name in ("_gram", "_cross", "_sum_rows", "_sum_targets", "_energy"):
            setattr(both, name, getattr(self, name) + sign * getattr(other, name))
        return both

    def solve(self, start: npt.NDArray[Any], ridge: float | Matrix) -> tuple[Matrix, Matrix]:
        """(problems, columns, outputs) weights and (problems, outputs) constant.

        Args:
            start: the weights that directions without data keep; the ridge pulls towards them, not towards zero.
            ridge: its strength, as a share of the mean column's energy; one number, or one for each problem.
        """
        gram, cross = self._gram, self._cross
        if self._constant:
            gram = gram - self._sum_rows[:, :, None] * self._sum_rows[:, None, :] / self.rows
            cross = cross - self._sum_rows[:, :, None] * self._sum_targets[:, None, :] / self.rows
        columns = gram.shape[-1]
        strength = ridge * np.trace(gram, axis1=1, axis2=2) / columns
        weights = start.astype(np.float64)
        # A problem whose rows are all zero has nothing to solve: a strength of one keeps its weights as they are.
        strength = np.where(strength > 0, strength, 1.0)
        damped = gram + strength[:, None, None] * np.eye(columns)
        weights = weights + np.linalg.solve(damped, cross - gram @ weights)
        return weights, self.best_constant(weights)

    def best_constant(self, weights: Matrix) -> Matrix:
        """The constant that goes best with these weights; zero where none is fitted."""
        if not self._constant:
            return np.zeros_like(self._sum_targets)
        predicted = np.einsum("pc,pco->po", self._sum_rows, weights)
        return np.asarray((self._sum_targets - predicted) / self.rows)

    def squared_errors(self, weights: npt.NDArray[Any], constant: npt.NDArray[Any]) -> Matrix:
        """(problems,) what is left of the targets, squared and summed over rows and outputs."""
        weights = weights.astype(np.float64)
        predicted = np.sum(weights * (self._gram @ weights), axis=(1, 2)) + self.rows * np.sum(constant**2.0, axis=1)
        predicted += 2 * np.sum(constant * np.einsum("pc,pco->po", self._sum_rows, weights), axis=1)
        mixed = np.sum(weights * self._cross, axis=(1, 2)) + np.sum(constant * self._sum_targets, axis=1)
        return np.asarray(np.maximum(self._energy + predicted - 2 * mixed, 0.0))

    def error(self, weights: npt.NDArray[Any], constant: npt.NDArray[Any]) -> float:
        """Squared error over the targets' variance, both summed over outputs: 0 is exact, 1 no better than the mean."""
        spread = np.sum(self._energy) - np.sum(self._sum_targets**2) / self.rows
        return float(np.sum(self.squared_errors(weights, constant)) / max(spread, 1e-300))


def choose_ridge(folds: Sequence[NormalEquations], start: npt.NDArray[Any], ridges: Sequence[float] = RIDGES) -> Matrix:
    """(problems,) the strength that errs least on images that the fit has not seen.

    Args:
        folds: the sums of parts of the images: rows of one image lie in one fold, for they are alike.
        start: as in `NormalEquations.solve`.
        ridges: the strengths to choose from.

    Source: k-fold cross-validation, Stone 1974. Generalized cross-validation (Golub 1979) takes rows for independent,
    which positions of one image are not.
    """
    if len(folds) == 1:
        return np.full(len(start), ONE_IMAGE_RIDGE)
    whole = functools.reduce(NormalEquations.plus, folds)
    rests = [whole.plus(fold, -1) for fold in folds]
    errors = [
        sum(fold.squared_errors(*rest.solve(start, ridge)) for fold, rest in zip(folds, rests, strict=True))
        for ridge in ridges
    ]
    return np.asarray(ridges)[np.argmin(np.stack(errors), axis=0)]

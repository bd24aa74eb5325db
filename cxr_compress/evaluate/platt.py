"""Platt scaling: the slope and offset that turn the logits of one finding into probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_STEPS = 100
_CONVERGED = 1e-10
_HALVINGS = 30


def fit_platt(labels: Array, logits: Array) -> tuple[float, float] | None:
    """Slope and offset of probability = sigmoid(slope * logit + offset) that make the labels most likely.

    Two numbers cannot change the order of films, so ranking and AUROC stay. Labels count as (n + 1) / (n + 2) and
    1 / (m + 2) instead of 1 and 0, which keeps the slope finite where the logits separate the classes.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", section 2.2; Newton's method with step
    halving as in Lin, Lin and Weng 2007.

    Args:
        labels: (n,) 0 or 1, both present.
        logits: (n,) finite.

    Returns:
        Slope and offset; None where higher logits do not mean more of the finding, so that no slope above 0 fits.
    """
    positives = labels.sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    center, spread = float(logits.mean()), float(logits.std())
    if not spread > 0:
        return None
    scaled = (logits - center) / spread  # one size of step then suits every file
    slope, offset = _minimise(target, scaled)
    if not slope > 0:
        return None
    return slope / spread, offset - slope * center / spread


def _minimise(target: Array, x: Array) -> tuple[float, float]:
    """Where the cross entropy, which is convex, is least."""
    parameters = np.array([0.0, float(np.log(target.mean() / (1 - target.mean())))])
    inputs = np.stack([x, np.ones_like(x)])
    loss = _loss(target, parameters @ inputs)
    for _ in range(_STEPS):
        z = parameters @ inputs
        probability = np.exp(-np.logaddexp(0.0, -z))
        gradient = inputs @ (probability - target)
        weight = probability * (1 - probability)
        # A hair above singular, where all films are far out on the sigmoid's flat ends.
        hessian = (inputs * weight) @ inputs.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        if float(gradient @ step) < _CONVERGED:
            break
        for halving in range(_HALVINGS):
            tried = parameters - step / 2**halving
            after = _loss(target, tried @ inputs)
            if after < loss:
                parameters, loss = tried, after
                break
        else:
            break
    return float(parameters[0]), float(parameters[1])


def _loss(target: Array, z: Array) -> float:
    """Cross entropy of targets in (0, 1) and logits, without overflow."""
    return float((np.logaddexp(0.0, z) - target * z).sum())

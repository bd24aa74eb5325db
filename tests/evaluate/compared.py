"""Two models on drawn images of patients with several images: what tests of comparisons start from."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.evaluate import Evaluation, score_logits

FINDINGS = ("common", "rare")
PREVALENCE = (0.4, 0.1)


def draw_logits(
    seed: int = 0, images: int = 1200, signal: float = 2.0
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Labels, logits and patients: two images of each."""
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(images, 2)) < PREVALENCE).astype(np.float32)
    logits = signal * labels - signal / 2 + rng.normal(size=labels.shape)
    return labels, logits.astype(np.float32), tuple(f"p{number // 2:04d}" for number in range(images))


def score(labels: np.ndarray, logits: np.ndarray, patients: tuple[str, ...], **options: Any) -> Evaluation:
    """Scores with a threshold of 0.5 on the sigmoid, which is calibrated enough."""
    probabilities = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    thresholds = options.pop("thresholds", (0.5, 0.5))
    return score_logits(
        logits,
        labels,
        patients,
        FINDINGS,
        decisions=probabilities >= np.asarray(thresholds, np.float32),
        thresholds=thresholds,
        probabilities=probabilities,
        samples=options.pop("samples", 200),
        **options,
    )


def noised(logits: np.ndarray, column: int, scale: float, images: np.ndarray | None = None) -> np.ndarray:
    """The same with noise in one column, of some images alone."""
    noise = np.random.default_rng(1).normal(size=len(logits)).astype(np.float32) * np.float32(scale)
    changed = logits.copy()
    changed[:, column] += noise if images is None else np.where(images, noise, 0)
    return changed

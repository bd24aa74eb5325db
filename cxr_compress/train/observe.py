"""What a model says of images, logits and pooled features in one pass, and what its file keeps of that."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.metrics import choose_threshold, predicted_classes
from cxr_compress.metrics.answers import AnswerStatistics
from cxr_compress.train.distill import last_feature_map, with_map

MOST_IMAGES = 256  # a share is then known to 0.03
_BATCH = 32
_UNDECIDED = 0.5

Floats = npt.NDArray[np.float32]


def observe(model: Any, images: np.ndarray, spec: PreprocessSpec) -> tuple[Floats, Floats | None]:
    """Logits (n, k) of decoded images, and (n, channels) the means of the last feature map over its places.

    Args:
        model: from preprocessed images to logits.
        images: uint8 (n, height, width[, 3]).
        spec: how the model wants its images.

    Returns:
        None for the features of a model whose head reads no map of a layer of its own.
    """
    try:
        viewed = with_map(model, last_feature_map(model))
    except UnsupportedLayerError:
        viewed = None
    logits, features = [], []
    for start in range(0, len(images), _BATCH):
        batch = normalize(images[start : start + _BATCH], spec)
        if viewed is None:
            logits.append(np.asarray(model(batch, training=False), np.float32))
            continue
        answer, maps = viewed(batch, training=False)
        logits.append(np.asarray(answer, np.float32))
        features.append(np.asarray(maps, np.float32).mean(axis=(1, 2)))
    return np.concatenate(logits), np.concatenate(features) if features else None


def decide(
    logits: npt.ArrayLike, pos_weight: npt.ArrayLike, thresholds: npt.ArrayLike, activation: str
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Probabilities (n, k), the class weights of the loss undone, and the decisions that follow.

    Args:
        logits: (n, k).
        pos_weight: (k,) of the loss; ones where it had none.
        thresholds: (k,) on the probabilities; of classes that exclude one another the likeliest counts instead.
        activation: "sigmoid" or "softmax".
    """
    plain = np.asarray(logits, np.float64) - np.log(np.asarray(pos_weight, np.float64))
    probabilities = np.asarray(probabilities_of(plain, activation), np.float32)
    if activation == "softmax":
        return probabilities, predicted_classes(probabilities)
    return probabilities, np.asarray(probabilities >= np.asarray(thresholds, np.float32))


def statistics_of(
    model: Any,
    images: np.ndarray,
    spec: PreprocessSpec,
    *,
    pos_weight: npt.ArrayLike,
    thresholds: npt.ArrayLike,
    activation: str,
    seed: int = 0,
    most: int = MOST_IMAGES,
) -> AnswerStatistics:
    """What a model says of at most `most` of the images, drawn by seed.

    Args:
        model: from preprocessed images to logits.
        images: uint8 (n, height, width[, 3]).
        spec: how the model wants its images.
        pos_weight: see `decide`.
        thresholds: see `decide`.
        activation: see `decide`.
        seed: of the draw.
        most: images.
    """
    count = min(most, len(images))
    chosen = np.sort(np.random.default_rng(seed).choice(len(images), size=count, replace=False))
    logits, features = observe(model, np.asarray(images[chosen]), spec)
    return AnswerStatistics.of(logits, decide(logits, pos_weight, thresholds, activation)[1], features)


def remember(
    model: Any,
    train: np.ndarray,
    dev: tuple[np.ndarray, np.ndarray],
    spec: PreprocessSpec,
    *,
    pos_weight: npt.ArrayLike,
    activation: str,
    seed: int = 0,
) -> dict[str, Any]:
    """What a trained model's file keeps for who compresses it without labels: `thresholds` and `answers`.

    Thresholds are those with the largest sensitivity + specificity on dev, 0.5 of a finding that dev has not both ways.

    Args:
        model: from preprocessed images to logits.
        train: uint8 images that it was trained on.
        dev: images and labels (n, k) of other patients.
        spec: how the model wants its images.
        pos_weight: of the loss.
        activation: "sigmoid" or "softmax".
        seed: of the images that are drawn.
    """
    count = len(np.asarray(pos_weight))
    thresholds = [_UNDECIDED] * count
    if activation != "softmax":
        logits, _ = observe(model, dev[0], spec)
        probabilities, _ = decide(logits, pos_weight, thresholds, activation)
        for column in range(count):
            truth = np.where(np.isin(dev[1][:, column], (0, 1)), dev[1][:, column], np.nan)
            if {0.0, 1.0} <= set(truth):
                thresholds[column] = choose_threshold(truth, probabilities[:, column])
    options: dict[str, Any] = {"pos_weight": pos_weight, "thresholds": thresholds, "activation": activation}
    answers = statistics_of(model, train, spec, seed=seed, **options)
    return {"thresholds": None if activation == "softmax" else tuple(thresholds), "answers": answers}

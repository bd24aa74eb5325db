"""Training with weighted cross-entropy from logits, resumable after every epoch. Importing this loads TensorFlow."""

from __future__ import annotations

# Eager on purpose: a lazy `fit` would turn into the submodule of that name as soon as anyone imported the latter.
from cxr_compress.recipe import AugmentRanges
from cxr_compress.train.batches import Batches
from cxr_compress.train.config import FitConfig, FitResult
from cxr_compress.train.distill import FeatureMatch, last_feature_map
from cxr_compress.train.fit import fit
from cxr_compress.train.losses import (
    CategoricalCrossEntropy,
    WeightedBce,
    balanced_weights,
    class_weights,
    pos_weights,
)
from cxr_compress.train.step import predict_logits

__all__ = [
    "AugmentRanges",
    "Batches",
    "CategoricalCrossEntropy",
    "FeatureMatch",
    "FitConfig",
    "FitResult",
    "WeightedBce",
    "balanced_weights",
    "class_weights",
    "fit",
    "last_feature_map",
    "pos_weights",
    "predict_logits",
]

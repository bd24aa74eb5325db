"""The only module that chooses Keras: `keras` is tf_keras, the Keras 2 that TF-MOT and the TFLite converter serve.

With TensorFlow 2.16 and later `tf.keras` is Keras 3, whose objects TF-MOT refuses ("can only prune ..."), so the
rest of the package imports `keras` from here and a linter rule bans every other spelling.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

from cxr_compress.errors import CompressionError

# TF-MOT picks its Keras by this variable when it is imported first; without it, it would take Keras 3's objects.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# The C++ start-up banner (CPU features, missing CUDA) tells a user nothing; errors still come through.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tf_keras as keras

__all__ = ["keras", "tfmot"]


def tfmot() -> Any:
    """The package TensorFlow Model Optimization (TF-MOT), imported on first use.

    Raises:
        CompressionError: TF-MOT, or what it needs, is not installed.
    """
    try:
        with warnings.catch_warnings():
            # TF-MOT 0.8.1 compares version numbers with distutils, which warns that it is deprecated.
            warnings.filterwarnings("ignore", message=".*distutils", category=DeprecationWarning)
            return importlib.import_module("tensorflow_model_optimization")
    except ImportError as error:
        raise CompressionError(
            "weight pruning and quantization-aware training need TensorFlow Model Optimization, which cannot be "
            f'imported ({error}): pip install "cxr-compress[train]" setuptools'
        ) from error

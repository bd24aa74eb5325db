"""The one place that imports TensorFlow Model Optimization (TF-MOT), after the Keras it has to work with."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import cxr_compress.keras2  # noqa: F401 - tells TF-MOT to take tf_keras: it refuses the objects of any other Keras
from cxr_compress.errors import CompressionError


def load_tfmot(purpose: str) -> Any:
    """Return the package, imported on first use.

    Args:
        purpose: What needs it, as a user reads it.

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
            f"{purpose} needs TensorFlow Model Optimization, which cannot be imported ({error}): "
            'pip install "cxr-compress[train]" setuptools'
        ) from error


_api = load_tfmot("quantization-aware training").quantization.keras
Quantizer: Any = _api.quantizers.Quantizer
QuantizeConfig: Any = _api.QuantizeConfig
QuantizeWrapper: Any = _api.QuantizeWrapperV2


@functools.cache
def sparsity_api() -> Any:
    """Return TF-MOT's ``sparsity.keras`` module, imported on first use.

    Raises:
        CompressionError: TF-MOT, or what it needs, is not installed.
    """
    return load_tfmot("weight pruning").sparsity.keras

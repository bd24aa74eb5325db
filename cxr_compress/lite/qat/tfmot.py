"""The one place of this package that imports TensorFlow Model Optimization (TF-MOT), after the Keras it works with."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import cxr_compress.keras2  # noqa: F401 - tells TF-MOT to take tf_keras: it refuses the objects of any other Keras
from cxr_compress.errors import CompressionError


def _quantization_api() -> Any:
    """TF-MOT's ``quantization.keras`` module.

    Raises:
        CompressionError: TF-MOT, or what it needs, is not installed.
    """
    try:
        with warnings.catch_warnings():
            # TF-MOT 0.8.1 compares version numbers with distutils, which warns that it is deprecated.
            warnings.filterwarnings("ignore", message=".*distutils", category=DeprecationWarning)
            return importlib.import_module("tensorflow_model_optimization").quantization.keras
    except ImportError as error:
        raise CompressionError(
            f"quantisation-aware training needs TensorFlow Model Optimization, which cannot be imported ({error}): "
            'pip install "cxr-compress[train]" setuptools'
        ) from error


_api = _quantization_api()
Quantizer: Any = _api.quantizers.Quantizer
QuantizeConfig: Any = _api.QuantizeConfig
QuantizeWrapper: Any = _api.QuantizeWrapperV2

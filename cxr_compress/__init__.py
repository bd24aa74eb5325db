"""Compress Keras chest X-ray classifiers into small, fast, honest .tflite files.

The public names and packages below load on first use, so that `import cxr_compress` stays light on a Raspberry Pi and
never pulls in TensorFlow by itself. Research use only; not a medical device and not a diagnosis.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Classifier": "cxr_compress.device",
    "CompressionError": "cxr_compress.errors",
    "Recipe": "cxr_compress.recipe",
}

_PACKAGES = (
    *("data", "device", "evaluate", "lite", "metrics", "models", "pipeline", "report", "sparsity", "structured"),
    "train",
)

__all__ = ["Classifier", "CompressionError", "Recipe", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name or package when it is first asked for."""
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What people need, loaded already or not."""
    return sorted((*__all__, *_PACKAGES))

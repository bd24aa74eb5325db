"""The part that ships to the device: numpy, OpenCV, absl and a TFLite runtime; never TensorFlow.

The names below load on first use, so that a command that needs only one of them starts fast.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Classifier": "classifier",
    "CostTable": "cost_table",
    "DicomView": "dicom",
    "Findings": "classifier",
    "ReferenceOutputs": "modelinfo",
    "ImageGateWarning": "preprocess",
    "INTENDED_USE": "modelinfo",
    "Latency": "benchmark",
    "ModelFile": "modelfile",
    "ModelInfo": "modelinfo",
    "PreprocessSpec": "spec",
    "Verification": "verify",
    "load_interpreter": "interpreter",
    "measure_layers": "layer_times",
    "measure_together": "benchmark",
    "pack_model": "modelfile",
    "read_model": "modelfile",
    "sign_file": "modelfile",
    "verify_model": "verify",
    "verify_signature": "modelfile",
}

__all__ = sorted(_PUBLIC)  # noqa: PLE0605 - resolved by __getattr__ below


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded already or not."""
    return __all__

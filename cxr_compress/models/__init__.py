"""Keras models of chest X-ray classifiers, their files and foreign weights. Importing this loads Keras (seconds)."""

from __future__ import annotations

# Eager on purpose: a lazy `chexnet` would turn into the submodule of that name as soon as anyone imported the latter.
from cxr_compress.models.about import ModelAbout
from cxr_compress.models.architectures import MODELS, build, chexnet, efficientnet_lite0, tiny_chexnet
from cxr_compress.models.files import load_model, read_about, save_model
from cxr_compress.models.imports.foreign import import_weights
from cxr_compress.models.npz_weights import load_npz_weights, save_npz_weights

__all__ = [
    "MODELS",
    "ModelAbout",
    "build",
    "chexnet",
    "efficientnet_lite0",
    "import_weights",
    "load_model",
    "load_npz_weights",
    "read_about",
    "save_model",
    "save_npz_weights",
    "tiny_chexnet",
]

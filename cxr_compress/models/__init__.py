"""Keras models of chest X-ray classifiers, their files and foreign weights. Importing this loads Keras (seconds)."""

from __future__ import annotations

# Eager on purpose: a lazy `chexnet` would turn into the submodule of that name as soon as anyone imported the latter.
from cxr_compress.models.chexnet import chexnet, tiny_chexnet
from cxr_compress.models.keras_file import load_model, save_model
from cxr_compress.models.npz_weights import load_npz_weights

__all__ = ["chexnet", "load_model", "load_npz_weights", "save_model", "tiny_chexnet"]

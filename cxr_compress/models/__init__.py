"""Keras models of chest X-ray classifiers, their files and foreign weights. The first use of a name loads Keras."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cxr_compress.models.architectures import MODELS, build, register_architecture

if TYPE_CHECKING:
    from cxr_compress.models.about import ModelAbout
    from cxr_compress.models.files import load_model, read_about, save_model
    from cxr_compress.models.imports.foreign import import_weights
    from cxr_compress.models.networks import chexnet, efficientnet_lite0, tiny_chexnet
    from cxr_compress.models.npz_weights import load_npz_weights, save_npz_weights

_MODULES = {
    "about": ("ModelAbout",),
    "files": ("load_model", "read_about", "save_model"),
    "imports.foreign": ("import_weights",),
    "networks": ("chexnet", "efficientnet_lite0", "tiny_chexnet"),
    "npz_weights": ("load_npz_weights", "save_npz_weights"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

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
    "register_architecture",
    "save_model",
    "save_npz_weights",
    "tiny_chexnet",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: flags that list the networks should not wait for Keras."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)

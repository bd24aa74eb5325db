"""Export to .tflite: freeze, convert, calibrate and audit. Importing it loads no TensorFlow; the first conversion does.

The functions shadow the modules of the same name on purpose: `from cxr_compress.lite import convert, audit`.
"""

from __future__ import annotations

# Eager, because a lazy name would turn into the submodule as soon as anyone imported that; the modules are light.
from cxr_compress.lite.audit import TARGETS, Audit, TooNew, audit, require_integer
from cxr_compress.lite.convert import convert
from cxr_compress.lite.exporter import LiteModel
from cxr_compress.lite.freeze import FrozenFunction, freeze, freeze_signature
from cxr_compress.lite.graph.canonical import canonical_hash
from cxr_compress.lite.graph.constants import SparsityCount
from cxr_compress.lite.int8.layer_snr import Fallback, LayerSnr, layer_snr
from cxr_compress.lite.options import ConvertOptions
from cxr_compress.lite.pack_file import pack_file
from cxr_compress.lite.parity import Parity
from cxr_compress.quant_types import QUANT_TYPES

__all__ = [
    "QUANT_TYPES",
    "TARGETS",
    "Audit",
    "ConvertOptions",
    "Fallback",
    "FrozenFunction",
    "LayerSnr",
    "LiteModel",
    "Parity",
    "SparsityCount",
    "TooNew",
    "audit",
    "canonical_hash",
    "convert",
    "freeze",
    "freeze_signature",
    "layer_snr",
    "pack_file",
    "require_integer",
]

"""Export to .tflite: freeze, convert, calibrate and audit. Importing it loads no TensorFlow; the first conversion does.

The functions shadow the modules of the same name on purpose: ``from cxr_compress.lite import convert, audit``.
"""

from __future__ import annotations

# Eager, because a lazy name would turn into the submodule as soon as anyone imported that; the modules are light.
from cxr_compress.lite.audit import Audit, audit, require_integer
from cxr_compress.lite.convert import QUANT_TYPES, LiteModel, convert
from cxr_compress.lite.describe.pack_file import pack_file
from cxr_compress.lite.freeze import FrozenFunction, freeze, freeze_signature
from cxr_compress.lite.graph.canonical import canonical_hash
from cxr_compress.lite.graph.op_versions import TARGETS, TooNew
from cxr_compress.lite.graph.zeros import SparsityCount
from cxr_compress.lite.int8.fallback import Fallback
from cxr_compress.lite.int8.layer_snr import LayerSnr, layer_snr
from cxr_compress.lite.int8.ranges import CALIBRATION_METHODS
from cxr_compress.lite.parity import Parity

__all__ = [
    "CALIBRATION_METHODS",
    "QUANT_TYPES",
    "TARGETS",
    "Audit",
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

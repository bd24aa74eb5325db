"""The quant types that files come in."""

from __future__ import annotations

FLOAT_ENDS = "int8_float_io"
INT16 = "int16x8"
QUANT_TYPES = ("none", "fp16", "dynamic", "int8", FLOAT_ENDS, INT16)
# Their value ranges come from images.
CALIBRATED = ("int8", FLOAT_ENDS, INT16)

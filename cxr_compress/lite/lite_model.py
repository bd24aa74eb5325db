"""What a conversion gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from cxr_compress.lite.audit import Audit
from cxr_compress.lite.fallback import Fallback
from cxr_compress.lite.layer_snr import LayerSnr

QUANT_TYPES = ("none", "fp16", "dynamic", "int8", "int8_float_io")
FLOAT_ENDS = "int8_float_io"
CALIBRATED = ("int8", FLOAT_ENDS)


@dataclass(frozen=True)
class LiteModel:
    """One converted model.

    Attributes:
        content: the plain flatbuffer, without labels and preprocessing (device.modelfile.pack_model adds those).
        quant_type: one of QUANT_TYPES.
        audit: what is inside.
        layers: how far each layer is from the float file's, worst first; () where nobody asked.
        fallback: what leaving layers in float costs and gives; None where none were to be chosen.
    """

    content: bytes = field(repr=False)
    quant_type: str
    audit: Audit
    layers: tuple[LayerSnr, ...] = field(default=(), repr=False)
    fallback: Fallback | None = None

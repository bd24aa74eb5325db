"""What a conversion gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from cxr_compress.lite.audit import Audit
from cxr_compress.lite.int8.fallback import Fallback
from cxr_compress.lite.int8.layer_snr import LayerSnr
from cxr_compress.lite.parity import Parity


@dataclass(frozen=True)
class LiteModel:
    """One converted model.

    Attributes:
        content: the plain flatbuffer, without labels and preprocessing (device.modelfile.pack_model adds those).
        quant_type: one of QUANT_TYPES.
        audit: what is inside.
        layers: how far each layer is from the float file's, worst first; () where nobody asked.
        fallback: what leaving layers in float costs and gives; None where none were to be chosen.
        parity: the file's answers beside the model's; None where nothing was compared.
    """

    content: bytes = field(repr=False)
    quant_type: str
    audit: Audit
    layers: tuple[LayerSnr, ...] = field(default=(), repr=False)
    fallback: Fallback | None = None
    parity: Parity | None = None

"""TF-MOT's quantisation-aware training. Importing this is a CompressionError where TF-MOT is not installed."""

from __future__ import annotations

from typing import Any

from cxr_compress.models.tfmot import load_tfmot

_api = load_tfmot("quantisation-aware training").quantization.keras
Quantizer: Any = _api.quantizers.Quantizer
QuantizeConfig: Any = _api.QuantizeConfig
QuantizeWrapper: Any = _api.QuantizeWrapperV2

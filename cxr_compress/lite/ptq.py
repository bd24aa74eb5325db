"""How int8 is made after training: which ranges, whether biases are corrected, and what stays in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_compress.errors import CompressionError
from cxr_compress.lite.clipping import DEFAULT_PERCENTILE, check_method


@dataclass(frozen=True)
class PtqOptions:
    """Options of `convert` for the int8 types.

    Attributes:
        calibration_method: one of `clipping.CALIBRATION_METHODS`.
        percentile: of the values that a range keeps at either end, for "percentile".
        bias_correction: take the shift of each channel's mean back (`bias_correction.correct_bias`).
        float_layers: names of layers that compute in float.
        auto_fallback: so many more are chosen.
        layer_report: compare the layers with the float graph's.
    """

    calibration_method: str = "minmax"
    percentile: float = DEFAULT_PERCENTILE
    bias_correction: bool = False
    float_layers: tuple[str, ...] = ()
    auto_fallback: int = 0
    layer_report: bool = False

    def check(self, quant_types: Sequence[str]) -> None:
        """Check the options, also against the types that are wanted, before the slow part starts.

        Raises:
            CompressionError: an unknown method, a percentile or a count that is none, or layers in float of "int8".
        """
        check_method(self.calibration_method, self.percentile)
        if self.auto_fallback < 0:
            raise CompressionError(f"expected auto_fallback of 0 layers or more, got {self.auto_fallback}")
        if (self.float_layers or self.auto_fallback) and ("int8" in quant_types or "int8_float_io" not in quant_types):
            raise CompressionError(
                f"layers left in float need quant type int8_float_io, got {', '.join(quant_types)}: int8 promises "
                "integer arithmetic throughout; ask for int8_float_io, or leave float_layers and auto_fallback out"
            )

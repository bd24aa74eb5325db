"""How int8 is made after training: which ranges, and what stays in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_compress.errors import CompressionError
from cxr_compress.lite.int8.ranges import DEFAULT_PERCENTILE, check_method
from cxr_compress.quant_types import FLOAT_ENDS, INT16


@dataclass(frozen=True)
class PtqOptions:
    """Options of `convert` for the int8 types.

    Attributes:
        calibration_method: one of `clipping.CALIBRATION_METHODS`.
        percentile: of the values that a range keeps at either end, for "percentile".
        float_layers: names of layers that compute in float.
        auto_fallback: so many more are chosen.
        layer_report: compare the layers with the float graph's.
        denylisted_ops: kinds of operators that compute in float, wherever they occur.
        fold_scales: move the scales of batch norms in front of convolutions into those (`fold_choice.choose_folds`).
    """

    calibration_method: str = "mse"
    percentile: float = DEFAULT_PERCENTILE
    float_layers: tuple[str, ...] = ()
    auto_fallback: int = 0
    layer_report: bool = False
    denylisted_ops: tuple[str, ...] = ()
    fold_scales: bool = True

    def check(self, quant_types: Sequence[str]) -> None:
        """Check the options, also against the types that are wanted, before the slow part starts.

        Raises:
            CompressionError: an unknown method, a percentile or a count that is none, or layers in float of a type
                that computes in integers only.
        """
        check_method(self.calibration_method, self.percentile)
        if self.auto_fallback < 0:
            raise CompressionError(f"expected auto_fallback of 0 layers or more, got {self.auto_fallback}")
        strict = [name for name in ("int8", INT16) if name in quant_types]
        if (self.float_layers or self.denylisted_ops or self.auto_fallback) and (
            strict or FLOAT_ENDS not in quant_types
        ):
            promise = f"{strict[0]} promises integer arithmetic throughout; " if strict else ""
            raise CompressionError(
                f"layers left in float need quant type int8_float_io, got {', '.join(quant_types)}: {promise}"
                "ask for int8_float_io, or leave float_layers, denylisted_ops and auto_fallback out"
            )

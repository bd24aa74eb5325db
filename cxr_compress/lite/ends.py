"""What the two ends of a file store: the quant type says so, and the user within its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_compress.errors import CompressionError
from cxr_compress.lite.quant_types import FLOAT_ENDS, INT16, QUANT_TYPES

END_TYPES = ("float32", "int8", "uint8", "int16")
# The first is what a type's ends store unless something else is asked for.
_POSSIBLE = {
    "int8": ("int8", "uint8", "float32"),
    FLOAT_ENDS: ("float32",),
    INT16: ("int16", "float32"),
}
_FLOAT = ("float32",)


@dataclass(frozen=True)
class Ends:
    """What a file takes and gives; the integers stand for real values by a scale and a zero point.

    Attributes:
        input: numpy's name of the input's dtype.
        output: likewise.
        pixels: the input is uint8 and its codes are the pixels themselves.
        arithmetic: what the activations between them are, "int8" or "int16"; for integer types.
    """

    input: str = "int8"
    output: str = "int8"
    pixels: bool = False
    arithmetic: str = "int8"


INT8_ENDS = Ends()
INT16_ENDS = Ends("int16", "int16", arithmetic="int16")


def ends_of(
    quant_type: str, *, pixels: bool = False, input_type: str | None = None, output_type: str | None = None
) -> Ends:
    """The ends of a file.

    Args:
        quant_type: one of QUANT_TYPES.
        pixels: the file normalises pixels itself, so its input is uint8 in any type.
        input_type: as asked for; None for the type's own.
        output_type: likewise.

    Raises:
        CompressionError: the type has no such end, or pixels and another input were asked for.
    """
    if pixels and input_type not in (None, "uint8"):
        raise CompressionError(
            f"a file that takes pixels has a uint8 input, got inference_input_type {input_type}: leave that out, or "
            "let the device normalise (input=float32)"
        )
    start = "uint8" if pixels else _chosen(quant_type, "inference_input_type", input_type)
    end = _chosen(quant_type, "inference_output_type", output_type)
    return Ends(start, end, pixels, "int16" if quant_type == INT16 else "int8")


def check_ends(
    quant_types: Sequence[str], *, pixels: bool = False, input_type: str | None = None, output_type: str | None = None
) -> None:
    """Check the ends of several types before the slow part starts; arguments and errors as `ends_of`."""
    for name in quant_types:
        ends_of(name, pixels=pixels, input_type=input_type, output_type=output_type)


def _chosen(quant_type: str, option: str, wanted: str | None) -> str:
    possible = _POSSIBLE.get(quant_type, _FLOAT)
    if wanted is None:
        return possible[0]
    if wanted not in possible:
        takers = [name for name in QUANT_TYPES if wanted in _POSSIBLE.get(name, _FLOAT)]
        raise CompressionError(
            f"{quant_type} has {' or '.join(possible)} ends, got {option} {wanted}: "
            + (f"ask for {' or '.join(takers)}" if takers else f"expected one of {', '.join(END_TYPES)}")
        )
    return wanted

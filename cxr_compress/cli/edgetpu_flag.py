"""The flag of cxr_convert that holds a file to the rules of Coral's Edge TPU."""

from __future__ import annotations

from absl import flags

from cxr_compress.cli.common import UsageError

_NEEDED = ["int8"]


def define_edgetpu_flag(values: flags.FlagValues) -> None:
    """Define it."""
    text = (
        "Fail where Coral's Edge TPU would not run the whole file, with the operator and its layer; --quant_type=int8 "
        "alone. cxr_inspect --target=edgetpu shows all operators."
    )
    flags.DEFINE_boolean("edgetpu", False, text, flag_values=values)


def check_edgetpu_flag(values: flags.FlagValues) -> None:
    """Find what contradicts it before the slow part starts.

    Raises:
        UsageError: another quant type, or ends that are not 8-bit.
    """
    if not values.edgetpu:
        return
    if list(values.quant_type) != _NEEDED:
        raise UsageError(f"--edgetpu needs --quant_type=int8, got {','.join(values.quant_type) or 'nothing'}")
    for name in ("inference_input_type", "inference_output_type"):
        if str(values[name].value or "").lower() in ("float", "float32"):
            raise UsageError(f"--edgetpu needs 8-bit ends, got --{name}={values[name].value}")

"""The flag that runs a .tflite on an accelerator, the same for every command that runs one."""

from __future__ import annotations

from absl import flags


def define_delegate_flag(values: flags.FlagValues) -> None:
    """Define it."""
    text = (
        "Library of an accelerator, as libedgetpu.so.1 for Coral's Edge TPU and models that edgetpu_compiler has "
        "compiled; left out: the processor."
    )
    flags.DEFINE_string("delegate", None, text, flag_values=values)

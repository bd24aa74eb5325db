"""Flags of the commands that run .tflite files, and of those that sign or check them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import UsageError
from cxr_compress.cli.output import Output
from cxr_compress.device.interpreter import RUNTIMES
from cxr_compress.device.modelfile import (
    MAKE_KEY,
    MAKE_PUBLIC_KEY,
    SIGNATURE_BYTES,
    load_private_key,
    sign_file,
    signature_path,
    verify_signature,
)


def define_runtime_flags(values: flags.FlagValues) -> None:
    """Define what a file is run with: --num_threads, --runtime and --delegate."""
    flags.DEFINE_integer("num_threads", 1, "Threads that run the model.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("runtime", "auto", RUNTIMES, "Which TFLite runtime to use.", flag_values=values)
    define_delegate_flag(values)


def runtime_options(values: flags.FlagValues) -> dict[str, Any]:
    """The values of those flags, as what runs a file takes them."""
    return {name: values[name].value for name in ("num_threads", "runtime", "delegate")}


def define_model_list_flag(values: flags.FlagValues) -> None:
    """Define --model of commands that take several files."""
    flags.DEFINE_list("model", None, "One or more .tflite files, separated by commas.", flag_values=values)


def check_model_list(values: flags.FlagValues, arguments: list[str], purpose: str) -> None:
    """Refuse a call without --model, or with files as arguments.

    Raises:
        UsageError: says what is expected.
    """
    if not values.model:
        raise UsageError(f"expected --model=FILE[,FILE...], the .tflite files to {purpose}")
    if arguments:
        raise UsageError(f"expected no argument, got {arguments[0]!r}; several models go into --model, with commas")


def define_delegate_flag(values: flags.FlagValues) -> None:
    """Define --delegate."""
    text = (
        "Library of an accelerator, as libedgetpu.so.1 for Coral's Edge TPU and models that edgetpu_compiler has "
        "compiled; left out: the processor."
    )
    flags.DEFINE_string("delegate", None, text, flag_values=values)


def define_sign_flag(values: flags.FlagValues) -> None:
    """Define --sign_key of commands that write files."""
    text = f"Ed25519 private key (PEM; {MAKE_KEY}): signs each file, as FILE.sig; needs the extra sign."
    flags.DEFINE_string("sign_key", None, text, flag_values=values)


def check_sign_flag(values: flags.FlagValues) -> None:
    """Find a key that cannot be used before the slow part starts.

    Raises:
        CompressionError: says why.
    """
    if values.sign_key is not None:
        load_private_key(values.sign_key)


def signature_outputs(values: flags.FlagValues, paths: Iterable[Path]) -> list[Output]:
    """The signatures that will be written beside some files; what has the size of one is taken for an earlier one."""

    def made_before(path: Path) -> str:
        return "an earlier signature" if path.stat().st_size == SIGNATURE_BYTES else ""

    if values.sign_key is None:
        return []
    return [Output("output_file", signature_path(path), ".sig", made_before) for path in paths]


def sign_written(values: flags.FlagValues, paths: Iterable[Path]) -> None:
    """Sign the files that were written, if that is wanted.

    Raises:
        CompressionError: a signature cannot be written.
    """
    if values.sign_key is not None:
        for path in paths:
            sign_file(path, values.sign_key)


def define_public_key_flag(values: flags.FlagValues) -> None:
    """Define --public_key of commands that load models."""
    text = (
        f"Ed25519 public key (PEM; {MAKE_PUBLIC_KEY}): a model must have its signature in FILE.sig; needs extra sign."
    )
    flags.DEFINE_string("public_key", None, text, flag_values=values)


def check_signature(values: flags.FlagValues) -> None:
    """Check the signature of --model, if a key is given.

    Raises:
        CompressionError: it is missing or wrong, or the key cannot be used.
    """
    if values.public_key is not None:
        verify_signature(values.model, values.public_key)

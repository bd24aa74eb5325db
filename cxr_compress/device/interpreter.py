"""Choose the TFLite runtime of this machine, and say in one line what is missing when none can run the model."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.delegate import EDGETPU_OP, load_delegate
from cxr_compress.device.native_log import without_stderr_lines
from cxr_compress.errors import CompressionError, ModelFileError, RuntimeUnavailableError

# Bytes 4 to 8 of every TFLite flatbuffer. Source: tensorflow/lite/schema/schema.fbs, file_identifier.
FLATBUFFER_IDENTIFIER = b"TFL3"

_TFLITE_NUMPY = 'pip install "numpy<2" "opencv-python-headless<4.12"'
_INSTALL = 'install one: pip install ai-edge-litert, or pip install "tflite-runtime==2.14.0" "numpy<2"'
_XNNPACK_NOTICE = "INFO: Created TensorFlow Lite XNNPACK delegate"


@dataclass(frozen=True)
class _Runtime:
    """One TFLite runtime: its short name, its distribution on PyPI and its module."""

    name: str
    distribution: str
    module: str


# In order of preference: LiteRT is maintained and several times faster on x86.
_RUNTIMES = (
    _Runtime("litert", "ai-edge-litert", "ai_edge_litert"),
    _Runtime("tflite-runtime", "tflite-runtime", "tflite_runtime"),
)
RUNTIMES = ("auto", *(runtime.name for runtime in _RUNTIMES))


@dataclass(frozen=True)
class LoadedInterpreter:
    """A TFLite interpreter with its tensors allocated.

    Attributes:
        interpreter: the runtime's own object; not safe to share between threads.
        runtime: which runtime and version, for instance "ai-edge-litert 2.3.0", and the delegate where there is one.
    """

    interpreter: Any
    runtime: str


def load_interpreter(
    content: bytes,
    *,
    num_threads: int = 1,
    runtime: str = "auto",
    delegate: str | None = None,
    xnnpack: bool = True,
    allocate: bool = True,
) -> LoadedInterpreter:
    """Load a .tflite flatbuffer into the first TFLite runtime that is installed; never into TensorFlow.

    Args:
        content: the flatbuffer (`ModelFile.content`). tflite-runtime 2.14 crashes the process on a flatbuffer that is
            cut short; `read_model` has verified that it is whole.
        num_threads: threads of the kernels, at least 1. One is right for small models; more pays off above a few ms.
        runtime: "auto", or "litert" or "tflite-runtime" to insist on one. Outputs of an int8 model differ by a few
            steps of the output scale between the two, most of all where only one of them has XNNPACK's kernels for it.
        delegate: library of an accelerator, for instance "libedgetpu.so.1" for Coral's Edge TPU, which takes models
            that edgetpu_compiler has compiled; None runs on the processor.
        xnnpack: False leaves TFLite's own kernels alone, slower, to see what the choice of kernels changes.
        allocate: False leaves out the tensors: enough to read what the file holds.

    Raises:
        RuntimeUnavailableError: no runtime is installed and usable, or it is too old for an operator of the model; the
            delegate is missing, is none, finds no device or refuses the model.
        ModelFileError: the bytes are not a model that a runtime can read.
    """
    if content[4:8] != FLATBUFFER_IDENTIFIER:
        raise ModelFileError(f"expected a TFLite flatbuffer, got {len(content)} bytes that are none; convert it again")
    if runtime not in RUNTIMES:
        raise RuntimeUnavailableError(f"expected a runtime of {', '.join(RUNTIMES)}; got {runtime!r}")
    if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
        raise RuntimeUnavailableError(f"expected num_threads as a whole number above 0, got {num_threads!r}")
    lacking = []
    for candidate in _RUNTIMES:
        if runtime not in ("auto", candidate.name):
            continue
        make, lack = _find(candidate)
        if make is not None:
            options = {"num_threads": num_threads, **({} if xnnpack else _without_xnnpack(candidate))}
            return _load(make, candidate, content, options, delegate, allocate)
        lacking.append(f"{candidate.distribution} {lack}")
    raise RuntimeUnavailableError(f"no TFLite runtime can be used: {'; '.join(lacking)}; {_INSTALL}")


def _find(candidate: _Runtime) -> tuple[Callable[..., Any] | None, str]:
    """Give the Interpreter class of a runtime, or None and what it lacks."""
    if importlib.util.find_spec(candidate.module) is None:
        return None, "is not installed"
    if candidate.name == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:  # noqa: PLR2004
        # It would import, then die in the constructor with a SystemError that says nothing of NumPy.
        return None, f"{_version(candidate)} needs NumPy 1, found {np.__version__} ({_TFLITE_NUMPY})"
    try:
        return importlib.import_module(f"{candidate.module}.interpreter").Interpreter, ""
    except (ImportError, OSError, AttributeError) as error:  # a wheel for another processor, C library or Python
        return None, f"{_version(candidate)} cannot be imported ({_one_line(error)})"


def _without_xnnpack(candidate: _Runtime) -> dict[str, Any]:
    resolvers = importlib.import_module(f"{candidate.module}.interpreter").OpResolverType
    return {"experimental_op_resolver_type": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


def _load(  # noqa: PLR0917 - what a runtime wants to know
    make: Callable[..., Any],
    candidate: _Runtime,
    content: bytes,
    options: dict[str, Any],
    delegate: str | None,
    allocate: bool,
) -> LoadedInterpreter:
    """Construct and allocate, with the runtime's complaints turned into one line."""
    name = f"{candidate.distribution} {_version(candidate)}"
    if delegate is not None:
        options = {**options, "experimental_delegates": [load_delegate(delegate, candidate.module)]}
    try:
        with without_stderr_lines(_XNNPACK_NOTICE):
            interpreter = make(model_content=content, **options)
            if allocate:
                interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _explained(name, delegate, error) from error
    return LoadedInterpreter(interpreter, name if delegate is None else f"{name} with {Path(delegate).name}")


def _explained(name: str, delegate: str | None, error: Exception) -> CompressionError:
    """What a runtime's complaint means for the user."""
    if EDGETPU_OP in str(error) and delegate is None:
        return RuntimeUnavailableError(
            "the model is compiled for Coral's Edge TPU: run it there with --delegate=libedgetpu.so.1, or take the "
            "file that it was compiled from"
        )
    if delegate is not None:
        return RuntimeUnavailableError(
            f"{name} cannot run this model with the delegate {delegate}: {_one_line(error)}; compile the model for it, "
            "or leave --delegate out"
        )
    # An operator version that the runtime does not know comes as a ValueError too, and is not the file's fault.
    too_new = "builtin opcode" in str(error) or "Registration failed" in str(error)
    if isinstance(error, ValueError) and not too_new:
        return ModelFileError(f"{name} cannot read the model: {_one_line(error)}; convert it again")
    return RuntimeUnavailableError(_too_old(name, error))


def _too_old(name: str, error: Exception) -> str:
    """Say that the runtime, not the file, is the problem, and what to do."""
    return (
        f"{name} cannot run this model: {_one_line(error)}; use the newest LiteRT (pip install -U ai-edge-litert), "
        "or convert the model with another --quant_type"
    )


def _version(candidate: _Runtime) -> str:
    """Give the installed version of a runtime, or a word when its metadata is missing."""
    try:
        return importlib.metadata.version(candidate.distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"


def _one_line(error: BaseException) -> str:
    """Give an error's text on one line, short enough for a message, without unprintable bytes."""
    text = " ".join(str(error).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200].rstrip(".")

"""Choose the TFLite runtime of this machine, and say in one line what is missing when none can run the model."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.device.native_log import without_stderr_lines
from cxr_compress.errors import ModelFileError, RuntimeUnavailableError

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
        runtime: which runtime and version, for instance "ai-edge-litert 2.3.0".
    """

    interpreter: Any
    runtime: str


def load_interpreter(content: bytes, *, num_threads: int = 1, runtime: str = "auto") -> LoadedInterpreter:
    """Load a .tflite flatbuffer into the first TFLite runtime that is installed; never into TensorFlow.

    Args:
        content: the flatbuffer (`ModelFile.content`). tflite-runtime 2.14 crashes the process on a flatbuffer that is
            cut short; `read_model` has verified that it is whole.
        num_threads: threads of the kernels, at least 1. One is right for small models; more pays off above a few ms.
        runtime: "auto", or "litert" or "tflite-runtime" to insist on one. Outputs of an int8 model may differ by up to
            3 steps of the output scale between the two.

    Raises:
        RuntimeUnavailableError: no runtime is installed and usable, or it is too old for an operator of the model.
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
            return _load(make, candidate, content, num_threads)
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


def _load(make: Callable[..., Any], candidate: _Runtime, content: bytes, num_threads: int) -> LoadedInterpreter:
    """Construct and allocate, with the runtime's complaints turned into one line."""
    name = f"{candidate.distribution} {_version(candidate)}"
    try:
        with without_stderr_lines(_XNNPACK_NOTICE):
            interpreter = make(model_content=content, num_threads=num_threads)
            interpreter.allocate_tensors()
    except ValueError as error:
        # An operator version that the runtime does not know comes as a ValueError too, and is not the file's fault.
        if "builtin opcode" in str(error) or "Registration failed" in str(error):
            raise RuntimeUnavailableError(_too_old(name, error)) from error
        raise ModelFileError(f"{name} cannot read the model: {_one_line(error)}; convert it again") from error
    except RuntimeError as error:
        raise RuntimeUnavailableError(_too_old(name, error)) from error
    return LoadedInterpreter(interpreter, name)


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

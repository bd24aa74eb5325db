"""Choose the TFLite runtime of this machine, and say in one line what is missing when none can run the model."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.metadata
import importlib.util
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.native import NativeCrashError, run_in_child, without_stderr_lines
from cxr_compress.errors import CompressionError, ModelFileError, RuntimeUnavailableError

EDGETPU_OP = "edgetpu-custom-op"  # what edgetpu_compiler leaves in place of all that it has mapped
# Source: tensorflow/lite/delegates/external/external_delegate_interface.h.
_DELEGATE_FUNCTIONS = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")
_INSTALL_DELEGATE = (
    "give the path of a library for this processor; Coral's is installed with apt-get install libedgetpu1-std from "
    "packages.cloud.google.com/apt"
)
_PLUG_IN = (
    "plug the accelerator in and see that this user may use it (group plugdev for USB, apex for PCIe), or leave "
    "--delegate out to run on the processor"
)
# Bytes 4 to 8 of every TFLite flatbuffer. Source: tensorflow/lite/schema/schema.fbs, file_identifier.
FLATBUFFER_IDENTIFIER = b"TFL3"
_TFLITE_NUMPY = 'pip install "numpy<2" "opencv-python-headless<4.12"'
_INSTALL_RUNTIME = 'install one: pip install ai-edge-litert, or pip install "tflite-runtime==2.14.0" "numpy<2"'
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
            delegate is missing, is no delegate, finds no device or refuses the model.
        ModelFileError: the bytes are not a model that a runtime can read.
    """
    if content[4:8] != FLATBUFFER_IDENTIFIER:
        raise ModelFileError(f"expected a TFLite flatbuffer, got {len(content)} other bytes; convert it again")
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
    raise RuntimeUnavailableError(f"no TFLite runtime can be used: {'; '.join(lacking)}; {_INSTALL_RUNTIME}")


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


def load_delegate(library: str, module: str) -> Any:
    """Load a library into a TFLite runtime.

    Loading runs code of the library: give none that you would not start as a program.

    Args:
        library: its file name, looked for as the system does, or a path: "libedgetpu.so.1".
        module: of the runtime, "ai_edge_litert" or "tflite_runtime".

    Raises:
        RuntimeUnavailableError: there is no such library, it is no delegate, or it finds no device.
    """
    _check_delegate(library)
    load = importlib.import_module(f"{module}.interpreter").load_delegate
    try:
        return load(library)
    except (ValueError, OSError, RuntimeError) as error:
        # The text starts with "Failed to load delegate from"; libedgetpu says nothing more where it finds no device.
        detail = " ".join(str(error).partition(library)[2].split()).rstrip(".")
        raise RuntimeUnavailableError(
            f"the delegate {library} finds no device{f' ({detail})' if detail else ''}: {_PLUG_IN}"
        ) from error


def _check_delegate(library: str) -> None:
    """Look into the library first: the runtimes leave a broken object behind where an entry is missing."""
    try:
        loaded = ctypes.CDLL(library)
    except OSError as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise RuntimeUnavailableError(
            f"the delegate {library} cannot be loaded ({text}): {_INSTALL_DELEGATE}"
        ) from error
    missing = [name for name in _DELEGATE_FUNCTIONS if not hasattr(loaded, name)]
    if missing:
        raise RuntimeUnavailableError(
            f"{library} is no TFLite delegate: it has no function {missing[0]}; {_INSTALL_DELEGATE}"
        )


# A model of this toolkit answers within seconds; int16x8 of a large network at 512 px takes a minute on a slow board.
SECONDS = 300.0
_SECOND_RUN_BELOW = 0.5
_tried: set[tuple[str, str, bool]] = set()


def try_model(content: bytes, *, runtime: str = "auto", xnnpack: bool = True, image: np.ndarray | None = None) -> None:
    """Run a flatbuffer once in a forked process, on noise and, where it is quick, on zeros; once for equal bytes.

    Costs a fork, a second load and one or two runs: 0.02 s for a small model, 0.2 s for a DenseNet121.

    Args:
        content: the flatbuffer.
        runtime: as `load_interpreter`.
        xnnpack: as `load_interpreter`.
        image: what to run it on instead of noise: as the input takes it, batch axis included.

    Raises:
        ModelFileError: the runtime crashes on it; the message names the operator and its layer.
        RuntimeUnavailableError: as `load_interpreter`.
    """
    key = (hashlib.sha256(content).hexdigest(), runtime, xnnpack)
    if key in _tried:
        return
    where = crash_of(content, lambda part: _run(part, runtime, xnnpack, image))
    if where:
        raise ModelFileError(
            f"the TFLite runtime crashes {where}: convert the model with another --quant_type, or replace that layer"
        )
    _tried.add(key)


def crash_of(content: bytes, step: Callable[[bytes], Any]) -> str:
    """Where a step on a flatbuffer crashes its process: the signal and the first operator, or "" where it does not.

    The operator is found by halving: the step is done on the graph's first operators alone, each time in a process of
    its own. What a step raises on a part of the graph is no crash; on the whole graph it is raised.

    Args:
        content: the flatbuffer.
        step: what to do with it.
    """
    try:
        run_in_child(lambda: step(content) and None, seconds=SECONDS)
    except NativeCrashError as crash:
        if crash.late:  # to look for the operator would take as long many times
            return f"or hangs: {crash.cause}"
        return f"with {crash.cause}{_crashing_operator(content, step)}{f' ({crash.reason})' if crash.reason else ''}"
    return ""


def _crashing_operator(content: bytes, step: Callable[[bytes], Any]) -> str:
    """The first operator with which the step crashes; "" where that cannot be told."""
    try:
        place = _find_operators(content)
        (count,) = struct.unpack_from("<I", content, place)
        low, high = 0, count  # low operators are fine, high ones crash
        while high - low > 1:
            middle = (low + high) // 2
            part = content[:place] + struct.pack("<I", middle) + content[place + 4 :]
            low, high = (low, middle) if _crashes(step, part) else (middle, high)
        return f" in operator {high} of {count}, {run_in_child(lambda: _describe(content, high - 1), seconds=SECONDS)}"
    except Exception:  # a file too damaged to be taken apart: the signal is all there is to say
        return ""


def _crashes(step: Callable[[bytes], Any], content: bytes) -> bool:
    try:
        run_in_child(lambda: step(content) and None, seconds=SECONDS)
    except NativeCrashError:
        return True
    except Exception:  # half a graph may be refused, which is no crash
        return False
    return False


def _run(content: bytes, runtime: str, xnnpack: bool, image: np.ndarray | None) -> None:
    interpreter = load_interpreter(content, runtime=runtime, xnnpack=xnnpack).interpreter
    details = interpreter.get_input_details()
    inputs = [_noise(detail) if image is None else image for detail in details]
    started = time.perf_counter()
    for one in (inputs, [np.zeros_like(values) for values in inputs]):
        for detail, values in zip(details, one, strict=True):
            interpreter.set_tensor(detail["index"], values)
        interpreter.invoke()
        if time.perf_counter() - started > _SECOND_RUN_BELOW:
            return


def _noise(detail: Any) -> np.ndarray:
    """Any values that an input may take; the same each time."""
    rng, dtype = np.random.default_rng(0), np.dtype(detail["dtype"])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, detail["shape"], dtype, endpoint=True)
    return rng.normal(size=detail["shape"]).astype(dtype)


def _describe(content: bytes, number: int) -> str:
    """The kind of an operator and the name of what it writes, which starts with the name of its layer."""
    interpreter = load_interpreter(content, allocate=False).interpreter
    operator = next(one for one in interpreter._get_ops_details() if one["index"] == number)
    names = {one["index"]: one["name"] for one in interpreter.get_tensor_details()}
    written = next((names[index] for index in operator["outputs"] if names.get(index)), "")
    return f"{operator['op_name']} {written!r}" if written else str(operator["op_name"])


# Source: tensorflow/lite/schema/schema.fbs: Model.subgraphs is its third field, SubGraph.operators its fourth.
_SUBGRAPHS, _OPERATORS = 2, 3


def _find_operators(content: bytes) -> int:
    """Where the number of operators of the first graph stands."""
    model = _follow(content, 0)
    graphs = _follow(content, _field(content, model, _SUBGRAPHS))
    return _follow(content, _field(content, _follow(content, graphs + 4), _OPERATORS))


def _follow(content: bytes, place: int) -> int:
    return int(place + struct.unpack_from("<I", content, place)[0])


def _field(content: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table stands."""
    start = table - struct.unpack_from("<i", content, table)[0]
    offset = struct.unpack_from("<H", content, start + 4 + 2 * number)[0]
    if not offset:
        raise ValueError(f"the table has no field {number}")
    return int(table + offset)

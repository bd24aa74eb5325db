"""Run a model once in a process of its own before it runs in this one, and name the operator where that crashes."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cxr_compress.device.child import NativeCrashError, run_in_child
from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.errors import ModelFileError

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
        xnnpack: likewise.
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
        return f"with {crash.cause}{_place(content, step)}{f' ({crash.reason})' if crash.reason else ''}"
    return ""


def _place(content: bytes, step: Callable[[bytes], Any]) -> str:
    """The first operator with which the step crashes; "" where that cannot be told."""
    try:
        place = _operators_at(content)
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


def _operators_at(content: bytes) -> int:
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

"""How long a model takes on this machine, in ways that can be compared."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.decode import decode_bytes
from cxr_compress.device.interpreter import load_interpreter, try_model
from cxr_compress.device.modelfile import ModelFile
from cxr_compress.device.runner import TensorFormat
from cxr_compress.errors import DataError

_INPUT_SEED = 0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Latency:
    """What repeated runs took, in milliseconds.

    Attributes:
        p50_ms: median.
        p95_ms: 95th percentile; the scheduler and other programs show here first.
        min_ms: fastest run.
        mean_ms: average.
        runs: how many runs were timed, after the warm-up.
        num_threads: threads of the TFLite kernels.
        runtime: which TFLite runtime.
        machine: what it ran on.
    """

    p50_ms: float
    p95_ms: float
    min_ms: float
    mean_ms: float
    runs: int
    num_threads: int
    runtime: str
    machine: str

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values."""
        return asdict(self)


def measure_together(
    models: Mapping[str, bytes],
    *,
    runs: int = 50,
    warmup: int = 5,
    num_threads: int = 1,
    runtime: str = "auto",
    delegate: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time several models turn by turn, so that a slow moment of the machine hits all and ratios stay fair.

    Args:
        models: name -> flatbuffer.
        runs: timed runs of each.
        warmup: untimed runs of each; the first ones also build caches and wake the processor.
        num_threads: threads of the TFLite kernels.
        runtime: "auto", "litert" or "tflite-runtime".
        delegate: library of an accelerator; None runs on the processor.
        progress: called as (turns done, turns in all).

    Raises:
        RuntimeUnavailableError, ModelFileError: as `load_interpreter`.
        DataError: runs below 1 or warmup below 0.
    """
    calls: dict[str, Callable[[], None]] = {}
    runtimes: dict[str, str] = {}
    for name, content in models.items():
        calls[name], runtimes[name] = prepare_call(content, num_threads, runtime, delegate)
    times = time_together(calls, runs=runs, warmup=warmup, progress=progress)
    return {name: summarize(times[name], num_threads=num_threads, runtime=runtimes[name]) for name in models}


def measure_end_to_end(
    models: Mapping[str, ModelFile],
    *,
    runs: int = 50,
    warmup: int = 5,
    num_threads: int = 1,
    runtime: str = "auto",
    delegate: str | None = None,
    image_size: int = 1024,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time decoding, preprocessing and the model together on a drawn PNG held in memory, turn by turn.

    Args:
        models: name -> model file.
        runs: timed runs of each.
        warmup: untimed runs of each.
        num_threads: threads of the TFLite kernels.
        runtime: "auto", "litert" or "tflite-runtime".
        delegate: library of an accelerator; None runs on the processor.
        image_size: height and width of the PNG, pixels; decoding time grows with its square.
        progress: called as (turns done, turns in all).

    Raises:
        RuntimeUnavailableError, ModelFileError: as `Classifier`.
        DataError: runs below 1 or warmup below 0.
    """
    png = synthetic_png(image_size)
    calls: dict[str, Callable[[], None]] = {}
    classifiers: dict[str, Classifier] = {}
    for name, model in models.items():
        classifiers[name] = Classifier(model, num_threads=num_threads, runtime=runtime, delegate=delegate)
        calls[name] = _end_to_end_call(classifiers[name], png)
    times = time_together(calls, runs=runs, warmup=warmup, progress=progress)
    return {name: summarize(times[name], num_threads=num_threads, runtime=classifiers[name].runtime) for name in models}


def time_together(
    calls: Mapping[str, Callable[[], None]],
    *,
    runs: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Call each in turn, `warmup` then `runs` times; give the times of the latter, float64 (runs,), milliseconds.

    Args:
        calls: name -> what to time.
        runs: timed turns.
        warmup: untimed turns.
        clock: gives seconds; wall-clock time unless said otherwise.
        progress: called between turns as (turns done, turns in all).

    Raises:
        DataError: runs below 1 or warmup below 0.
    """
    if runs < 1 or warmup < 0:
        raise DataError(f"expected at least 1 run and no negative warm-up, got runs={runs}, warmup={warmup}")
    times = {name: np.empty(runs) for name in calls}
    for turn in range(-warmup, runs):
        for name, call in calls.items():
            start = clock()
            call()
            elapsed = clock() - start
            if turn >= 0:
                times[name][turn] = elapsed * 1e3
        if progress is not None:
            progress(turn + warmup + 1, runs + warmup)
    return times


def summarize(times: np.ndarray, *, num_threads: int, runtime: str) -> Latency:
    """Give the statistics of run times (runs,) in milliseconds."""
    p50, p95 = (float(value) for value in np.percentile(times, (50, 95)))
    return Latency(
        p50, p95, float(times.min()), float(times.mean()), len(times), num_threads, runtime, describe_machine()
    )


def describe_machine() -> str:
    """Say what kind of machine this is, without its name or address."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def peak_memory_bytes() -> int | None:
    """Give the largest resident memory this process has had; None where the system does not tell (Windows)."""
    # First: getrusage goes on from the process that started this one, however large that was.
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts kB, macOS bytes


def synthetic_png(size: int) -> bytes:
    """Draw a seeded gray PNG (size, size) that compresses about as badly as an image; no patient image."""
    rng = np.random.default_rng(_INPUT_SEED)
    coarse = rng.integers(0, 200, size=(8, 8)).astype(np.uint8)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    noisy = smooth + rng.integers(0, 16, size=(size, size), dtype=np.uint8)
    return bytes(cv2.imencode(".png", noisy)[1])


def prepare_call(
    content: bytes, num_threads: int, runtime: str, delegate: str | None = None
) -> tuple[Callable[[], None], str]:
    """Load a flatbuffer and set a fixed input; give a call that runs it once, and which runtime that is.

    Raises:
        RuntimeUnavailableError, ModelFileError: as `load_interpreter`.
    """
    if delegate is None:
        try_model(content, runtime=runtime)
    loaded = load_interpreter(content, num_threads=num_threads, runtime=runtime, delegate=delegate)
    rng = np.random.default_rng(_INPUT_SEED)
    for details in loaded.interpreter.get_input_details():
        # Normalized X-rays lie in about [-2, 2.6]; zeros could make some kernels faster than they will be.
        values = rng.uniform(-2.0, 2.6, size=details["shape"]).astype(np.float32)
        tensor = TensorFormat.from_details(details)
        if tensor.takes_pixels:
            values = rng.integers(0, 256, size=details["shape"]).astype(np.float32)
        loaded.interpreter.set_tensor(tensor.index, tensor.encode(values))
    return loaded.interpreter.invoke, loaded.runtime


def _end_to_end_call(classifier: Classifier, png: bytes) -> Callable[[], None]:
    """Give a call that does what `cxr_predict` does for one image, short of reading the disk."""

    def call() -> None:
        classifier.predict(decode_bytes(png))

    return call

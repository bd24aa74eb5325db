"""Runs files on tflite-runtime 2.14, which needs NumPy 1 and so a Python environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

_LOAD = """
import sys
from pathlib import Path
from tflite_runtime.interpreter import Interpreter
for path in sys.argv[1:]:
    try:
        Interpreter(model_path=path)
        print("loads")
    except (ValueError, RuntimeError) as error:
        print("refused:", " ".join(str(error).split()))
"""
_RUN = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter
images = np.load(sys.argv[1])
for path in sys.argv[2:]:
    model = Interpreter(model_path=path)
    model.allocate_tensors()
    (taken,), (given,) = model.get_input_details(), model.get_output_details()
    found = []
    for image in images:
        scale, zero = taken["quantization"]
        codes = image[np.newaxis]
        if taken["dtype"] != images.dtype:
            limits = np.iinfo(taken["dtype"])
            codes = np.clip(np.rint(codes / np.float32(scale)) + zero, limits.min, limits.max).astype(taken["dtype"])
        model.set_tensor(taken["index"], codes)
        model.invoke()
        found.append(model.get_tensor(given["index"])[0])
    np.save(path + ".npy", np.stack(found))
"""


def python_2_14() -> str:
    """A Python with tflite-runtime 2.14, or the test is skipped by name."""
    python = os.environ.get("CXR_TFLITE_PYTHON")
    if not python:
        pytest.skip("tflite-runtime 2.14 not found: set CXR_TFLITE_PYTHON to a Python with tflite-runtime 2.14")
    asked = "import tflite_runtime; print(tflite_runtime.__version__)"
    version = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    assert version.startswith("2.14"), version
    return python


def load_all(python: str, files: list[bytes], folder: Path) -> list[str]:
    """For each file "loads", or "refused:" and why."""
    paths = [_write(folder / f"{number}.tflite", content) for number, content in enumerate(files)]
    done = subprocess.run([python, "-c", _LOAD, *paths], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def run_all(python: str, files: dict[str, bytes], images: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    """What each file gives for images, as its output stores it."""
    np.save(folder / "images.npy", images)
    paths = {name: _write(folder / f"{name}.tflite", content) for name, content in files.items()}
    command = [python, "-c", _RUN, str(folder / "images.npy"), *paths.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: np.load(path + ".npy") for name, path in paths.items()}


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)

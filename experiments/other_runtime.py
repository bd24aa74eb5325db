"""What a .tflite answers on tflite-runtime 2.14, which needs an environment of its own: no script, its callers are."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.files import write_bytes

# All that the other environment needs: numbers in, numbers out.
_RUN = """
import sys, numpy as np
from cxr_compress.device.runner import Runner
images = np.load(sys.argv[2])
np.save(sys.argv[3], Runner(open(sys.argv[1], "rb").read(), runtime="tflite-runtime")(images))
"""


def answers_there(python: str, name: str, content: bytes, images: np.ndarray) -> np.ndarray:
    """The outputs of a flatbuffer on images as it takes them.

    Args:
        python: of an environment with tflite-runtime 2.14 alone.
        name: of the file, for the error.
        content: the flatbuffer.
        images: (n, height, width, channels).

    Raises:
        CompressionError: it does not run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, given, answers = (Path(folder) / part for part in ("model.tflite", "images.npy", "answers.npy"))
        write_bytes(file, content)
        np.save(given, images)
        command = [python, "-c", _RUN, str(file), str(given), str(answers)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise CompressionError(f"{name} does not run on tflite-runtime 2.14: {last}")
        return np.asarray(np.load(answers, allow_pickle=False))

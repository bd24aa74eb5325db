r"""How long a user waits before anything happens: importing the package, and predicting one image from the prompt.

Command:  python experiments/bench_startup.py
Time:     about 1 minute.
Result:   experiments/results/bench_startup.json; the bars are `import cxr_compress` < 0.3 s, and `cxr_predict` on one
          PNG with the shipped model < 1.5 s without one TensorFlow module.

Whole processes are timed, turn by turn: an empty Python, the import, the prediction, and `import tensorflow` for scale.
Ratios to the latter two hold on other machines; seconds do not.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from cxr_compress.data.readers.phantom import render_image
from cxr_compress.files import write_bytes, write_text

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"

_SMOKE = flags.DEFINE_boolean("smoke", False, "One round, nothing written: checks the script.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed runs of each.")
_MODEL = flags.DEFINE_string(
    "model",
    str(REPOSITORY / "tflite_models" / "tiny_chexnet_kermany_m50_w50_int8.tflite"),
    "The model to predict with.",
)

# Runs the console script's own function, then says which TensorFlow modules it loaded.
_PREDICT = (
    "import sys; from cxr_compress.cli.predict import main; code = main(sys.argv[1:]); "
    "heavy = [m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'tf_keras', 'keras')]; "
    "sys.exit(f'loaded {heavy[:3]}' if heavy else code)"
)


def seconds(command: list[str]) -> float:
    """How long a process takes.

    Raises:
        SystemExit: with its own words, if it fails.
    """
    started = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"bench_startup: {' '.join(command[:3])} failed: {done.stderr.strip()}")
    return taken


def measure(image: Path, rounds: int) -> dict[str, Any]:
    """Median seconds of each process, measured turn by turn after one round that is not counted."""
    python = [sys.executable, "-c"]
    commands = {
        "empty_python": [*python, "pass"],
        "import_cxr_compress": [*python, "import cxr_compress"],
        "predict_one_png": [*python, _PREDICT, f"--model={_MODEL.value}", str(image)],
        "import_tensorflow": [*python, "import tensorflow"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            spent = seconds(command)
            if number:
                taken[name].append(spent)
    median = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "import_alone_seconds": round(median["import_cxr_compress"] - median["empty_python"], 3),
        "predict_over_import_tensorflow": round(median["predict_one_png"] / median["import_tensorflow"], 3),
        "rounds": rounds,
    }


def main(_: list[str]) -> None:
    """Measure, print and write the results."""
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        write_bytes(image, cv2.imencode(".png", render_image(0, 0, 0, (), size=1024))[1].tobytes())
        result = measure(image, 1 if _SMOKE.value else _ROUNDS.value)
    print(json.dumps(result, indent=2))
    if not _SMOKE.value:
        RESULTS.mkdir(exist_ok=True)
        write_text(RESULTS / "bench_startup.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)

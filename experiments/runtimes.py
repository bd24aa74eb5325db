r"""How far files answer apart on two TFLite runtimes, on real images: in codes of the output, and in decisions.

Command:  python experiments/runtimes.py --models=tflite_models/tiny_chexnet_kermany_m50_w50_int8.tflite \
              --data_dir=kermany224 --tflite_python=.venv-tflite/bin/python
Time:     a minute a file on two cores, tflite-runtime 2.14 being slow on x86-64.
Result:   experiments/results/runtimes.json: per file how many training images differ by how many codes (of float files:
          in thousandths of the spread), and how many decisions differ, of those whose score lies more than 3 codes from
          its threshold. Also against LiteRT without XNNPACK, which shows that kernels and not versions are the cause.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from other_runtime import answers_there

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError
from cxr_compress.files import write_text

RESULTS = Path(__file__).parent / "results" / "runtimes.json"
STEPS = 3

_MODELS = flags.DEFINE_list("models", [], "The .tflite files.")
_DATASET = flags.DEFINE_string("dataset", "kermany", "The images.")
_DATA = flags.DEFINE_string("data_dir", None, "Where they lie.")
_IMAGES = flags.DEFINE_integer("images", 300, "Training images, spread evenly.", lower_bound=2)
_PYTHON = flags.DEFINE_string("tflite_python", None, "A Python with tflite-runtime 2.14 alone.")
_RESULTS = flags.DEFINE_string("results", str(RESULTS), "The JSON that the rows go to.")


def images_for(file: ModelFile) -> np.ndarray:
    """Training images as the file takes them."""
    train = load_dataset(_DATASET.value, _DATA.value).train
    chosen = train.take(np.linspace(0, len(train) - 1, min(_IMAGES.value, len(train)), dtype=int))
    return normalize(decode_split(chosen, file.info.preprocess), file.info.preprocess)


def row(path: Path) -> dict[str, Any]:
    """One file on both runtimes."""
    file = read_model(path)
    images, classifier = images_for(file), Classifier(file)
    here, there = classifier.logits(images), answers_there(_PYTHON.value, path.name, file.content, images)
    without = Runner(file.content, xnnpack=False)(images)
    reference = file.info.reference
    step = (reference.step if reference else None) or classifier.output_scale
    unit = step or float(np.ptp(here)) / 1000
    apart = np.abs(there - here) / unit
    counts = np.bincount(np.round(apart).astype(int).max(axis=1))
    decided = [np.array([classifier.decide(logits).positive for logits in one]) for one in (here, there)]
    # A decision is close where moving its logit by 3 codes would change it.
    moved = [
        np.array([classifier.decide(logits + by).positive for logits in here]) for by in (-STEPS * unit, STEPS * unit)
    ]
    judged = moved[0] == moved[1]
    return {
        "quant_type": file.info.quant_type,
        "sha256": file.sha256,
        "unit": "code" if step else "thousandth of the spread",
        "images": len(images),
        "images_by_difference": counts.tolist(),
        "share_within_3": float((apart.max(axis=1) <= STEPS + 1e-3).mean()),
        "largest": float(apart.max()),
        "largest_without_xnnpack": float(np.abs(without - here).max() / unit),
        "largest_between_tflite_and_litert_without_xnnpack": float(np.abs(without - there).max() / unit),
        "decisions": int(judged.sum()),
        "too_close": int((~judged).sum()),
        "decisions_that_differ": int((judged & (decided[0] != decided[1])).sum()),
    }


def main(_: list[str]) -> None:
    """Compare every file, print and keep the rows."""
    if not (_MODELS.value and _DATA.value and _PYTHON.value):
        raise app.UsageError("give --models, --data_dir and --tflite_python")
    results = Path(_RESULTS.value)
    rows = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    for name in _MODELS.value:
        try:
            rows[Path(name).stem] = row(Path(name))
        except CompressionError as error:
            sys.exit(f"runtimes: {error}")
        print(json.dumps({Path(name).stem: rows[Path(name).stem]}), flush=True)
        write_text(results, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)

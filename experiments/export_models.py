r"""Whether other image models go through every quant type: size, how far each file is from its model, where it runs.

Command:  python experiments/export_models.py
          python experiments/export_models.py --tflite_python=.venv-tflite/bin/python    # runs each file there too
Time:     6 to 10 minutes on two cores; training and int16x8, on reference kernels, take most of it.
Result:   experiments/results/export_models.json and .csv: a row per model and quant type. The bars: no float island in
          an int8 file, every file within its limit of the model, and at most 3 LSB (float and int16x8: 1e-3 of the
          spread) between LiteRT without XNNPACK and tflite-runtime 2.14, dynamic aside; what XNNPACK's kernels add is
          in the table.

Each model is first trained for a minute on drawn phantom images: with random weights a network amplifies any rounding,
and the files of two runtimes, or of one model, then say nothing about one another. What int8 costs a model that was
trained in earnest this does not say.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags
from other_runtime import answers_there

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.runner import Runner
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.files import write_text
from cxr_compress.keras2 import keras
from cxr_compress.lite import QUANT_TYPES, LiteModel, convert
from cxr_compress.models.architectures import build
from cxr_compress.models.logits_head import to_logits

SKIN = "skin_softmax"
RESULTS = Path(__file__).parent / "results"
IMAGES, CALIBRATION, COMPARED = 480, 64, 16
# In decibels, of the logits against the model's.
LOWEST_SNR = {"none": 80.0, "fp16": 40.0, "dynamic": 10.0, "int8": 10.0, "int8_float_io": 10.0, "int16x8": 20.0}

_SMOKE = flags.DEFINE_boolean("smoke", False, "One small model, nothing written: checks the script.")
_MODELS = flags.DEFINE_list("models", [], "Which of the models; by default all.")
_SIZE = flags.DEFINE_integer("size", 96, "Input size in pixels.")
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Of the training.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and steps.")
_TFLITE = flags.DEFINE_string("tflite_python", None, "A Python that has tflite-runtime 2.14: runs each file there too.")


def application(name: str, **options: Any) -> Callable[[int, int], Any]:
    """A network of keras.applications that gives logits unless `options` say otherwise."""
    options = {"weights": None, "classifier_activation": None, **options}
    return lambda size, classes: getattr(keras.applications, name)(
        input_shape=(size, size, 3), classes=classes, **options
    )


MODELS: dict[str, Callable[[int, int], Any]] = {
    "mobilenet_v2": lambda size, classes: build("mobilenet_v2", classes, (size, size, 3)),
    "efficientnet_lite0": lambda size, classes: build("efficientnet_lite0", classes, (size, size, 3)),
    "resnet50_v2": application("ResNet50V2"),
    "inception_v3": application("InceptionV3"),
    # A skin-lesion classifier as people publish them: one class each, behind a softmax.
    SKIN: application("MobileNetV2", alpha=0.5, classifier_activation="softmax"),
}


@dataclass(frozen=True)
class Subject:
    """A model that gives logits, and images it was not trained on: float32 (n, size, size, 3)."""

    name: str
    model: Any
    calibration: npt.NDArray[np.float32]
    compared: npt.NDArray[np.float32]


def subject(name: str, size: int, images: int, epochs: int) -> Subject:
    """Build a model and train it a little."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom(folder, n_train=images, n_test=CALIBRATION + COMPARED, size=size)
        dataset = load_dataset("phantom", folder)
        spec = PreprocessSpec.preset("imagenet_torch", size, size)
        train, test = (normalize(decode_split(part, spec), spec) for part in (dataset.train, dataset.test))
    labels = np.asarray(dataset.train.labels, np.float32)
    keras.utils.set_random_seed(_SEED.value)
    if name == SKIN:
        # One class an image: its first finding, or none.
        labels = np.concatenate([labels, np.full((len(labels), 1), 0.5, np.float32)], axis=1).argmax(axis=1)
    model = MODELS[name](size, len(dataset.findings) + (name == SKIN))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # So few steps would else leave the statistics at their start; of the two of a smoke run the last counts.
            layer.momentum = 0.0 if _SMOKE.value else 0.9
    loss = (
        keras.losses.SparseCategoricalCrossentropy()
        if name == SKIN
        else keras.losses.BinaryCrossentropy(from_logits=True)
    )
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(train, labels, batch_size=16, epochs=epochs, verbose=0)
    logits = to_logits(model)[0] if name == SKIN else model
    return Subject(name, logits, test[:CALIBRATION], test[CALIBRATION:])


def rows_of(one: Subject) -> list[dict[str, Any]]:
    """Convert to every quant type, and say of each file what it is."""
    started = time.perf_counter()
    made = convert(
        one.model,
        list(QUANT_TYPES),
        calibration=[one.calibration],
        calibration_steps=CALIBRATION,
        calibration_method="mse",
    )
    seconds = time.perf_counter() - started
    # int8_float_io turns its codes into floats at the end, which hides their step.
    step = made["int8"].audit.outputs[0].scale
    found = [row(one, lite, step if lite.quant_type == "int8_float_io" else None) for lite in made.values()]
    return [{**entry, "seconds_of_all": round(seconds, 1)} for entry in found]


def row(one: Subject, lite: LiteModel, step: float | None) -> dict[str, Any]:
    """One file; `step` of its output where that hides it.

    Raises:
        CompressionError: it was not compared, or does not run on the other runtime.
    """
    parity = lite.parity
    if parity is None:
        raise CompressionError(f"{one.name} {lite.quant_type}: was not compared with its model")
    entry = {
        "model": one.name,
        "quant_type": lite.quant_type,
        "size": one.compared.shape[1],
        "params": one.model.count_params(),
        "bytes": len(lite.content),
        "float_islands": len(lite.audit.float_islands),
        "snr_db": round(parity.snr_db, 2),
        "cosine": round(parity.cosine, 6),
        "lowest_spearman": parity.lowest_spearman,
        "smallest_model_variance": round(min(parity.model_variance), 4),
        "tflite_runtime": elsewhere(one, lite, step),
    }
    entry["missed"] = "; ".join(missed(lite, entry))
    print(json.dumps(entry), flush=True)
    return entry


def missed(lite: LiteModel, entry: Mapping[str, Any]) -> list[str]:
    """Which bars a file misses."""
    found = []
    if entry["snr_db"] < LOWEST_SNR[lite.quant_type]:
        found.append(f"{entry['snr_db']} dB from its model, {LOWEST_SNR[lite.quant_type]:g} expected")
    if lite.quant_type in ("int8", "int16x8") and entry["float_islands"]:
        found.append(f"{entry['float_islands']} operators in float")
    there = entry["tflite_runtime"]
    # Activations of dynamic files are rounded while they run, by each runtime in its own way: reported, not judged.
    if there and lite.quant_type != "dynamic" and there["largest_difference"] > there["allowed"] * (1 + 1e-5):
        found.append(f"{there['largest_difference']:.3g} {there['unit']} between the runtimes")
    return found


def elsewhere(one: Subject, lite: LiteModel, step: float | None) -> dict[str, Any] | None:
    """The largest difference between the two runtimes, in steps of the output where it has any; None if not asked.

    Raises:
        CompressionError: the file does not run there.
    """
    if not _TFLITE.value:
        return None
    images = one.compared
    here, plain = Runner(lite.content), Runner(lite.content, xnnpack=False)
    there = answers_there(_TFLITE.value, f"{one.name} {lite.quant_type}", lite.content, images)
    # A code of int16 is a 65,536th of the range: float's limit is the one that means something there.
    step = None if lite.quant_type == "int16x8" else here.output.scale or step
    unit, limit = ("LSB", 3.0) if step else ("of the spread", 1e-3)
    size = step or max(float(np.ptp(here(images))), 1e-6)
    found, kernels = (float(np.abs(there - one(images)).max() / size) for one in (plain, here))
    return {
        "largest_difference": round(found, 7),
        "with_xnnpack_here": round(kernels, 7),
        "allowed": limit,
        "unit": unit,
    }


def write(rows: list[dict[str, Any]]) -> None:
    """Add rows to those of earlier runs, as JSON and as CSV."""
    path = RESULTS / "export_models.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    fresh = {entry["model"] for entry in rows}
    rows = [entry for entry in known if entry["model"] not in fresh] + rows
    write_text(RESULTS / "export_models.json", json.dumps(rows, indent=1) + "\n")
    table = io.StringIO()
    flat = [{**entry, "tflite_runtime": " ".join(map(str, (entry["tflite_runtime"] or {}).values()))} for entry in rows]
    writer = csv.DictWriter(table, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(RESULTS / "export_models.csv", table.getvalue())


def main(_: list[str]) -> None:
    """Convert one model after the other."""
    unknown = sorted(set(_MODELS.value) - set(MODELS))
    if unknown:
        raise app.UsageError(f"unknown models: {', '.join(unknown)}; known are {', '.join(MODELS)}")
    names = [SKIN] if _SMOKE.value else _MODELS.value or list(MODELS)
    failed = []
    for name in names:
        try:
            rows = rows_of(subject(name, *((32, 32, 1) if _SMOKE.value else (_SIZE.value, IMAGES, _EPOCHS.value))))
        except CompressionError as error:
            sys.exit(f"export_models: {error}")
        failed += [f"{entry['model']} {entry['quant_type']}: {entry['missed']}" for entry in rows if entry["missed"]]
        if not _SMOKE.value:
            write(rows)
        keras.backend.clear_session()
    if failed and not _SMOKE.value:
        sys.exit("\n".join(["export_models: bars missed", *failed]))


if __name__ == "__main__":
    app.run(main)

r"""Our export of DenseNet121 beside TensorFlow's own converter: seconds, file size, and whether the outputs agree.

Command:  python experiments/bench_convert.py
Time:     about 3 minutes on two cores, nearly all of it in the stock converter; --smoke: 20 s on a small DenseNet.
Result:   JSON on stdout, bench_convert.csv and bench_convert.json in experiments/results/.

Both converters get the same network (14 logits, 224 px, seeded weights, batch-norm statistics of real activations, so
that the output follows the input) and the same calibration images. What is compared and asserted:

- float: our file and the stock file, largest difference over the spread of the outputs (limit 1e-6);
- int8: our quantiser given the stock calibrator's ranges, against the stock file (limit 1 LSB);
- int8 as shipped, with our own ranges: error against the float model, beside the stock file's error (limit for ours 5 %
  of the spread). The two files differ by more than rounding, because the stock calibrator gives some tensors of this
  network a neighbour's range (lite/ranges.py). Which is better, only a trained network could tell.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from cxr_compress.device.atomic import write_text
from cxr_compress.device.runner import Runner
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert, freeze
from cxr_compress.lite.convert import quantize
from cxr_compress.models import chexnet

FLOAT_LIMIT = 1e-6  # of the spread of the outputs: a few float32 roundings
LSB_LIMIT = 1
INT8_LIMIT = 0.05  # rms, of the spread
TIME_LIMIT = 0.2  # of the stock converter's time
SECONDS_LIMIT = 20
COMPARED_IMAGES = 16

Row = dict[str, Any]


def main(_: list[str]) -> None:
    """Convert both ways, compare, print and write the results."""
    arguments = flags.FLAGS
    size = 64 if arguments.smoke else arguments.input_size
    count = 16 if arguments.smoke else arguments.calibration_images
    shape = (size, size, 3)
    images = make_images(count + COMPARED_IMAGES, shape, seed=0)
    keras.utils.set_random_seed(0)
    net = chexnet(14, shape, width=0.25, blocks=(1, 1, 1, 1)) if arguments.smoke else chexnet(14, shape)
    model = settle(net, images[:COMPARED_IMAGES])
    calibration, compared = images[:count], images[count:]

    files, rows = convert_all(model, calibration)
    agreement = compare(model, files, compared, calibration)
    report = {"model": "smoke" if arguments.smoke else "DenseNet121", "input_size": size}
    report |= {"calibration_images": count, "exports": rows, "agreement": agreement}
    write_results(Path(arguments.results_dir), report)
    print(json.dumps(report, indent=2))
    check(agreement, smoke=arguments.smoke, rows=rows)


def make_images(count: int, shape: tuple[int, int, int], *, seed: int) -> np.ndarray:
    """Smooth random fields with their own brightness and contrast: float32 (count, *shape)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 8, 8, shape[2])).astype(np.float32)
    smooth = np.repeat(np.repeat(coarse, shape[0] // 8, axis=1), shape[1] // 8, axis=2)
    grain = rng.normal(size=(count, *shape)).astype(np.float32) * 0.3
    contrast = rng.uniform(0.3, 2.0, (count, 1, 1, 1)).astype(np.float32)
    return (smooth + grain) * contrast + rng.normal(size=(count, 1, 1, 1)).astype(np.float32)


def settle(model: Any, images: np.ndarray) -> Any:
    """Give the batch norms the statistics of real activations; with untouched ones the signal dies on the way."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    return model


def convert_all(model: Any, calibration: np.ndarray) -> tuple[dict[str, bytes], list[Row]]:
    """Each export from the Keras model on, one after the other; ours first, so the start-up costs are ours."""
    batches = [calibration]
    steps = len(calibration)
    files: dict[str, bytes] = {}
    rows: list[Row] = []
    runs: dict[str, Callable[[], bytes]] = {
        "ours none": lambda: convert(model, "none").content,
        "ours int8": lambda: convert(model, "int8", calibration=batches, calibration_steps=steps).content,
        "stock none": lambda: stock(model, None),
        "stock int8": lambda: stock(model, calibration),
    }
    for name, export in runs.items():
        log(f"{name} ...")
        files[name], wall, cpu = timed(export)
        who, quant_type = name.split()
        row = {"converter": who, "quant_type": quant_type, "seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
        rows.append({**row, "bytes": len(files[name])})
        log(f"{name} {wall:.1f} s")
    for row in rows:
        reference = next(r for r in rows if r["converter"] == "stock" and r["quant_type"] == row["quant_type"])
        row["fraction_of_stock_time"] = round(row["seconds"] / reference["seconds"], 4)
        row["fraction_of_stock_cpu"] = round(row["cpu_seconds"] / reference["cpu_seconds"], 4)
    return files, rows


def timed(export: Callable[[], bytes]) -> tuple[bytes, float, float]:
    """What an export gives, its wall-clock seconds, and its CPU seconds, which other programs do not lengthen."""
    wall, cpu = time.perf_counter(), time.process_time()
    content = export()
    return content, time.perf_counter() - wall, time.process_time() - cpu


def stock(model: Any, calibration: np.ndarray | None) -> bytes:
    """TFLiteConverter.from_keras_model as its documentation has it."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    return run_stock(converter, calibration)


def run_stock(converter: Any, calibration: np.ndarray | None) -> bytes:
    """Set a stock converter to full int8 where there are calibration images, and run it."""
    import tensorflow as tf

    if calibration is not None:

        def samples() -> Iterator[list[np.ndarray]]:
            yield from ([image[np.newaxis]] for image in calibration)

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with warnings.catch_warnings():
        # tensorflow/lite/python/convert.py, convert_graphdef: "Statistics for quantized inputs were expected" is raised
        # on every post-training int8 conversion, representative data set or not.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        return bytes(converter.convert())


def compare(model: Any, files: dict[str, bytes], images: np.ndarray, calibration: np.ndarray) -> Row:
    """How far the outputs are apart; every number has beside it what it is measured against."""
    reference = np.concatenate([model(image[np.newaxis], training=False).numpy() for image in images])
    spread = float(np.ptp(reference))
    ours, theirs = run(files["ours none"], images), run(files["stock none"], images)
    log("stock calibrator on our graph, for the comparison of the quantisers ...")
    ranges_of_stock = stock_ranges(model, calibration)
    same_ranges = run(quantize(ranges_of_stock), images, codes=True)
    stock_codes = run(files["stock int8"], images, codes=True)
    int8_ours, int8_stock = run(files["ours int8"], images), run(files["stock int8"], images)
    return {
        "output_spread": spread,
        "smallest_std_over_images": float(reference.std(axis=0).min()),
        "wrong_image_difference": float(np.abs(ours - np.roll(theirs, 1, axis=0)).max() / spread),
        "float_ours_vs_stock": float(np.abs(ours - theirs).max() / spread),
        "float_ours_vs_keras": float(np.abs(ours - reference).max() / spread),
        "int8_same_ranges_max_lsb": int(np.abs(same_ranges - stock_codes).max()),
        "int8_rms_error_ours": rms(int8_ours - reference) / spread,
        "int8_rms_error_stock": rms(int8_stock - reference) / spread,
    }


def stock_ranges(model: Any, calibration: np.ndarray) -> bytes:
    """The float graph of our frozen function with the ranges that TensorFlow's calibrator measures."""
    import tensorflow as tf

    frozen = freeze(model).function
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], frozen)
    converter._experimental_calibrate_only = True
    return run_stock(converter, calibration)


def run(content: bytes, images: np.ndarray, *, codes: bool = False) -> np.ndarray:
    """Outputs of a file, image by image: real values, or the int8 codes as int64."""
    runner = Runner(content, num_threads=2)
    return runner.stored(images).astype(np.int64) if codes else runner(images)


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def write_results(folder: Path, report: Row) -> None:
    """Write the exports as CSV and everything as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(report["exports"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(report["exports"])
    write_text(folder / "bench_convert.csv", table.getvalue())
    write_text(folder / "bench_convert.json", json.dumps(report, indent=2) + "\n")


def check(agreement: Row, *, smoke: bool, rows: list[Row]) -> None:
    """Stop with an error where a limit is broken; times are only judged at full size."""
    limits = {
        "the output follows the input": agreement["smallest_std_over_images"] > 0.01 * agreement["output_spread"],
        "a wrong image is noticed": agreement["wrong_image_difference"] > 100 * FLOAT_LIMIT,
        "float files agree": agreement["float_ours_vs_stock"] <= FLOAT_LIMIT,
        "quantisers agree": agreement["int8_same_ranges_max_lsb"] <= LSB_LIMIT,
        "int8 follows the float model": agreement["int8_rms_error_ours"] <= INT8_LIMIT,
    }
    if not smoke:
        ours = [row for row in rows if row["converter"] == "ours"]
        limits["at most a fifth of the stock time"] = all(row["fraction_of_stock_time"] <= TIME_LIMIT for row in ours)
        limits["every export under 20 s"] = all(row["seconds"] < SECONDS_LIMIT for row in ours)
    broken = [name for name, holds in limits.items() if not holds]
    if broken:
        sys.exit(f"bench_convert: not reached: {', '.join(broken)}")


def log(line: str) -> None:
    """Progress goes to stderr; stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


def define_flags() -> None:
    """The flags of this experiment."""
    flags.DEFINE_bool("smoke", False, "A small DenseNet at 64 px instead: checks the script, says nothing about time.")
    flags.DEFINE_integer("input_size", 224, "Pixels; a multiple of 32.", lower_bound=64)
    flags.DEFINE_integer("calibration_images", 128, "Images for int8.", lower_bound=16)
    flags.DEFINE_string("results_dir", str(Path(__file__).parent / "results"), "Where the CSV and JSON go.")


if __name__ == "__main__":
    define_flags()
    app.run(main)

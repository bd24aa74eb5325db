r"""Five files of DenseNet121 beside TensorFlow's own converter: seconds, memory, sizes, and whether the outputs agree.

Command:  python experiments/bench_convert.py
Time:     about 9 minutes on two quiet cores, nearly all of it in the stock converter; --smoke: half a minute on a small
          DenseNet.
Result:   JSON on stdout, bench_convert.csv and bench_convert.json in experiments/results/.

Both converters get the same network (14 logits, 224 px, seeded weights, batch-norm statistics of real activations, so
that the output follows the input) and the same calibration images, each in a fresh process, whose peak memory counts.
Ours makes none, fp16, dynamic, int8 and int16x8 in one call of `convert`, parity checks included; the stock converter
makes the same five by five calls of `from_keras_model`. So that both do the same, ours takes the stock converter's
min-max ranges and folds no batch norm here: by default it errs less, and takes a second pass over the images. What is
compared and asserted:

- time: all five of ours in 60 s, and six times as fast as the stock converter's five;
- memory: at most 1.2 times the stock converter's peak;
- none and fp16: our file and the stock file, largest difference over the spread of the outputs (limit 1e-6);
- int8 and int16x8: our quantizer given the stock calibrator's ranges, against the stock file (limit 1 LSB);
- int8 with our own min-max ranges: error against the float model, beside the stock file's error (limit for ours 5 %
  of the spread). The two files differ by more than rounding, because the stock calibrator gives some tensors of this
  network a neighbor's range (lite/int8/ranges.py). Which is better, only a trained network could tell;
- dynamic: error against the float model, beside the stock file's. They differ on purpose: the stock file's dense layer
  has a scale per filter, which is FULLY_CONNECTED version 12 and does not load in tflite-runtime 2.14.
"""

from __future__ import annotations

import csv
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import app, flags

from cxr_compress.device.runner import Runner
from cxr_compress.files import write_bytes, write_text
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert, freeze
from cxr_compress.lite.lowering import quantize, quantize_int16
from cxr_compress.models import chexnet, load_model
from cxr_compress.models.files import save_model

TYPES = ("none", "fp16", "dynamic", "int8", "int16x8")
SIDES = ("ours", "stock")
LIKE_STOCK: dict[str, Any] = {"calibration_method": "minmax", "fold_scales": False}
FLOAT_LIMIT = 1e-6  # of the spread of the outputs: a few float32 roundings
LSB_LIMIT = 1
INT8_LIMIT = 0.05  # rms, of the spread
TIMES_FASTER = 6
SECONDS_LIMIT = 60
MEMORY_LIMIT = 1.2  # of the stock converter's peak
COMPARED_IMAGES = 16
COMPARED_INT16 = 4  # its kernels are slow

Row = dict[str, Any]
_Made = TypeVar("_Made")


def main(_: list[str]) -> None:
    """Convert both ways, compare, print and write the results."""
    arguments = flags.FLAGS
    if arguments.side:
        return run_side(arguments.side, Path(arguments.work_dir))
    size = 64 if arguments.smoke else arguments.input_size
    count = 16 if arguments.smoke else arguments.calibration_images
    shape = (size, size, 3)
    images = make_images(count + COMPARED_IMAGES, shape, seed=0)
    keras.utils.set_random_seed(0)
    net = chexnet(14, shape, width=0.25, blocks=(1, 1, 1, 1)) if arguments.smoke else chexnet(14, shape)
    model = settle(net, images[:COMPARED_IMAGES])
    calibration, compared = images[:count], images[count:]

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        save_model(model, work / "model.keras")
        np.save(work / "calibration.npy", calibration)
        sides = convert_all(work, together=arguments.smoke)
        files = {f"{side} {name}": (work / f"{side}_{name}.tflite").read_bytes() for side in SIDES for name in TYPES}
    agreement = compare(model, files, compared, calibration)
    totals = summarize(sides)
    report = {"model": "smoke" if arguments.smoke else "DenseNet121", "input_size": size}
    report |= {"calibration_images": count, "totals": totals, "agreement": agreement}
    report["exports"] = [row for side in SIDES for row in sides[side]["rows"]]
    if arguments.results_dir or not arguments.smoke:
        write_results(Path(arguments.results_dir or Path(__file__).parent / "results"), report)
    print(json.dumps(report, indent=2))
    check(agreement, totals, smoke=arguments.smoke)
    return None


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


def convert_all(work: Path, *, together: bool) -> dict[str, Row]:
    """Run each side in a process of its own; one after the other, since they are timed, unless `together`."""
    command = [sys.executable, str(Path(__file__).resolve()), f"--work_dir={work}"]
    running = {}
    for side in SIDES:
        log(f"{side} ...")
        running[side] = subprocess.Popen([*command, f"--side={side}"], stdout=subprocess.DEVNULL)
        if not together:
            running[side].wait()
    for side, process in running.items():
        if process.wait() != 0:
            sys.exit(f"bench_convert: the process of {side} ended with {process.returncode}")
    return {side: json.loads((work / f"{side}.json").read_text()) for side in SIDES}


def run_side(side: str, work: Path) -> None:
    """In a process of its own: load the model, make the five files, write them and what they cost."""
    model, calibration = load_model(work / "model.keras"), np.load(work / "calibration.npy", allow_pickle=False)
    before = peak_bytes()
    files, rows = (make_ours if side == "ours" else make_stock)(model, calibration)
    cost = {"rows": rows, "peak_bytes": peak_bytes(), "peak_bytes_before": before}
    for name, content in files.items():
        write_bytes(work / f"{side}_{name}.tflite", content)
    write_text(work / f"{side}.json", json.dumps(cost))


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in units of 1024 bytes


def make_ours(model: Any, calibration: np.ndarray) -> tuple[dict[str, bytes], list[Row]]:
    """All five in one call; what serves several of them is the row "shared"."""
    seconds = dict.fromkeys(("shared", *TYPES), 0.0)
    last = time.perf_counter()

    def progress(line: str) -> None:
        nonlocal last
        now = time.perf_counter()
        first = line.split(maxsplit=1)[0]
        seconds[first if first in seconds else "shared"] += now - last
        last = now
        log(f"ours {line}")

    made, wall, cpu = timed(
        lambda: convert(
            model,
            list(TYPES),
            calibration=[calibration],
            calibration_steps=len(calibration),
            progress=progress,
            **LIKE_STOCK,
        )
    )
    rows = [row("ours", name, spent) for name, spent in seconds.items()]
    for one in rows[1:]:
        one["bytes"] = len(made[one["quant_type"]].content)
    rows.append(row("ours", "all", wall, cpu))
    return {name: one.content for name, one in made.items()}, rows


def make_stock(model: Any, calibration: np.ndarray) -> tuple[dict[str, bytes], list[Row]]:
    """Five calls of `from_keras_model`, one after the other."""
    files, rows = {}, []
    for name in TYPES:
        files[name], wall, cpu = timed(partial(stock, model, name, calibration))
        rows.append({**row("stock", name, wall, cpu), "bytes": len(files[name])})
        log(f"stock {name} {wall:.1f} s")
    spent = (sum(one[key] for one in rows) for key in ("seconds", "cpu_seconds"))
    return files, [*rows, row("stock", "all", *spent)]


def row(side: str, quant_type: str, wall: float, cpu: float | None = None) -> Row:
    """One line of the table."""
    seconds = None if cpu is None else round(cpu, 2)
    return {
        "converter": side, "quant_type": quant_type, "seconds": round(wall, 2), "cpu_seconds": seconds, "bytes": None,
    }  # fmt: skip


def summarize(sides: dict[str, Row]) -> Row:
    """Seconds and memory of both, and by how much they differ."""
    whole = {side: sides[side]["rows"][-1] for side in SIDES}
    ours, theirs = whole["ours"], whole["stock"]
    return {
        **{f"seconds_{side}": whole[side]["seconds"] for side in SIDES},
        **{f"cpu_seconds_{side}": whole[side]["cpu_seconds"] for side in SIDES},
        "times_faster": round(theirs["seconds"] / ours["seconds"], 2),
        "times_less_cpu": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 2),
        **{f"peak_bytes_{side}": sides[side]["peak_bytes"] for side in SIDES},
        **{f"peak_bytes_before_{side}": sides[side]["peak_bytes_before"] for side in SIDES},
        "fraction_of_stock_memory": round(sides["ours"]["peak_bytes"] / sides["stock"]["peak_bytes"], 3),
    }


def timed(export: Callable[[], _Made]) -> tuple[_Made, float, float]:
    """What an export gives, its wall-clock seconds, and its CPU seconds, which other programs do not lengthen."""
    wall, cpu = time.perf_counter(), time.process_time()
    content = export()
    return content, time.perf_counter() - wall, time.process_time() - cpu


def stock(model: Any, quant_type: str, calibration: np.ndarray) -> bytes:
    """TFLiteConverter.from_keras_model as its documentation has it."""
    import tensorflow as tf

    return run_stock(tf.lite.TFLiteConverter.from_keras_model(model), quant_type, calibration)


def run_stock(converter: Any, quant_type: str, calibration: np.ndarray) -> bytes:
    """Set a stock converter to a quant type, and run it."""
    import tensorflow as tf

    operators = {
        "int8": (tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.int8),
        "int16x8": (tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8, tf.int16),
    }
    if quant_type != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quant_type == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if quant_type in operators:

        def samples() -> Iterator[list[np.ndarray]]:
            yield from ([image[np.newaxis]] for image in calibration)

        supported, end = operators[quant_type]
        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [supported]
        converter.inference_input_type = converter.inference_output_type = end
    with warnings.catch_warnings():
        # tensorflow/lite/python/convert.py, convert_graphdef: "Statistics for quantized inputs were expected" is raised
        # on every post-training integer conversion, representative data set or not.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        return bytes(converter.convert())


def compare(model: Any, files: dict[str, bytes], images: np.ndarray, calibration: np.ndarray) -> Row:
    """How far the outputs are apart; every number has beside it what it is measured against."""
    reference = np.concatenate([model(image[np.newaxis], training=False).numpy() for image in images])
    spread = float(np.ptp(reference))
    outputs = {name: run(content, images) for name, content in files.items() if not name.endswith("int16x8")}
    float_names = ("none", "fp16")
    apart = {name: float(np.abs(outputs[f"ours {name}"] - outputs[f"stock {name}"]).max()) for name in float_names}
    wrong = np.abs(outputs["ours none"] - np.roll(outputs["stock none"], 1, axis=0)).max()
    agreement = {
        "output_spread": spread,
        "smallest_std_over_images": float(reference.std(axis=0).min()),
        "wrong_image_difference": float(wrong / spread),
        "float_ours_vs_stock": apart["none"] / spread,
        "fp16_ours_vs_stock": apart["fp16"] / spread,
        "float_ours_vs_keras": float(np.abs(outputs["ours none"] - reference).max() / spread),
    }
    agreement |= same_ranges(stock_ranges(model, calibration), files, images)
    for name in ("dynamic", "int8"):
        for side in SIDES:
            agreement[f"{name}_rms_error_{side}"] = rms(outputs[f"{side} {name}"] - reference) / spread
    return agreement


def same_ranges(ranged: bytes, files: dict[str, bytes], images: np.ndarray) -> Row:
    """Steps of the output between our quantizers and the stock ones, given one and the same ranges."""
    few = images[:COMPARED_INT16]
    pairs = {"int8": (quantize(ranged), images), "int16x8": (quantize_int16(ranged), few)}
    apart = {}
    for name, (ours, shown) in pairs.items():
        theirs = run(files[f"stock {name}"], shown, codes=True)
        apart[f"{name}_same_ranges_max_lsb"] = int(np.abs(run(ours, shown, codes=True) - theirs).max())
    return apart


def stock_ranges(model: Any, calibration: np.ndarray) -> bytes:
    """The float graph of our frozen function with the ranges that TensorFlow's calibrator measures."""
    import tensorflow as tf

    log("stock calibrator on our graph, for the comparison of the quantizers ...")
    frozen = freeze(model).function
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], frozen)
    converter._experimental_calibrate_only = True
    return run_stock(converter, "int8", calibration)


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


def check(agreement: Row, totals: Row, *, smoke: bool) -> None:
    """Stop with an error where a limit is broken; time and memory are only judged at full size."""
    limits = {
        "the output follows the input": agreement["smallest_std_over_images"] > 0.01 * agreement["output_spread"],
        "a wrong image is noticed": agreement["wrong_image_difference"] > 100 * FLOAT_LIMIT,
        "float files agree": agreement["float_ours_vs_stock"] <= FLOAT_LIMIT,
        "fp16 files agree": agreement["fp16_ours_vs_stock"] <= FLOAT_LIMIT,
        "int8 quantizers agree": agreement["int8_same_ranges_max_lsb"] <= LSB_LIMIT,
        "int16x8 quantizers agree": agreement["int16x8_same_ranges_max_lsb"] <= LSB_LIMIT,
        "int8 follows the float model": agreement["int8_rms_error_ours"] <= INT8_LIMIT,
    }
    if not smoke:
        limits[f"five files in {SECONDS_LIMIT} s"] = totals["seconds_ours"] <= SECONDS_LIMIT
        limits[f"{TIMES_FASTER} times as fast"] = totals["times_faster"] >= TIMES_FASTER
        limits[f"{MEMORY_LIMIT} times the memory"] = totals["fraction_of_stock_memory"] <= MEMORY_LIMIT
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
    flags.DEFINE_enum("side", "", ["", *SIDES], "Make the files of one side only; this script calls itself so.")
    flags.DEFINE_string("work_dir", "", "Where that side finds the model and leaves its files.")
    flags.DEFINE_string("results_dir", None, "Where the CSV and JSON go; by default, but for --smoke, results.")


if __name__ == "__main__":
    define_flags()
    app.run(main)

r"""Post-training int8 of a DenseNet, one choice at a time: ranges, folding and shared scales.

Command:  cxr_import_weights --from=npz --input_file=experiments/results/chexnet_kermany/weights_fp16.npz \
              --input_size=112 --output_file=chexnet_kermany.keras
          python experiments/ptq_densenet.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224 \
              --run_dir=ptq_run
Time:     20 to 60 s a row at 112 px on two cores, 12 rows. Every finished row is kept: run the same command again to go
          on.
Result:   experiments/results/ptq_densenet.json and .csv, or --name. Per row: how far the logits are from the float
          file's (root mean square, SNR in dB), AUROC, bytes and operators; and for the rows with min-max ranges, of
          which the others differ in no operator, median milliseconds an image on one thread, all timed turn by turn.

Calibrated on training images; judged on dev images and, so that there are enough, on further training images that no
calibration saw. Nothing is chosen on test, which is not read. What int8 does to a logit is measured against the same
network in float: that needs no label, so training images serve. All rows come from one float graph (folded ones from
its copies), the same calibration images and the same rounding step.

Rows: `ranges` says how they follow from the images; `fold` what was done with the 62 batch norms that TFLite keeps as
MUL and ADD (shift: the scale moves on into the next kernel; chosen: only where that adds little noise, as `convert`
does by default); `shared` whether activations that a concatenation joins have one range. The committed tables also have
rows of what was tried with it and is gone: batch norms folded into MAXIMUM, which errs most; bias correction,
cross-layer equalization and ai-edge-quantizer, none of which changed AUROC by more than 0.0003.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags

from cxr_compress.data import Dataset, decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.device.runner import Runner
from cxr_compress.files import make_folder, write_text
from cxr_compress.lite import audit, freeze
from cxr_compress.lite.calibration import pick_evenly
from cxr_compress.lite.int8.fold import choose_folds, fold_scales
from cxr_compress.lite.int8.ranges import Ranges, clipped_ranges, joined_ranges, measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize
from cxr_compress.metrics import mean_auroc
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.files import load_model

THREADS = 2
RUNS = 40

SplitImages = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """One row before it is measured.

    Attributes:
        ranges: "minmax", "percentile" or "mse".
        fold: "none", "shift" or "chosen".
        shared: activations that must share a scale have one range.
    """

    ranges: str
    fold: str = "none"
    shared: bool = True

    @property
    def name(self) -> str:
        """What a row is kept as."""
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def timed(self) -> bool:
        """Its operators are not those of another row with other numbers in them."""
        return self.ranges == "minmax"


def plans() -> Iterator[Plan]:
    """The rows, the ways to get ranges and to fold in full, the rest where it could matter."""
    for ranges in ("minmax", "percentile", "mse"):
        for fold in ("none", "shift"):
            yield Plan(ranges, fold)
    for ranges in ("minmax", "mse"):
        yield Plan(ranges, "chosen")
        for fold in ("none", "shift"):
            yield Plan(ranges, fold, shared=False)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every row shares.

    Attributes:
        graphs: float flatbuffers, by `Plan.fold`.
        calibration: training images.
        judged: images that no calibration saw.
        truth: their labels.
        exact: logits of the float file on them.
    """

    graphs: dict[str, bytes]
    calibration: SplitImages
    judged: SplitImages
    truth: SplitImages
    exact: SplitImages

    def ranges(self, plan: Plan, found: dict[Any, Ranges]) -> Ranges:
        """The ranges of a row; those that several rows share are measured once, in `found`."""
        graph, key = self.graphs[plan.fold], (plan.fold,)
        if key not in found:
            found[key] = measure_ranges(graph, self.calibration, num_threads=THREADS)
        if plan.ranges == "minmax":
            return joined_ranges(graph, found[key]) if plan.shared else found[key]
        own = (*key, plan.ranges, plan.shared)
        if own not in found:
            options: dict[str, Any] = {"shared": plan.shared, "num_threads": THREADS}
            found[own] = clipped_ranges(graph, self.calibration, found[key], plan.ranges, 99.999, **options)
        return found[own]

    def make(self, plan: Plan, found: dict[Any, Ranges]) -> bytes:
        """The int8 file of a row."""
        return quantize(write_ranges(self.graphs[plan.fold], self.ranges(plan, found)))

    def judge(self, content: bytes) -> dict[str, Any]:
        """How far a file's logits are from the float file's, and what it weighs."""
        logits = Runner(content, num_threads=THREADS)(self.judged)
        error = logits.astype(np.float64) - self.exact
        power, noise = float(np.var(self.exact, axis=0).mean()), float(np.mean(np.square(error)))
        ops = {op.kind: op.count for op in audit(content).ops}
        return {
            "logit_rmse": round(float(np.sqrt(noise)), 5),
            "logit_bias": round(float(error.mean()), 5),
            "snr_db": round(10 * float(np.log10(power / noise)), 2) if noise else None,
            "auroc": round(mean_auroc(self.truth, logits), 5),
            "bytes": len(content),
            "operators": sum(ops.values()),
            "requantize_operators": ops.get("QUANTIZE", 0),
        }


def prepare(dataset: Dataset, model: Any, calibration: int, judged: int) -> Bench:
    """Images and float graphs."""
    spec = PreprocessSpec(*model.input_shape[1:3])
    chosen = pick_evenly(range(len(dataset.train)), calibration + max(0, judged - len(dataset.dev)))
    used = pick_evenly(chosen, calibration)
    fresh = sorted(set(chosen) - set(used))
    pictures = normalize(decode_split(dataset.train.take(used), spec), spec)
    dev = dataset.dev.take(pick_evenly(range(len(dataset.dev)), judged))
    parts = [dev, *([dataset.train.take(fresh)] if fresh else [])]
    images = np.concatenate([normalize(decode_split(part, spec), spec) for part in parts])
    truth = np.concatenate([part.labels for part in parts])
    graphs = {"none": lower(freeze(model), "none")}
    graphs["shift"] = fold_scales(graphs["none"])[0]
    chosen_norms = choose_folds(graphs["none"], pictures, num_threads=THREADS)
    graphs["chosen"] = fold_scales(graphs["none"], only=chosen_norms)[0]
    return Bench(graphs, pictures, images, truth, Runner(graphs["none"], num_threads=THREADS)(images))


def settle(model: Any, dataset: Dataset) -> None:
    """Give the batch norms of an untrained network the statistics of images; as they are, TFLite drops them."""
    spec = PreprocessSpec(*model.input_shape[1:3])
    for layer in model.layers:
        layer.momentum = 0.0
    model(normalize(decode_split(dataset.train.take(range(16)), spec), spec), training=True)


def run(bench: Bench, kept: Path, runs: int) -> list[dict[str, Any]]:
    """Make and judge every row that is not kept yet, and time those that differ in operators; the float file first."""
    found: dict[Any, Ranges] = {}
    timed = {"float": bench.graphs["none"]}
    rows: dict[str, dict[str, Any]] = {"float": {"ranges": "float", **bench.judge(timed["float"])}}
    for plan in plans():
        path = kept / f"{plan.name}.json"
        content = bench.make(plan, found) if plan.timed or not path.is_file() else b""
        if not path.is_file():
            write_text(path, json.dumps({**asdict(plan), **bench.judge(content)}))
        rows[plan.name] = json.loads(path.read_text())
        if plan.timed:
            timed[plan.name] = content
        log(json.dumps(rows[plan.name]))
    times = measure_together(timed, runs=runs, warmup=2)
    return [{**row, "p50_ms": round(times[name].p50_ms, 2) if name in times else None} for name, row in rows.items()]


def write_results(folder: Path, report: dict[str, Any]) -> None:
    """The rows as CSV, everything as JSON."""
    make_folder(folder)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(report["rows"][1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(report["rows"])
    name = flags.FLAGS.name
    write_text(folder / f"{name}.csv", table.getvalue())
    write_text(folder / f"{name}.json", json.dumps(report, indent=2) + "\n")


def log(line: str) -> None:
    """Progress goes to stderr; stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Any) -> None:
    """Run with the flags; a smoke run writes only where it is told to."""
    values = flags.FLAGS
    if not values.smoke and not (values.keras_model_file and values.data_dir and values.run_dir):
        raise app.UsageError("give --keras_model_file, --data_dir and --run_dir, or --smoke")
    with tempfile.TemporaryDirectory() as folder:
        if values.smoke:
            write_phantom(Path(folder), n_train=48, n_test=24, size=64)
            dataset = load_dataset("phantom", folder)
            model: Any = tiny_chexnet(num_classes=len(dataset.findings), input_shape=(64, 64, 3))
            settle(model, dataset)
            bench = prepare(dataset, model, 16, 24)
        else:
            dataset = load_dataset("kermany", values.data_dir)
            model = load_model(values.keras_model_file)
            bench = prepare(dataset, model, values.calibration_images, values.judged_images)
        rows = run(bench, make_folder(values.run_dir or Path(folder) / "rows"), 3 if values.smoke else RUNS)
    size = int(model.input_shape[1])
    report = {"model": model.name, "dataset": dataset.name, "input_size": size, "judged_images": len(bench.judged)}
    report |= {"calibration_images": len(bench.calibration), "rows": rows}
    if not values.smoke or values.results_dir:
        write_results(Path(values.results_dir or Path(__file__).parent / "results"), report)
    print(json.dumps(report, indent=2))


def define_flags() -> None:
    """The flags of this experiment."""
    flags.DEFINE_bool("smoke", False, "A small random network on phantom images: checks the script.")
    flags.DEFINE_string("keras_model_file", None, "The trained DenseNet, logits out.")
    flags.DEFINE_string("data_dir", None, "Where the images of Kermany et al. lie.")
    flags.DEFINE_integer("calibration_images", 128, "Training images for the ranges.", lower_bound=16)
    flags.DEFINE_integer("judged_images", 512, "Images to judge on, dev images first.", lower_bound=16)
    flags.DEFINE_string("run_dir", None, "Where finished rows are kept.")
    flags.DEFINE_string("results_dir", None, "Where the CSV and JSON go; experiments/results by default.")
    flags.DEFINE_string("name", "ptq_densenet", "Of the CSV and JSON.")


if __name__ == "__main__":
    define_flags()
    app.run(main)

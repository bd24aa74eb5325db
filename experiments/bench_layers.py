r"""Whole layers beside filters: time of the int8 file and AUROC without training, against filters alone.

Command:  cxr_import_weights --from=npz --input_file=weights_fp16.npz --input_size=112 \
              --output_file=chexnet_kermany.keras
          python experiments/bench_layers.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224 \
              --run_dir=bench_layers_run
Time:     about 15 minutes on two idle cores: 5 to measure what each layer does to the outputs, 2 to time layers, the
          rest to refit and to convert. What is finished is kept in --run_dir: the same command goes on.
Result:   experiments/results/bench_layers.csv, bench_layers.json (the command and its settings) and
          bench_layers_profile.csv.

At each share of the MACs two plans of a DenseNet121: `filters` (l1, --scope=local, widths in steps of 8) and `layers`
(--scope=latency --remove_layers, bounded by the same MACs and by a share of the milliseconds that the table predicts
for the first). Both are refitted on 512 training images without labels and scored on the official test images at
112 px; the paired bootstrap draws patients. Their int8 files at 224 px and that of the original are timed turn by turn,
in one process, with one thread: processor time of that thread, which other programs add little to, and of 200 turns the
time that a fifth of them stay below. Ratios are kept, not milliseconds.

The profile is made of the same files cut off behind every operator, timed turn by turn: what an operator adds where it
stands, fused or not. Single operators by themselves mislead: the PAD in front of the first convolution takes 0.4 ms
alone and nothing in the file, where XNNPACK lets the convolution pad.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.device.benchmark import prepare_call, time_together
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.files import make_folder, write_bytes, write_text
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.lite.graph.flatbuffer import read_graphs, to_bytes, to_object
from cxr_compress.metrics import auroc_samples, mean_auroc
from cxr_compress.models import tiny_chexnet
from cxr_compress.pipeline.stages.price import measure_costs
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    Sensitivity,
    analyze_channels,
    measure_sensitivity,
    reconstruct_consumers,
    remove_channels,
    score_channels,
    select_channels,
)

RESULTS = Path(__file__).parent / "results"
# By share of the MACs: the share of the milliseconds of the plan of filters that the plan of layers may take.
TARGETS = {0.25: 0.7, 0.12: 0.6, 0.06: 0.52}
MOST_REMOVED = 0.85
PROFILED = (0.12, 0.06)
BATCH = 32

_SMOKE = flags.DEFINE_boolean("smoke", False, "A small network on phantom images: checks the script, measures nothing.")
_MODEL = flags.DEFINE_string("keras_model_file", None, "The trained DenseNet121, logits out.")
_DATA = flags.DEFINE_string("data_dir", None, "Where Kermany's images lie.")
_RUN = flags.DEFINE_string("run_dir", None, "Where what is finished is kept.")
_IMAGES = flags.DEFINE_integer("images", 512, "Training images, without labels, for the refit.")
_MEASURED = flags.DEFINE_integer("measured_images", 32, "Images on which the layers' part in the outputs is measured.")
_SIZE = flags.DEFINE_integer("timed_size", 224, "Input size of the files that are timed.")
_SCORE = flags.DEFINE_boolean("score", True, "Refit and score the plans; without it they are timed alone.")
_RUNS = flags.DEFINE_integer("runs", 200, "Timed turns.")

Images = npt.NDArray[np.float32]


def batches(images: Images) -> Iterator[Images]:
    """The images in batches."""
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def resized(model: keras.Model, size: int) -> keras.Model:
    """The same network and weights for another input size: a DenseNet takes any up to its pooling."""
    config = model.get_config()
    config["layers"][0]["config"]["batch_input_shape"] = (None, size, size, model.input_shape[-1])
    for layer in config["layers"]:
        layer.pop("build_config", None)
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


class Run:
    """One run: what is shared, and what is kept of it."""

    def __init__(self, model: keras.Model, images: Images, test: Images, truth: Images, patients: list[int]) -> None:
        self.model, self.images, self.test, self.truth, self.patients = model, images, test, truth, patients
        self.folder = Path(_RUN.value)
        make_folder(self.folder)
        self.timed = resized(model, 64 if _SMOKE.value else _SIZE.value)
        self.calibration = np.random.default_rng(0).normal(size=(16, *self.timed.input_shape[1:])).astype(np.float32)

    def table(self) -> CostTable:
        """What layers cost here, measured once."""
        path = self.folder / "table.json"
        if not path.is_file():
            costs = measure_costs(self.timed, [self.calibration], want_bytes=False, want_latency=True)
            write_text(path, costs.to_json())
        return CostTable.from_json(path.read_text(encoding="utf-8"))

    def plans(self) -> dict[str, ChannelPlan]:
        """By name, the plans that are compared."""
        analysis, table = analyze_channels(self.timed), self.table()
        scores = score_channels(self.timed, analysis)
        small = analyze_channels(self.model)
        sensitivity: Sensitivity = measure_sensitivity(
            self.model,
            small,
            scores,
            batches(self.images[: _MEASURED.value]),
            fractions=(0.5, 0.75),
            layers=True,
            cache=self.folder / "sensitivity.json",
            progress=print,
        )
        common: dict[str, Any] = {"cost_table": table, "round_to": 4 if _SMOKE.value else 8}
        plans = {}
        for macs, share in ({0.25: 0.95} if _SMOKE.value else TARGETS).items():
            filters = select_channels(
                analysis, scores, Budget(macs=macs), scope="local", max_removed_fraction=0.9, **common
            )
            bound = Budget(
                macs=int(macs * (analysis.baseline.macs or 0)),
                latency_ms=share * (filters.after.latency_ms or 0.0),
                absolute=True,
            )
            plans[f"{macs} filters"] = filters
            plans[f"{macs} layers"] = select_channels(
                analysis,
                scores,
                bound,
                scope="latency",
                layers=True,
                sensitivity=sensitivity,
                max_removed_fraction=MOST_REMOVED,
                **common,
            )
        return plans

    def logits(self, name: str, plan: ChannelPlan | None) -> Images:
        """Test logits of a plan's model, refitted without labels; of the original where there is no plan."""
        path = self.folder / f"{name}.npy"
        if path.is_file():
            return np.load(path)
        model = self.model
        if plan is not None:
            model = remove_channels(self.model, plan)
            reconstruct_consumers(model, self.model, plan, batches(self.images))
            model.save_weights(self.folder / f"{name}.weights.h5")
        values = np.concatenate([model.predict(batch, verbose=0) for batch in batches(self.test)])
        np.save(path, values)
        return values

    def file(self, name: str, plan: ChannelPlan | None) -> bytes:
        """The int8 file at the size that is timed."""
        path = self.folder / f"{name}.tflite"
        if not path.is_file():
            model = self.timed if plan is None else remove_channels(self.timed, plan)
            write_bytes(
                path,
                convert(model, "int8", calibration=[self.calibration], calibration_steps=16, compare=False).content,
            )
        return path.read_bytes()


def milliseconds(files: Mapping[str, bytes], runs: int) -> dict[str, float]:
    """By file, the time that a fifth of its turns stay below."""
    calls = {name: prepare_call(content, 1, "auto")[0] for name, content in files.items()}
    times = time_together(calls, runs=runs, warmup=3, clock=time.thread_time)
    return {name: float(np.percentile(values, 20)) for name, values in times.items()}


def compared(run: Run, first: Images, second: Images) -> dict[str, float]:
    """AUROC of the first, that less the second's, and the 95 % interval of the latter over patients, paired."""
    # The same patients are drawn for both: they depend on the seed alone.
    drawn = [auroc_samples(run.truth, scores, run.patients).reshape(-1) for scores in (first, second)]
    low, high = np.nanpercentile(drawn[0] - drawn[1], (2.5, 97.5))
    auroc, other = mean_auroc(run.truth, first), mean_auroc(run.truth, second)
    numbers = {"auroc": auroc, "auroc_less_that_of_filters": auroc - other, "low": float(low), "high": float(high)}
    return {name: round(value, 4) for name, value in numbers.items()}


def cut_behind(content: bytes, place: int) -> bytes:
    """The file up to and with one operator; its outputs are what later operators read."""
    model = to_object(content)
    graph = model.subgraphs[0]
    later = {int(tensor) for operator in graph.operators[place + 1 :] for tensor in operator.inputs} | set(
        graph.outputs
    )
    graph.operators = graph.operators[: place + 1]
    made = [int(tensor) for operator in graph.operators for tensor in operator.outputs]
    graph.outputs = np.array([tensor for tensor in made if tensor in later], np.int32)
    model.signatureDefs, model.metadata = None, None
    return to_bytes(model)


def profile(content: bytes, runs: int) -> list[dict[str, Any]]:
    """By kind of operator and image size, how many there are and their share of the time, as each adds to it."""
    graph = read_graphs(content)[0]
    spent = milliseconds({str(place): cut_behind(content, place) for place in range(len(graph.operators))}, runs)
    added = np.diff([0.0, *spent.values()])
    rows: dict[tuple[str, str], list[float]] = {}
    for operator, own in zip(graph.operators, added.tolist(), strict=True):
        shape = graph.tensors[operator.outputs[0]].shape
        kernel = graph.tensors[operator.inputs[1]].shape if operator.kind.endswith("CONV_2D") else ()
        kind = " ".join([operator.kind, *(["x".join(map(str, kernel[1:3]))] if kernel else [])])
        rows.setdefault((kind, "x".join(map(str, shape[1:-1])) or "1"), []).append(own)
    whole = sum(added)
    return [
        {"operator": kind, "output": size, "count": len(own), "share_of_time": round(sum(own) / whole, 3)}
        for (kind, size), own in sorted(rows.items(), key=lambda row: -sum(row[1]))
    ]


def main(_: list[str]) -> None:
    """Measure what is not there yet, and write the tables."""
    run = prepare()
    plans: dict[str, ChannelPlan | None] = {"original": None, **run.plans()}
    files = {name: run.file(name, plan) for name, plan in plans.items()}
    spent = milliseconds(files, 3 if _SMOKE.value else _RUNS.value)
    logits = {name: run.logits(name, plan) for name, plan in plans.items()} if _SCORE.value else {}
    rows = []
    for name, plan in plans.items():
        if plan is None:
            continue
        target, kind = name.split(" ")
        against = f"{target} filters"
        macs, share = plan.after.macs_fraction(plan.before) or 1.0, spent[name] / spent["original"]
        rows.append(
            {
                "macs_at_most": target,
                "removed": kind,
                "macs": round(macs, 4),
                "params": plan.after.params,
                "int8_bytes": len(files[name]),
                "groups_gone": sum(not kept for kept in plan.kept.values()),
                "time_over_original": round(share, 4),
                "time_ratio_over_macs_ratio": round(share / macs, 2),
                "less_time_than_filters": round(1 - spent[name] / spent[against], 3),
                **(compared(run, logits[name], logits[against]) if _SCORE.value else {}),
            }
        )
        print(rows[-1], flush=True)
    profiled = [
        {"macs_at_most": target, "removed": kind, **row}
        for target in ((0.25,) if _SMOKE.value else PROFILED)
        for kind in ("filters", "layers")
        for row in profile(files[f"{target} {kind}"], 2 if _SMOKE.value else 60)
    ]
    folder = run.folder if _SMOKE.value else RESULTS
    write_csv(folder / "bench_layers.csv", rows)
    write_csv(folder / "bench_layers_profile.csv", profiled)
    facts = {
        "command": "python experiments/bench_layers.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224",
        "original_auroc": round(mean_auroc(run.truth, run.logits("original", None)), 4),
        "images": len(run.images),
        "measured_images": _MEASURED.value,
        "timed_size": run.timed.input_shape[1],
        "timed_turns": _RUNS.value,
        "rows": rows,
    }
    write_text(folder / "bench_layers.json", json.dumps(facts, indent=1) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table, its columns those of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def prepare() -> Run:
    """Model and images, real or small."""
    if not _RUN.value or not (_SMOKE.value or (_MODEL.value and _DATA.value)):
        raise app.UsageError("give --run_dir, and --keras_model_file and --data_dir or --smoke")
    if _SMOKE.value:
        folder = Path(_RUN.value) / "images"
        write_phantom(folder, n_train=48, n_test=24, size=64)
        dataset = load_dataset("phantom", folder)
        model = tiny_chexnet(num_classes=len(dataset.findings), input_shape=(64, 64, 3))
    else:
        dataset = load_dataset("kermany", _DATA.value)
        model = keras.models.load_model(_MODEL.value, compile=False)
    spec = PreprocessSpec(*model.input_shape[1:3])
    count = min(len(dataset.train), 16 if _SMOKE.value else _IMAGES.value)
    sample = dataset.train.take(np.sort(np.random.default_rng(0).choice(len(dataset.train), size=count, replace=False)))
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(dataset.test.patients))}
    return Run(
        model,
        normalize(decode_split(sample, spec), spec),
        normalize(decode_split(dataset.test, spec), spec),
        dataset.test.labels,
        [numbers[patient] for patient in dataset.test.patients],
    )


if __name__ == "__main__":
    app.run(main)

r"""Which training helps a pruned and refitted model, when there are few images and no labels; and which one harms it.

Command:  cxr_import_weights --from=npz --input_file=experiments/results/chexnet_kermany/weights_fp16.npz \
              --input_size=112 --output_file=chexnet_kermany.keras
          python experiments/recovery.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224 --run_dir=run
Time:     one to two minutes a row at 112 px on two cores; a refit and 16 trainings for each number of images and seed.
          Every finished row is kept: run the same command again to go on.
Result:   experiments/results/recovery.csv (--results): of each training the distance of the logits from the original's
          (RMS) on 500 images that it never saw, and the AUROC on the official test images minus that of its start,
          with a paired interval over patients: after the last epoch, and of the best epoch by the tenth of the images
          that is held out, where the start counts as epoch 0.

The start is the original without its lowest filters by l1 (the same share of every layer), refitted by least squares on
nine tenths of the images. A training follows the original on the same images. Nothing is chosen on test.
"""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags
from rows import BATCH, KeepLast, Row, Scorer, read_row, write_row

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.data.splits import Split, carve_dev
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.files import make_folder, write_text
from cxr_compress.keras2 import keras
from cxr_compress.metrics import mean_auroc
from cxr_compress.metrics.bootstrap import Interval, auroc_samples, interval
from cxr_compress.metrics.ranking import row_means
from cxr_compress.models import load_model, save_model, tiny_chexnet
from cxr_compress.models.files import read_about
from cxr_compress.pipeline.stages.train import feature_match
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    analyze_channels,
    images_that_fit,
    reconstruct_consumers,
    remove_channels,
    score_channels,
    select_channels,
    vary_images,
)
from cxr_compress.train import FitConfig, fit

RESULTS = Path(__file__).parent / "results"
UNSEEN = 500
START = "start"
_BEFORE: dict[str, Any] = {"learning_rate": 1e-3, "distill_weight": 1.0, "epochs": 4, "batch_size": 16}
_SLOW = {**_BEFORE, "learning_rate": 1e-4}
_HELD: dict[str, Any] = {"batch_norm": "hold"}
_LOGITS: dict[str, Any] = {"distill_loss": "logits"}
_MAPS: dict[str, Any] = {"feature_weight": 1.0}
_ALL = {**_SLOW, **_HELD, **_LOGITS, **_MAPS}
# What is trained, by name. "before" is what recovery does with labels, but for the labels, of which there are none.
RECOVERIES: dict[str, dict[str, Any]] = {
    START: {},
    "before": _BEFORE,
    "before+norms held": {**_BEFORE, **_HELD},
    "before+1e-4": _SLOW,
    "norms held+1e-4": {**_SLOW, **_HELD},
    "norms held+logits+1e-4": {**_SLOW, **_HELD, **_LOGITS},
    "norms held+logits+3e-5": {**_SLOW, **_HELD, **_LOGITS, "learning_rate": 3e-5},
    "all": _ALL,
    "all+norms trained": {**_ALL, "batch_norm": "train"},
    "all+probabilities": {**_ALL, "distill_loss": "probabilities"},
    "maps alone": {**_ALL, "distill_weight": 0.0},
    "all+maps x 10": {**_ALL, "feature_weight": 10.0},
    "all+3e-5": {**_ALL, "learning_rate": 3e-5},
    "all+initial rate": {**_ALL, "learning_rate": 1e-3},
    "all+rewound": {**_ALL, "learning_rate": 1e-3, "schedule_epochs": 12},
    "all+images unchanged": {**_ALL, "augment": False},
    "all+16 epochs": {**_ALL, "epochs": 16},
}

_SMOKE = flags.DEFINE_boolean("smoke", False, "A small random network on phantom images: checks the script.")
_MODEL = flags.DEFINE_string("keras_model_file", None, "The trained model, logits out.")
_DATASET = flags.DEFINE_string("dataset", "kermany", "Reader of the images.")
_DATA = flags.DEFINE_string("data_dir", None, "Where they lie.")
_RECOVERIES = flags.DEFINE_list("recoveries", list(RECOVERIES), "Which trainings.")
_IMAGES = flags.DEFINE_list("images", ["64", "512"], "How many images there are, the held-out tenth included.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the draw of the images and of the training.")
_LABELS = flags.DEFINE_boolean("labels", False, "Learn from the labels too, half and half.")
_TARGET = flags.DEFINE_float("target_macs", 0.25, "Share of the MACs that stays.")
_RUN = flags.DEFINE_string("run_dir", None, "Where the rows are kept.")
_RESULTS = flags.DEFINE_string("results", str(RESULTS / "recovery.csv"), "The table.")

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bench:
    """What every row shares.

    Attributes:
        model: the original model.
        plan: what stays of it.
        spec: the preprocessing.
        train: where images are drawn from.
        unseen: images of other patients, on which logits are compared.
        test: the official test images.
        truth: their labels.
        findings: the columns.
        patients: whose they are.
    """

    model: keras.Model
    plan: ChannelPlan
    spec: PreprocessSpec
    train: Split
    unseen: Images
    test: Images
    truth: Floats
    findings: tuple[str, ...]
    patients: tuple[str, ...]

    def given(self, images: int, seed: int) -> tuple[Split, Split]:
        """Images to train on and the held-out tenth, by patient; without labels, unless they are asked for."""
        chosen = np.random.default_rng(seed).permutation(len(self.train))[:images]
        drawn = self.train.take(np.sort(chosen))
        unknown = np.full_like(drawn.labels, np.nan)
        return carve_dev(drawn if _LABELS.value else replace(drawn, labels=unknown), seed=seed)

    def logits(self, model: keras.Model) -> Row:
        """What a model says of the images that it is judged by."""
        scorer = Scorer(model, self.spec)
        return {"unseen": scorer.logits(self.unseen), "test": scorer.logits(self.test)}


def refitted(bench: Bench, images: Images) -> keras.Model:
    """The pruned model, refitted."""
    pruned = remove_channels(bench.model, bench.plan)
    images = vary_images(images, most=images_that_fit(pruned, bench.model, bench.plan))
    batches = (normalize(images[start : start + BATCH], bench.spec) for start in range(0, len(images), BATCH))
    reconstruct_consumers(pruned, bench.model, bench.plan, batches)
    return pruned


def train(bench: Bench, run: Path, recovery: Mapping[str, Any], images: int, seed: int) -> Row:
    """Train from the start; the logits after the last epoch and of the best one."""
    model, keep, splits = load_model(run / f"start-{images}-{seed}.keras"), KeepLast(), bench.given(images, seed)
    first = {name.removeprefix("last_"): logits for name, logits in read_row(_path(run, START, images, seed)).items()}
    del first["seconds"]
    weight = recovery["distill_weight"] * (0.5 if _LABELS.value else 1.0)
    config = FitConfig(**{**recovery, "distill_weight": weight}, seed=seed)
    trained, held = (decode_split(split, bench.spec) for split in splits)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            model,
            (trained, splits[0].labels),
            (held, splits[1].labels),
            bench.spec,
            config,
            folder,
            findings=bench.findings,
            pos_weight=np.ones(splits[0].labels.shape[1]),
            teacher=bench.model,
            feature_match=feature_match(model, bench.model, bench.plan) if config.feature_weight else None,
            extra_callbacks=[keep],
            best_from_epoch=0,
        )
    seconds, best = time.monotonic() - started, model.get_weights()
    model.set_weights(keep.weights)
    last = bench.logits(model)
    kept = last if result.best_epoch == config.epochs else first
    if 0 < result.best_epoch < config.epochs:
        model.set_weights(best)
        kept = bench.logits(model)
    return {
        **{f"kept_{name}": logits for name, logits in kept.items()},
        **{f"last_{name}": logits for name, logits in last.items()},
        "epoch": np.array(result.best_epoch),
        "seconds": np.array(seconds),
    }


def measure(bench: Bench, run: Path, name: str, images: int, seed: int) -> Row:
    """One row: the start itself, or a training from it."""
    if name != START:
        return train(bench, run, RECOVERIES[name], images, seed)
    started = time.monotonic()
    model = refitted(bench, decode_split(bench.given(images, seed)[0], bench.spec))
    seconds = time.monotonic() - started
    save_model(model, run / f"start-{images}-{seed}.keras")
    return {f"last_{name}": logits for name, logits in bench.logits(model).items()} | {"seconds": np.array(seconds)}


def tabulate(bench: Bench, run: Path) -> str:
    """The table of all rows that are there."""
    original = read_row(run / "original.npz")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    settings = ("batch_norm", "learning_rate", "distill_loss", "distill_weight", "feature_weight")
    judged = ("rms_last", "rms_kept", "auroc_last", "minus_start", "low", "high", "kept_minus_start")
    writer.writerow(["recovery", "images", "seed", *settings, *judged, "kept_epoch", "seconds"])
    for images, seed, name, path in _rows(run):
        if not path.is_file():
            continue
        row, start = read_row(path), read_row(_path(run, START, images, seed))
        config = {} if name == START else FitConfig(**RECOVERIES[name]).to_dict()
        rms = [_rms(row.get(f"{which}_unseen"), original["unseen"]) for which in ("last", "kept")]
        last, kept = (_gain(bench, row.get(f"{which}_test"), start["last_test"]) for which in ("last", "kept"))
        figures = [*rms, mean_auroc(bench.truth, row["last_test"]), last.value, last.low, last.high, kept.value]
        shown = ["" if np.isnan(value) else f"{value:.4f}" for value in figures]
        ends = [int(row["epoch"]) if "epoch" in row else "", f"{float(row['seconds']):.0f}"]
        writer.writerow([name, images, seed, *(config.get(setting, "") for setting in settings), *shown, *ends])
    return text.getvalue()


def _gain(bench: Bench, logits: Floats | None, start: Floats) -> Interval:
    """The mean AUROC minus that of the start, with its interval over the same resampled patients."""
    if logits is None:
        return Interval(np.nan, np.nan, np.nan)
    ours, theirs = (row_means(auroc_samples(bench.truth, values, bench.patients)) for values in (logits, start))
    return interval(mean_auroc(bench.truth, logits) - mean_auroc(bench.truth, start), ours - theirs)


def _rms(logits: Floats | None, original: Floats) -> float:
    return np.nan if logits is None else float(np.sqrt(np.mean((logits - original) ** 2)))


def _rows(run: Path) -> Iterator[tuple[int, int, str, Path]]:
    for seed in map(int, _SEEDS.value):
        for images in map(int, _IMAGES.value):
            for name in dict.fromkeys((START, *_RECOVERIES.value)):
                yield images, seed, name, _path(run, name, images, seed)


def _path(run: Path, name: str, images: int, seed: int) -> Path:
    return run / f"{name}-{images}-{seed}.npz"


def prepare(folder: Path) -> Bench:
    """Model and images, real or small."""
    if _SMOKE.value:
        write_phantom(folder, n_train=60, n_test=24, size=64)
        dataset = load_dataset("phantom", folder)
        model, spec = tiny_chexnet(num_classes=len(dataset.findings), input_shape=(64, 64, 3)), PreprocessSpec(64, 64)
    else:
        dataset = load_dataset(_DATASET.value, _DATA.value)
        about = read_about(_MODEL.value)
        model = load_model(_MODEL.value)
        spec = PreprocessSpec(*model.input_shape[1:3]) if about is None else about.preprocess
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion="l1")
    return Bench(
        model=model,
        plan=select_channels(analysis, scores, Budget(macs=_TARGET.value), scope="local", round_to=8),
        spec=spec,
        train=dataset.train,
        unseen=decode_split(
            dataset.dev.take(range(0, len(dataset.dev), max(1, len(dataset.dev) // UNSEEN))[:UNSEEN]), spec
        ),
        test=decode_split(dataset.test, spec),
        truth=dataset.test.labels,
        findings=dataset.findings,
        patients=dataset.test.patients,
    )


def run_rows(folder: Path, run: Path, results: Path) -> None:
    """Measure every row that is not there yet."""
    bench = prepare(folder)
    make_folder(run)
    if not (run / "original.npz").is_file():
        write_row(run / "original.npz", bench.logits(bench.model))
    for images, seed, name, path in _rows(run):
        if not path.is_file():
            row = measure(bench, run, name, images, seed)
            write_row(path, row)
            print(f"{path.stem} ({float(row['seconds']):.0f} s)", flush=True)
    write_text(results, tabulate(bench, run))
    print(results.read_text(), flush=True)


def main(_: list[str]) -> None:
    """Run with the flags; a smoke run leaves nothing behind unless it is told where."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if _SMOKE.value:
            run = Path(_RUN.value or scratch / "run")
            run_rows(scratch / "images", run, run / "recovery.csv")
        elif not _MODEL.value or not _DATA.value or not _RUN.value:
            raise app.UsageError("give --keras_model_file, --data_dir and --run_dir, or --smoke")
        else:
            run_rows(scratch, Path(_RUN.value), Path(_RESULTS.value))


if __name__ == "__main__":
    app.run(main)

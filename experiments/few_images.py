r"""How few images, and of what kind, a pruned model needs: no labels, no training, least squares alone.

Command:  cxr_import_weights --from=npz --input_file=experiments/results/chexnet_kermany/weights_fp16.npz \
              --input_size=112 --output_file=chexnet_kermany.keras
          python experiments/few_images.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224 \
              --run_dir=few_images_run
          python experiments/few_images.py --keras_model_file=lite0_nih14.keras --dataset=csv --data_dir=nih14.csv \
              --target_macs=0.5,0.25 --run_dir=few_images_lite0
Time:     5 to 60 seconds a row without training on two cores; every finished row is kept: the same command goes on.
Result:   in --run_dir one .npz per kind of images, way, number of images, budget, passes and draw: the logits of
          the official test images. `--table=few_images_MODEL.csv` turns what is there into a table: AUROC and
          its loss to the original model (mean over the draws, with the paired interval over patients), the least and
          the largest AUROC of a draw, the distance of the logits in standard deviations of the original's, decisions
          that flip at the original's probability of 0.5, and seconds.

kinds:    mixed (as many images with any finding as without), normal (images without any finding alone: what a screening
          clinic has). Labels choose which images are drawn, and nothing else sees them.
ways:     chosen (the pull of each layer by how the fit holds on images that it has not seen), varied (the same, with
          varied copies of the images: the default of `cxr_compress`), fixed (a pull of 0.001, as before 2026-12),
          taylor (filters scored by the loss to the original's probabilities, then as varied), random (random filters
          are kept, then as varied), norms (random filters, batch norms re-estimated alone), scratch (the shape of l1,
          random weights).
passes:   over the same images in training, 0 for none. Training follows the original's logits, no label: what was
          refitted, as recovery without labels does (batch norms held, 3e-5), norms and scratch, which have nothing to
          lose, at 1e-3 with batch norms that follow. Scored after the last pass.
Nothing is chosen on test, so each row is one look at it.
"""

from __future__ import annotations

import csv
import io
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags
from rows import BATCH, KeepLast, Scorer, write_row

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate.degradation import logit_distance
from cxr_compress.files import make_folder, write_text
from cxr_compress.keras2 import keras
from cxr_compress.metrics import auroc_per_finding, auroc_samples, bootstrap_mean
from cxr_compress.models import load_model, read_about, tiny_chexnet
from cxr_compress.models.variants import reinitialize
from cxr_compress.pipeline.run import use_threads
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    analyze_channels,
    images_that_fit,
    recalibrate_batch_norm,
    reconstruct_consumers,
    remove_channels,
    score_channels,
    select_channels,
    vary_images,
)
from cxr_compress.train import FitConfig, WeightedBce, fit

WAYS = ("fixed", "chosen", "varied", "taylor", "random", "norms", "scratch")
REFITTED = ("varied", "taylor", "random")
KINDS = ("mixed", "normal")
_GENTLE: dict[str, Any] = {"learning_rate": 3e-5, "batch_norm": "hold"}
_MOST_REMOVED = 0.95  # of a layer: 0.06 of the MACs cannot be reached otherwise
_COLUMNS = (
    *("kind", "way", "images", "passes", "target_macs", "macs_fraction", "draws", "auroc", "auroc_low", "auroc_high"),
    *("drop", "drop_low", "drop_high", "logit_distance", "flips", "seconds"),
)

_SMOKE = flags.DEFINE_boolean("smoke", False, "A small random network on phantom images: checks the script.")
_MODEL = flags.DEFINE_string("keras_model_file", None, "The trained model, logits out.")
_DATASET = flags.DEFINE_string("dataset", "kermany", "Reader of the images.")
_DATA = flags.DEFINE_string("data_dir", None, "Where they lie.")
_TARGETS = flags.DEFINE_list("target_macs", ["0.25", "0.06"], "Shares of the MACs that stay.")
_KINDS = flags.DEFINE_list("kinds", list(KINDS), "Kinds of images.")
_WAYS = flags.DEFINE_list("ways", ["fixed", "chosen", "varied", "random", "norms"], f"Of {', '.join(WAYS)}.")
_PASSES = flags.DEFINE_list("passes", ["0"], "Passes over the images in training.")
_IMAGES = flags.DEFINE_list("images", ["16", "32", "64", "128", "512"], "How many images.")
_DRAWS = flags.DEFINE_integer("draws", 5, "Draws of the images.")
_RUN = flags.DEFINE_string("run_dir", None, "Where the rows are kept.")
_TABLE = flags.DEFINE_string("table", None, "Write the rows of --run_dir as this CSV, and end.")

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bench:
    """What every row shares.

    Attributes:
        model: the original model.
        spec: the preprocessing of its images.
        pool: by kind, uint8 training images to draw from.
        test: uint8 test images.
    """

    model: keras.Model
    spec: PreprocessSpec
    pool: dict[str, Pixels]
    test: Pixels

    def logits(self, model: keras.Model) -> Logits:
        """(test images, findings) float32."""
        return Scorer(model, self.spec).logits(self.test)

    def batches(self, images: Pixels) -> Iterator[npt.NDArray[np.float32]]:
        """Preprocessed, a few at a time."""
        for start in range(0, len(images), BATCH):
            yield normalize(images[start : start + BATCH], self.spec)

    def draw(self, kind: str, count: int, seed: int) -> Pixels:
        """So many images of a kind, in an order that begins with what a smaller number would give."""
        rng = np.random.default_rng(seed)
        if kind != "mixed":
            return self.pool[kind][rng.permutation(len(self.pool[kind]))[:count]]
        halves = [self.pool[half][rng.permutation(len(self.pool[half]))] for half in ("normal", "finding")]
        shared = min(map(len, halves))
        return np.stack([half[:shared] for half in halves], axis=1).reshape(-1, *halves[0].shape[1:])[:count]


@dataclass(frozen=True, order=True)
class Row:
    """One line of the table before draws are put together."""

    target: float
    kind: str
    way: str
    images: int
    passes: int
    seed: int

    @property
    def file(self) -> str:
        """Its name in the folder of rows."""
        return f"{self.kind}-{self.way}-{self.images}-{self.target}-{self.passes}-{self.seed}.npz"

    @classmethod
    def of(cls, path: Path) -> Row:
        """The row that a file holds."""
        kind, way, images, target, passes, seed = path.stem.split("-")
        return cls(float(target), kind, way, int(images), int(passes), int(seed))


def plan_of(bench: Bench, row: Row, images: Pixels) -> ChannelPlan:
    """The same share of every layer, by the way's criterion."""
    analysis = analyze_channels(bench.model)
    criterion = {"random": "random", "norms": "random", "taylor": "taylor"}.get(row.way, "l1")
    inputs: dict[str, Any] = {}
    if criterion == "taylor":
        # The labels are the original's own probabilities: no other is there.
        soft = (1 / (1 + np.exp(-Scorer(bench.model, bench.spec).logits(images)))).astype(np.float32)
        starts = range(0, len(images), BATCH)
        pairs = ((normalize(images[at : at + BATCH], bench.spec), soft[at : at + BATCH]) for at in starts)
        inputs = {"batches": pairs, "loss": WeightedBce(np.ones(soft.shape[1], np.float32))}
    scores = score_channels(bench.model, analysis, criterion=criterion, seed=row.seed, **inputs)
    return select_channels(
        analysis,
        scores,
        Budget(macs=row.target),
        scope="local",
        round_to=4 if _SMOKE.value else 8,
        max_removed_fraction=_MOST_REMOVED,
    )


def repair(bench: Bench, row: Row, plan: ChannelPlan, images: Pixels) -> keras.Model:
    """The pruned model as the way leaves it before any training."""
    pruned = remove_channels(bench.model, plan)
    if row.way == "scratch":
        return reinitialize(pruned, row.seed)
    if row.way == "norms":
        recalibrate_batch_norm(pruned, list(bench.batches(images)))
        return pruned
    if row.way in REFITTED:
        images = vary_images(images, most=images_that_fit(pruned, bench.model, plan), seed=row.seed)
    ridge = 1e-3 if row.way == "fixed" else None
    reconstruct_consumers(pruned, bench.model, plan, bench.batches(images), ridge=ridge, seed=row.seed)
    return pruned


def train(bench: Bench, row: Row, model: keras.Model, images: Pixels) -> None:
    """Follow the original for so many passes, and keep the weights of the last."""
    gentle = _GENTLE if row.way in (*REFITTED, "chosen", "fixed") else {}
    config = FitConfig(row.passes, batch_size=16, distill_weight=1.0, distill_loss="logits", seed=row.seed, **gentle)
    unknown = np.full((len(images), model.output_shape[-1]), np.nan, np.float32)
    keep = KeepLast()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            (images, unknown),
            (images[:BATCH], unknown[:BATCH]),  # its best epoch is not what is asked for
            bench.spec,
            config,
            folder,
            findings=[f"finding {index}" for index in range(unknown.shape[1])],
            pos_weight=np.ones(unknown.shape[1]),
            teacher=bench.model,
            extra_callbacks=[keep],
        )
    model.set_weights(keep.weights)


def measure(bench: Bench, row: Row) -> dict[str, Any]:
    """What one row shows."""
    images = bench.draw(row.kind, row.images, row.seed)
    if len(images) < row.images:
        raise CompressionError(f"there are {len(images)} {row.kind} images to draw from; {row.file} needs more")
    started = time.monotonic()
    plan = plan_of(bench, row, images)
    model = repair(bench, row, plan, images)
    if row.passes:
        train(bench, row, model, images)
    seconds = time.monotonic() - started
    share = np.array(plan.after.macs / plan.before.macs if plan.after.macs and plan.before.macs else np.nan)
    return {"logits": bench.logits(model), "seconds": np.array(seconds), "macs": share}


def prepare(folder: Path) -> tuple[Bench, npt.NDArray[np.float32], list[int]]:
    """Model and images, real or small; the labels and patients of the test images."""
    if _SMOKE.value:
        write_phantom(folder, n_train=96, n_test=24, size=64)
        dataset = load_dataset("phantom", folder)
        model = tiny_chexnet(num_classes=len(dataset.findings), input_shape=(64, 64, 3))
        spec = PreprocessSpec(64, 64)
    else:
        dataset = load_dataset(_DATASET.value, _DATA.value)
        model = load_model(_MODEL.value)
        about = read_about(Path(_MODEL.value))
        spec = about.preprocess if about is not None else PreprocessSpec(*model.input_shape[1:3])
    positive = dataset.train.positive.any(axis=1)
    rng = np.random.default_rng(0)
    needed = 8 if _SMOKE.value else 2 * max(map(int, _IMAGES.value))
    pool = {
        kind: decode_split(dataset.train.take(np.sort(rng.permutation(np.flatnonzero(chosen))[:needed])), spec)
        for kind, chosen in (("normal", ~positive), ("finding", positive))
    }
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(dataset.test.patients))}
    patients = [numbers[patient] for patient in dataset.test.patients]
    return Bench(model, spec, pool, decode_split(dataset.test, spec)), dataset.test.labels, patients


def run(folder: Path, rows: Path) -> None:
    """Measure every row that is not there yet; draws outermost, so that a run that is stopped has all kinds."""
    bench, labels, patients = prepare(folder)
    make_folder(rows)
    write_row(rows / "original.npz", {"logits": bench.logits(bench.model), "labels": labels, "patients": patients})
    targets = [0.5] if _SMOKE.value else [float(share) for share in _TARGETS.value]
    counts = [8] if _SMOKE.value else [int(count) for count in _IMAGES.value]
    draws, passes = range(1 if _SMOKE.value else _DRAWS.value), [int(number) for number in _PASSES.value]
    for seed, *rest in itertools.product(draws, targets, _KINDS.value, counts, passes, _WAYS.value):
        target, kind, count, number, way = rest
        row = Row(target, kind, way, count, number, seed)
        if not (rows / row.file).is_file():
            shown = measure(bench, row)
            write_row(rows / row.file, shown)
            distance = logit_distance(shown["logits"], np.load(rows / "original.npz")["logits"])
            print(f"{row.file} ({shown['seconds']:.0f} s): distance of the logits {distance:.3f}", flush=True)


def tabulate(rows: Path) -> str:
    """The table of all rows that are there, as CSV."""
    original = np.load(rows / "original.npz")
    labels, logits, patients = original["labels"], original["logits"], original["patients"].tolist()
    values, drawn = auroc_per_finding(labels, logits), auroc_samples(labels, logits, patients)
    groups: dict[Row, list[Any]] = {}
    for path in rows.glob("*-*.npz"):
        groups.setdefault(replace(Row.of(path), seed=0), []).append(np.load(path))
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row, draws in sorted(groups.items()):
        each = [auroc_per_finding(labels, draw["logits"]) for draw in draws]
        samples = np.mean([auroc_samples(labels, draw["logits"], patients) for draw in draws], axis=0)
        drop = bootstrap_mean(values - np.mean(each, axis=0), drawn - samples)
        means = [float(np.nanmean(one)) for one in each]
        flips = [np.mean((draw["logits"] > 0) != (logits > 0)) for draw in draws]
        numbers = {
            "auroc": np.mean(means),
            "auroc_low": min(means),
            "auroc_high": max(means),
            "drop": drop.value,
            "drop_low": drop.low,
            "drop_high": drop.high,
            "logit_distance": np.mean([logit_distance(draw["logits"], logits) for draw in draws]),
            "flips": np.mean(flips),
            "macs_fraction": np.mean([draw["macs"] for draw in draws]),
        }
        facts = {"kind": row.kind, "way": row.way, "images": row.images, "passes": row.passes}
        facts |= {"target_macs": row.target, "draws": len(draws)}
        shown = {name: f"{number:.4f}" for name, number in numbers.items()}
        seconds = f"{np.median([draw['seconds'] for draw in draws]):.0f}"
        writer.writerow({**facts, **shown, "seconds": seconds})
    return text.getvalue()


def main(_: list[str]) -> None:
    """Run with the flags; a smoke run leaves nothing behind unless it is told where."""
    use_threads(2, print)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(_RUN.value or folder)
        if not _SMOKE.value and (not _RUN.value or not (_TABLE.value or (_MODEL.value and _DATA.value))):
            raise app.UsageError(
                "give --keras_model_file, --data_dir and --run_dir, or --table and --run_dir, or --smoke"
            )
        if not _TABLE.value:
            run(Path(folder) / "images", rows)
        if _TABLE.value:
            write_text(Path(_TABLE.value), tabulate(rows))
        elif _SMOKE.value:
            print(tabulate(rows))


if __name__ == "__main__":
    app.run(main)

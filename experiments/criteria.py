r"""Every criterion at the same budgets without fine-tuning: raw, recalibrated, reconstructed.

Command:  cxr_import_weights --from=npz --input_file=experiments/results/chexnet_kermany/weights_fp16.npz \
              --input_size=112 --output_file=chexnet_kermany.keras
          python experiments/criteria.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224 \
              --run_dir=criteria_run
          python experiments/criteria_table.py --run_dir=criteria_run
Time:     about 2 minutes a row at 112 px on two cores; 3 budgets x (7 criteria + 5 random seeds) are 36 rows. Every
          finished row is kept: run the same command again to go on.
Result:   in --run_dir one .npz per criterion, seed and budget: the logits of the official test images of the pruned
          model as it is (raw), with batch norms re-estimated alone (reestimated), re-estimated with the original model
          as reference (recalibrated), with its consumers refitted (reconstructed), and with both
          (reconstructed_recalibrated). A criterion that has nothing to say of this model leaves a file with the
          reason. `criteria_table.py` turns them into experiments/results/criteria.csv, .json and .png.

All criteria see the same training images; nothing is chosen on test, so each row is one look at it. What is kept in
experiments/results was made from other weights (AUROC 0.967 as they are), which are not in the repository: with those
of the first line the numbers are others.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from absl import app, flags
from rows import BATCH, Row, Scorer, write_row

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.errors import CompressionError
from cxr_compress.files import make_folder
from cxr_compress.keras2 import keras
from cxr_compress.metrics import mean_auroc
from cxr_compress.models import tiny_chexnet
from cxr_compress.structured import (
    Budget,
    ChannelAnalysis,
    NormStatistics,
    analyze_channels,
    measure_batch_norms,
    recalibrate_batch_norm,
    reconstruct_consumers,
    remove_channels,
    score_channels,
    select_channels,
)
from cxr_compress.structured.criteria.base import CRITERIA
from cxr_compress.train import WeightedBce, pos_weights

RANDOM_SEEDS = range(5)

_SMOKE = flags.DEFINE_boolean("smoke", False, "A small random network on phantom images: checks the script.")
_MODEL = flags.DEFINE_string("keras_model_file", None, "The trained model, logits out.")
_DATASET = flags.DEFINE_string("dataset", "kermany", "The images: kermany or nih.")
_DATA = flags.DEFINE_string("data_dir", None, "Where they lie.")
_CRITERIA = flags.DEFINE_list("criteria", list(CRITERIA), "What to compare.")
_TARGETS = flags.DEFINE_list("target_macs", ["0.75", "0.5", "0.25"], "Shares of the MACs that stay.")
_SCOPE = flags.DEFINE_string("scope", "local", "local: the same share of every group; global: ranked together.")
_IMAGES = flags.DEFINE_integer("images", 512, "Training images for scores, reconstruction and batch norms.")
_RUN = flags.DEFINE_string("run_dir", None, "Where the rows are kept.")

Images = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bench:
    """What every row shares.

    Attributes:
        model: the original model.
        analysis: its channels.
        images: float32 training images.
        labels: theirs.
        test: decoded test images, uint8.
        truth: their labels.
        patients: whose they are.
        spec: their preprocessing.
        round_to: widths are multiples of this.
    """

    model: keras.Model
    analysis: ChannelAnalysis
    images: Images
    labels: Images
    test: npt.NDArray[np.uint8]
    truth: Images
    patients: tuple[str, ...]
    spec: PreprocessSpec
    round_to: int

    def batches(self) -> Iterator[tuple[Images, Images]]:
        """Training images with labels."""
        for start in range(0, len(self.images), BATCH):
            yield self.images[start : start + BATCH], self.labels[start : start + BATCH]

    def unlabeled(self) -> Iterator[Images]:
        """Training images alone."""
        return (images for images, _ in self.batches())

    @cached_property
    def norms(self) -> NormStatistics:
        """What the original model's batch norms see on the training images."""
        return measure_batch_norms(self.model, self.unlabeled())


def measure(bench: Bench, criterion: str, seed: int, target: float) -> Row:
    """One row of the table."""
    try:
        scores = score_channels(
            bench.model,
            bench.analysis,
            criterion=criterion,
            batches=bench.batches(),
            loss=WeightedBce(pos_weights(bench.labels)),
            seed=seed,
        )
        plan = select_channels(bench.analysis, scores, Budget(macs=target), scope=_SCOPE.value, round_to=bench.round_to)
    except CompressionError as error:
        return {"note": np.array(str(error))}
    pruned = remove_channels(bench.model, plan)
    scorer, start = Scorer(pruned, bench.spec), pruned.get_weights()
    row: Row = {
        "macs": np.array(plan.after.macs),
        "params": np.array(plan.after.params),
        "raw": scorer.logits(bench.test),
    }
    recalibrate_batch_norm(pruned, bench.unlabeled())
    row["reestimated"] = scorer.logits(bench.test)
    pruned.set_weights(start)
    recalibrate_batch_norm(pruned, bench.unlabeled(), original=bench.model, plan=plan, reference=bench.norms)
    row["recalibrated"] = scorer.logits(bench.test)
    pruned.set_weights(start)
    reconstruct_consumers(pruned, bench.model, plan, bench.batches())
    row["reconstructed"] = scorer.logits(bench.test)
    recalibrate_batch_norm(pruned, bench.unlabeled(), original=bench.model, plan=plan, reference=bench.norms)
    row["reconstructed_recalibrated"] = scorer.logits(bench.test)
    return row


def told(truth: Images, row: Row) -> str:
    """The row's AUROCs, or why it has none."""
    return " ".join(
        str(values) if name == "note" else f"{name} {mean_auroc(truth, values):.4f}" if values.ndim else ""
        for name, values in row.items()
    )


def prepare(folder: Path) -> Bench:
    """Model and images, real or small."""
    if _SMOKE.value:
        write_phantom(folder, n_train=48, n_test=24, size=64)
        dataset = load_dataset("phantom", folder)
        model = tiny_chexnet(num_classes=len(dataset.findings), input_shape=(64, 64, 3))
    else:
        dataset = load_dataset(_DATASET.value, _DATA.value)
        model = keras.models.load_model(_MODEL.value, compile=False)
    spec = PreprocessSpec(*model.input_shape[1:3])
    count = min(len(dataset.train), 16 if _SMOKE.value else _IMAGES.value)
    chosen = np.sort(np.random.default_rng(0).choice(len(dataset.train), size=count, replace=False))
    # Only the chosen images are decoded; the rest of the training set plays no part.
    sample = dataset.train.take(chosen)
    return Bench(
        model=model,
        analysis=analyze_channels(model),
        images=normalize(decode_split(sample, spec), spec),
        labels=sample.labels,
        test=decode_split(dataset.test, spec),
        truth=dataset.test.labels,
        patients=dataset.test.patients,
        spec=spec,
        round_to=4 if _SMOKE.value else 8,
    )


def run(folder: Path, rows: Path) -> None:
    """Measure every row that is not there yet."""
    bench = prepare(folder)
    make_folder(rows)
    original = Scorer(bench.model, bench.spec).logits(bench.test)
    baseline = bench.analysis.baseline
    facts = {"logits": original, "labels": bench.truth, "patients": np.array(_numbered(bench.patients))}
    write_row(rows / "original.npz", {**facts, "macs": np.array(baseline.macs), "params": np.array(baseline.params)})
    for target in [0.5] if _SMOKE.value else [float(share) for share in _TARGETS.value]:
        for criterion in _CRITERIA.value:
            for seed in RANDOM_SEEDS if criterion == "random" and not _SMOKE.value else range(1):
                path = rows / f"{criterion}-{seed}-{target}.npz"
                if not path.is_file():
                    started = time.monotonic()
                    row = measure(bench, criterion, seed, target)
                    write_row(path, row)
                    seconds = time.monotonic() - started
                    print(f"{path.stem} ({seconds:.0f} s): {told(bench.truth, row)}", flush=True)


def _numbered(patients: tuple[str, ...]) -> list[int]:
    """A number per patient instead of what the data set calls them."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    return [numbers[patient] for patient in patients]


def main(_: list[str]) -> None:
    """Run with the flags; a smoke run leaves nothing behind unless it is told where."""
    with tempfile.TemporaryDirectory() as folder:
        if _SMOKE.value:
            run(Path(folder) / "images", Path(_RUN.value or folder))
        elif not _MODEL.value or not _DATA.value or not _RUN.value:
            raise app.UsageError("give --keras_model_file, --data_dir and --run_dir, or --smoke")
        else:
            run(Path(folder), Path(_RUN.value))


if __name__ == "__main__":
    app.run(main)

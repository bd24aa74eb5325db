r"""Every criterion at the same budgets without fine-tuning: raw, recalibrated, reconstructed, folded.

Command:  cxr_import_weights --from=npz --input_file=kermany_densenet121_fp16.npz --num_classes=1 --input_size=112 \
              --output_file=chexnet_kermany.keras
          python experiments/criteria.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224
Time:     about 4 minutes a row with reconstruction at 112 px on two cores; 3 budgets x (7 criteria + 5 random seeds)
          are 36 rows. Every finished row is kept: run the same command again to go on.
Result:   experiments/results/criteria.csv, one row per criterion, seed and budget: AUROC on the official test films of
          the uncut model, after removal (raw), with re-estimated batch norms (recalibrated), and the same two after
          least squares on the consumers (reconstructed, reconstructed_recalibrated) or after folding constants
          (folded; what goes into a batch norm's mean is re-estimated by recalibration, so that pair is not repeated);
          experiments/results/criteria.png; `random` is drawn as the mean of its seeds. A criterion that has
          nothing to say of this model gets a row with the reason.

All criteria see the same training films; nothing is chosen on test, so each row is one look at it.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.data.phantom import write_phantom
from cxr_compress.device.atomic import write_bytes, write_text
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.metrics import mean_auroc
from cxr_compress.models import tiny_chexnet
from cxr_compress.structured import (
    Budget,
    ChannelAnalysis,
    analyze_channels,
    fold_constant_channels,
    recalibrate_batch_norm,
    reconstruct_consumers,
    remove_channels,
    score_channels,
    select_channels,
)
from cxr_compress.train import pos_weights, weighted_bce

RESULTS = Path(__file__).parent / "results"
MEASURES = ("raw", "recalibrated", "reconstructed", "reconstructed_recalibrated", "folded")
COLUMNS = ("criterion", "seed", "target_macs", "macs", "params", "uncut", *MEASURES, "note")
RANDOM_SEEDS = range(5)
BATCH = 32

_SMOKE = flags.DEFINE_boolean("smoke", False, "A small random network on phantom films: checks the script.")
_MODEL = flags.DEFINE_string("keras_model_file", None, "The trained model, logits out.")
_DATASET = flags.DEFINE_string("dataset", "kermany", "The films: kermany or nih.")
_DATA = flags.DEFINE_string("data_dir", None, "Where they lie.")
_CRITERIA = flags.DEFINE_list(
    "criteria", ["random", "l1", "l2", "geometric_median", "bn_scale", "taylor", "apoz", "lasso"], "What to compare."
)
_TARGETS = flags.DEFINE_list("target_macs", ["0.75", "0.5", "0.25"], "Shares of the MACs that stay.")
_SCOPE = flags.DEFINE_string("scope", "local", "local: the same share of every group; global: ranked together.")
_IMAGES = flags.DEFINE_integer("images", 512, "Training films for scores, reconstruction and batch norms.")
_OUTPUT = flags.DEFINE_string("output", str(RESULTS / "criteria.csv"), "The table; the plot lies beside it.")

Images = npt.NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Bench:
    """What every row shares.

    Attributes:
        model: the uncut model.
        analysis: its channels.
        images: float32 training films.
        labels: theirs.
        test: decoded test films, uint8.
        truth: their labels.
        spec: their preprocessing.
        round_to: widths are multiples of this.
    """

    model: keras.Model
    analysis: ChannelAnalysis
    images: Images
    labels: Images
    test: npt.NDArray[np.uint8]
    truth: Images
    spec: PreprocessSpec
    round_to: int

    def batches(self) -> Iterator[tuple[Images, Images]]:
        """Training films with labels."""
        for start in range(0, len(self.images), BATCH):
            yield self.images[start : start + BATCH], self.labels[start : start + BATCH]

    def auroc(self, model: keras.Model) -> float:
        """Mean over findings, on the test films."""
        parts = [
            np.asarray(model(normalize(self.test[start : start + BATCH], self.spec), training=False))
            for start in range(0, len(self.test), BATCH)
        ]
        return round(float(mean_auroc(self.truth, np.concatenate(parts))), 5)


def measure(bench: Bench, criterion: str, seed: int, target: float, uncut: float) -> Row:
    """One row of the table."""
    row: Row = {"criterion": criterion, "seed": seed, "target_macs": target, "uncut": uncut}
    try:
        scores = score_channels(
            bench.model,
            bench.analysis,
            criterion=criterion,
            batches=bench.batches(),
            loss=weighted_bce(pos_weights(bench.labels)),
            seed=seed,
        )
        plan = select_channels(bench.analysis, scores, Budget(macs=target), scope=_SCOPE.value, round_to=bench.round_to)
    except CompressionError as error:
        return {**row, "note": str(error)}
    row.update(macs=plan.after.macs, params=plan.after.params)
    thin = remove_channels(bench.model, plan)
    start = thin.get_weights()
    repairs: tuple[tuple[str, str, Callable[..., Any] | None], ...] = (
        ("raw", "recalibrated", None),
        ("reconstructed", "reconstructed_recalibrated", reconstruct_consumers),
        ("folded", "", fold_constant_channels),
    )
    for before, after, repair in repairs:
        thin.set_weights(start)
        if repair is not None:
            repair(thin, bench.model, plan, bench.batches())
        row[before] = bench.auroc(thin)
        if after:
            recalibrate_batch_norm(thin, (images for images, _ in bench.batches()))
            row[after] = bench.auroc(thin)
    return row


def read_rows(path: Path) -> list[Row]:
    """The rows that an earlier run finished."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The whole table, in one piece."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def draw(rows: Sequence[Row], path: Path) -> None:
    """AUROC over MACs, one line per criterion; left recalibrated, right reconstructed and recalibrated."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, name in zip(panels, ("recalibrated", "reconstructed_recalibrated"), strict=True):
        for criterion in dict.fromkeys(row["criterion"] for row in rows):
            points: dict[float, list[float]] = {}
            for row in rows:
                if row["criterion"] == criterion and row.get(name) not in (None, ""):
                    points.setdefault(float(row["target_macs"]), []).append(float(row[name]))
            shares = sorted(points)
            panel.plot(shares, [float(np.mean(points[share])) for share in shares], "o-", label=criterion)
        panel.set_title(name.replace("_", ", "), loc="left", fontsize=10)
        panel.set_xlabel("share of MACs that stays")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("AUROC, official test films")
    panels[0].legend(fontsize=8, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_bytes(path, content.getvalue())


def prepare(folder: Path) -> Bench:
    """Model and films, real or small."""
    if _SMOKE.value:
        write_phantom(folder, n_train=48, n_test=24, size=64)
        dataset = load_dataset("phantom", folder)
        model = tiny_chexnet(num_classes=len(dataset.findings), input_shape=(64, 64, 3))
    else:
        dataset = load_dataset(_DATASET.value, _DATA.value)
        model = keras.models.load_model(_MODEL.value, compile=False)
    spec = PreprocessSpec(*model.input_shape[1:3])
    count = min(len(dataset.train), 16 if _SMOKE.value else _IMAGES.value)
    chosen = np.sort(np.random.default_rng(0).choice(len(dataset.train), size=count, replace=False)).tolist()
    # Only the chosen films are decoded; the rest of the training set plays no part.
    sample = replace(
        dataset.train,
        paths=tuple(dataset.train.paths[index] for index in chosen),
        labels=dataset.train.labels[chosen],
        patients=tuple(dataset.train.patients[index] for index in chosen),
    )
    return Bench(
        model=model,
        analysis=analyze_channels(model),
        images=normalize(decode_split(sample, spec), spec),
        labels=sample.labels,
        test=decode_split(dataset.test, spec),
        truth=dataset.test.labels,
        spec=spec,
        round_to=4 if _SMOKE.value else 8,
    )


def run(folder: Path, output: Path) -> None:
    """Measure every row that is not there yet."""
    bench = prepare(folder)
    rows = read_rows(output)
    done = {(row["criterion"], int(row["seed"]), float(row["target_macs"])) for row in rows}
    uncut = bench.auroc(bench.model)
    for target in [0.5] if _SMOKE.value else [float(share) for share in _TARGETS.value]:
        for criterion in _CRITERIA.value:
            for seed in RANDOM_SEEDS if criterion == "random" and not _SMOKE.value else range(1):
                if (criterion, seed, target) not in done:
                    rows.append(measure(bench, criterion, seed, target, uncut))
                    write_rows(output, rows)
                    print(",".join(str(rows[-1].get(name, "")) for name in COLUMNS), flush=True)
    draw(rows, output.with_suffix(".png"))


def main(_: list[str]) -> None:
    """Run with the flags; a smoke run leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        if _SMOKE.value:
            run(Path(folder) / "films", Path(folder) / "criteria.csv")
        elif not _MODEL.value or not _DATA.value:
            raise app.UsageError("give --keras_model_file and --data_dir, or --smoke")
        else:
            run(Path(folder), Path(_OUTPUT.value))


if __name__ == "__main__":
    app.run(main)

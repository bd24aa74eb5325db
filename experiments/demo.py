r"""The main job as a newcomer sees it: predict with the shipped model, then make one and predict with that.

Command:  make demo
          (or, inside the environment: python experiments/demo.py --data_dir=chest_xray --output_dir=demo_run)
Time:     about 4 minutes on two cores, after about 1 minute of installing.
Result:   one table (original float file, its int8 twin, the compressed int8 file), the findings of one X-ray, and
          whether the run reached its floors; exit code 1 if it did not.

Images come from --data_dir, else from $CXR_DATA, else from ../shared/data beside the checkout, else synthetic phantom
images are drawn. The commands that run are printed; each can be repeated by hand.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from absl import app, flags

from cxr_compress.data import load_dataset, write_phantom
from cxr_compress.errors import CompressionError
from cxr_compress.report import read_report

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = REPOSITORY / "tflite_models" / "tiny_chexnet_kermany_m50_w50_int8.tflite"

_DATA_DIR = flags.DEFINE_string("data_dir", None, "A Kermany chest_xray folder; by default it is looked for.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "demo_run", "Where the run goes.")
_SMOKE = flags.DEFINE_boolean("smoke", False, "One epoch of everything on few phantom images: checks the script.")


@dataclass(frozen=True)
class Floors:
    """What a demo must reach on test: the AUROC of the original, and what int8 and the whole compression may lose."""

    original: float
    int8_loss: float
    compressed_loss: float


FLOORS = {"kermany": Floors(0.90, 0.01, 0.03), "phantom": Floors(0.88, 0.01, 0.03)}


@dataclass(frozen=True)
class Source:
    """Where the demo's images come from."""

    dataset: str
    folder: Path
    example: Path


def find_source(output_dir: Path) -> Source:
    """Real X-rays where there are some, else phantom images drawn into the output folder."""
    named = [Path(_DATA_DIR.value)] if _DATA_DIR.value else []
    if "CXR_DATA" in os.environ:
        named += [Path(os.environ["CXR_DATA"]) / "kermany224", Path(os.environ["CXR_DATA"])]
    for folder in [*named, REPOSITORY.parent / "shared" / "data" / "kermany224"]:
        example = next(iter(sorted(folder.glob("**/val/PNEUMONIA/*.jp*g"))), None)
        if folder.is_dir() and example is not None and not _SMOKE.value:
            return Source("kermany", folder, example)
    print("No real X-rays found (set CXR_DATA, or give --data_dir): drawing SYNTHETIC phantom images.", flush=True)
    folder = output_dir / "phantom"
    if _SMOKE.value:
        write_phantom(folder, n_train=300, n_test=120)
    else:
        write_phantom(folder)
    return Source("phantom", folder, load_dataset("phantom", folder).test.paths[0])


def run(*command: str) -> None:
    """Print a command and run it from the environment that runs this script.

    Raises:
        SystemExit: with the command's exit code, when it fails; it has said why.
    """
    print(f"\n$ {shlex.join(command)}", flush=True)
    program = Path(sys.executable).with_name(command[0])
    code = subprocess.run([str(program), *command[1:]], check=False).returncode
    if code:
        sys.exit(code)


def check_floors(output_dir: Path, floors: Floors) -> bool:
    """Print whether the run reached what it must."""
    report = read_report(output_dir / "report.json")
    original, int8, compressed = (row["evaluation"]["mean_auroc"]["value"] for row in report["rows"])
    rows = (
        ("original AUROC", original, ">=", floors.original, original >= floors.original),
        ("lost to int8", original - int8, "<=", floors.int8_loss, original - int8 <= floors.int8_loss),
        (
            "lost in all",
            original - compressed,
            "<=",
            floors.compressed_loss,
            original - compressed <= floors.compressed_loss,
        ),
    )
    for name, value, relation, floor, holds in rows:
        print(f"{name}: {value:.4f} (must be {relation} {floor}): {'reached' if holds else 'MISSED'}")
    return all(row[-1] for row in rows)


def main(_: list[str]) -> None:
    """Run the demo."""
    output_dir = Path(_OUTPUT_DIR.value)
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        source = find_source(output_dir)
    except CompressionError as error:
        sys.exit(f"demo: {error}")
    if SHIPPED.is_file():
        kind = (
            "one X-ray it was never trained on" if source.dataset == "kermany" else "a drawn image (it means nothing)"
        )
        print(f"The model that ships with this project, on {kind}:")
        run("cxr_predict", f"--model={os.path.relpath(SHIPPED)}", os.path.relpath(source.example))
    model = output_dir / "tiny_chexnet_m50_w50_int8.tflite"
    # After one epoch the model is no better than chance, which a run refuses unless it is forced.
    smoke = ("--epochs=1", "--recovery_epochs=1", "--sparsity_epochs=2", "--force") if _SMOKE.value else ()
    run(
        "cxr_compress",
        "--model=tiny_chexnet",
        f"--dataset={source.dataset}",
        f"--data_dir={os.path.relpath(source.folder)}",
        f"--output_dir={output_dir}",
        *smoke,
    )
    print("\nThe file just made, on one X-ray that it was not trained on:")
    run("cxr_predict", f"--model={model}", os.path.relpath(source.example))
    print()
    if not check_floors(output_dir, FLOORS[source.dataset]) and not _SMOKE.value:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)

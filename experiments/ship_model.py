r"""Put a file of a finished run into tflite_models/, with its model card, its hash and its line in the index.

Command:  python experiments/ship_model.py --run_dir=demo_run --model=tiny_chexnet_m50_w50_int8
              --name=tiny_chexnet_kermany_m50_w50_int8 --external=experiments/results/external_validation.json
Time:     seconds.
Result:   tflite_models/NAME.tflite, NAME.md and the hash in SHA256SUMS (to check: sha256sum -c SHA256SUMS, in there);
          with --weights=FILE.npz also the original model's weights as float16, for cxr_import_weights --from=npz; those
          of the shipped model are experiments/results/tiny_chexnet_kermany/weights_fp16.npz.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from absl import app, flags

from cxr_compress.device.modelfile import read_model
from cxr_compress.errors import CompressionError
from cxr_compress.files import make_folder, write_bytes, write_text
from cxr_compress.report import read_report
from cxr_compress.report.cards import render_delivered_card

SHELF = Path(__file__).resolve().parent.parent / "tflite_models"

_RUN_DIR = flags.DEFINE_string("run_dir", "demo_run", "Output folder of cxr_compress.")
_MODEL = flags.DEFINE_string("model", "tiny_chexnet_m50_w50_int8", "The file of the run, without its ending.")
_NAME = flags.DEFINE_string("name", "tiny_chexnet_kermany_m50_w50_int8", "What it is called on the shelf.")
_POPULATION = flags.DEFINE_string(
    "population",
    "children of 1 to 5 years, anterior-posterior images of one hospital in Guangzhou",
    "Whose images the data set holds.",
)
_SHELF = flags.DEFINE_string("shelf", str(SHELF), "Where it goes.")
_EXTERNAL = flags.DEFINE_string("external", None, "What external_validation.py measured of the file, if it was run.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Where the weights of the original model go.")


def ship(  # noqa: PLR0917 - what is shipped, from where, to where, and what is said of it
    run_dir: Path, model: str, name: str, shelf: Path, population: str, external: Path | None
) -> None:
    """Copy, describe and list one file.

    Raises:
        CompressionError: the run is not finished or the file not one of its own.
    """
    source = run_dir / f"{model}.tflite"
    report, file = read_report(run_dir / "report.json"), read_model(source)
    rows = json.loads(external.read_text(encoding="utf-8")) if external is not None else []
    own = [row for row in rows if row["sha256"] == file.sha256]
    card = render_delivered_card(report, file, file_name=f"{name}.tflite", population=population, external=own)
    shelf.mkdir(parents=True, exist_ok=True)
    write_bytes(shelf / f"{name}.tflite", source.read_bytes())
    write_text(shelf / f"{name}.md", card)
    files = sorted(shelf.glob("*.tflite"))
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    write_text(shelf / "SHA256SUMS", sums)


def keep_weights(base: Path, target: Path) -> None:
    """Write the weights of a Keras file, with what it says about itself."""
    from cxr_compress.models import load_model, read_about, save_npz_weights  # load Keras, slow and noisy

    make_folder(target.parent)
    save_npz_weights(load_model(base), target, about=read_about(base))


def main(_: list[str]) -> None:
    """Ship the file that the flags name."""
    try:
        external = Path(_EXTERNAL.value) if _EXTERNAL.value else None
        ship(Path(_RUN_DIR.value), _MODEL.value, _NAME.value, Path(_SHELF.value), _POPULATION.value, external)
        if _WEIGHTS.value:
            keep_weights(Path(_RUN_DIR.value) / "base.keras", Path(_WEIGHTS.value))
    except CompressionError as error:
        sys.exit(f"ship_model: {error}")
    print(f"shipped {_NAME.value}.tflite")


if __name__ == "__main__":
    app.run(main)

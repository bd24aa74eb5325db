r"""The unified run at several sizes, beside each of its parts alone and the baselines it must beat: one row a run.

Command:  cxr_import_weights --from=npz --input_file=experiments/results/chexnet_kermany/weights_fp16.npz \
              --input_size=112 --output_file=chexnet_kermany.keras
          python experiments/unified.py --keras_model_file=chexnet_kermany.keras --data_dir=kermany224 \
              --run_dir=unified_run          # the next row that is missing; again for the one after it
          python experiments/unified.py ... --rows=unified_1000kB,removal_1000kB
          python experiments/unified_table.py
          # Against the original model at the size that it is best at: import with --input_size=160, then
          python experiments/unified.py ... --rows=unified_1000kB --input_size=160 --training=patient \
              --run_dir=unified_run_160_patient
          python experiments/unified_table.py --results=experiments/results/unified_160_patient.json
Time:     20 to 60 minutes a row at 112 px on two cores, 13 rows. A row that is stopped goes on where it was, stage by
          stage; a finished one is kept.
Result:   experiments/results/unified[_SIZE][_TRAINING].json, by the flags: per row bytes, deflated bytes, MACs,
          parameters and time per image, all at 224 px, beside the original float file on the same runtime and thread;
          AUROC on the official test images and its paired difference to the original model; what the run took.
          `unified_table.py` turns it into a table and a plot.

Every row has the same number of training epochs. Test images are scored once per row, by its run; nothing is chosen on
them. Sizes and times are measured on the same network rebuilt for 224 px images, whatever it was trained at.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags
from unified_rows import (
    PRUNING,
    RANDOM,
    REMOVAL,
    ROWS,
    SCRATCH,
    SMOKE_ROWS,
    TRAININGS,
    UNIFIED,
    USUAL,
    RowPlan,
    recipe_of,
    smoke_recipe_of,
)

from cxr_compress.data import Dataset, decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.evaluate import Gate, measure_degradation, score_file
from cxr_compress.files import make_folder, write_bytes, write_text
from cxr_compress.lite import convert, pack_file
from cxr_compress.metrics import Interval
from cxr_compress.models import ModelAbout, tiny_chexnet
from cxr_compress.models.files import load_model, save_model
from cxr_compress.models.variants import at_size
from cxr_compress.pipeline import run_recipe
from cxr_compress.recipe import Recipe
from cxr_compress.structured import measure_cost

RESULTS = Path(__file__).parent / "results"
FORMAT = 1
SIZE = 224
# Ranges hardly change the size of a file or the time of a kernel: a few images do.
CALIBRATION_IMAGES = 16
MAX_LOSS, MARGIN = 0.005, 0.01

_SMOKE = flags.DEFINE_boolean(
    "smoke", False, "Two rows of a small random network on phantom images: checks the script."
)
_MODEL = flags.DEFINE_string("keras_model_file", None, "The trained model, logits out.")
_DATASET = flags.DEFINE_string("dataset", "kermany", "The images.")
_DATA = flags.DEFINE_string("data_dir", None, "Where they lie.")
_RUN = flags.DEFINE_string("run_dir", None, "Where the runs are kept, a folder each.")
_NAMES = flags.DEFINE_list("rows", None, f"Which rows: of {', '.join(ROWS)}; without it the next that is missing.")
_RESULTS = flags.DEFINE_string("results", None, "The JSON that rows go to; see Result.")
_INPUT = flags.DEFINE_integer("input_size", None, "Of the model and the images, pixels; by default the recipe's 112.")
_TRAINING = flags.DEFINE_enum(
    "training",
    USUAL,
    list(TRAININGS),
    "as_original: augment, decay and smooth as chexnet_kermany was trained; patient: so, with twice the epochs, "
    "following the original model alone.",
)
_THREADS = flags.DEFINE_integer("num_threads", 1, "Of the TFLite kernels, for the times.")


@dataclass(frozen=True)
class Bench:
    """What all rows share.

    Attributes:
        keras_model_file: the original model.
        dataset: its images.
        data_dir: where they lie.
        folder: of the runs.
        results: the JSON.
        size: height and width at which bytes and times count.
        runs: how often each file is timed.
    """

    keras_model_file: Path
    dataset: Dataset
    data_dir: Path
    folder: Path
    results: Path
    size: int
    runs: int

    def calibration(self, spec: PreprocessSpec) -> npt.NDArray[np.float32]:
        """A few training images at `size`."""
        train = self.dataset.train
        images = train.take(np.linspace(0, len(train) - 1, min(CALIBRATION_IMAGES, len(train)), dtype=int))
        spec = dataclasses.replace(spec, height=self.size, width=self.size)
        return normalize(decode_split(images, spec), spec)


def measure(bench: Bench, name: str, plan: RowPlan, recipe: Recipe, log: Callable[[str], None]) -> dict[str, Any]:
    """Run one row and measure it; JSON-ready."""
    folder = bench.folder / name
    report = run_recipe(
        recipe, data_dir=bench.data_dir, output_dir=folder, keras_model_file=bench.keras_model_file, log=log
    )
    original, compressed = report["rows"][0], report["rows"][-1]
    file = read_model(folder / compressed["file"])
    keep_logits(bench, folder, file)
    log(f"sizes and times at {bench.size} px")
    drop = Interval(**compressed["degradation"]["auroc_drop"])
    gate = Gate.of(drop, max_loss=MAX_LOSS, margin=MARGIN)
    return {
        "method": plan.method,
        "recipe": recipe.to_dict(),
        **at_full_size(bench, folder, file, read_model(folder / original["file"])),
        "delivered": {key: compressed[key] for key in ("tflite_bytes", "deflated_bytes", "weight_sparsity")},
        "auroc": compressed["evaluation"]["mean_auroc"],
        "original_auroc": original["evaluation"]["mean_auroc"],
        "difference": _change(drop),
        "gate": gate.to_dict(),
        **spent(folder),
    }


def at_full_size(bench: Bench, folder: Path, file: ModelFile, original: ModelFile) -> dict[str, Any]:
    """Bytes, MACs and times of a run's file and of the original float one, both for images of the full size."""
    pruned, whole = (at_size(load_model(source_of(folder, one)), bench.size, bench.size) for one in (file, original))
    lite = convert(pruned, file.info.quant_type, calibration=[bench.calibration(file.info.preprocess)])
    # Thresholds hold for images of the trained size only; here they count as the bytes that they are.
    spec = dataclasses.replace(file.info.preprocess, height=bench.size, width=bench.size)
    packed = pack_file(lite.content, dataclasses.replace(file.info, preprocess=spec, model_card=""))
    reference = convert(whole, "none").content
    times = measure_together({"original": reference, "row": lite.content}, runs=bench.runs, num_threads=_THREADS.value)
    cost, before = measure_cost(pruned), measure_cost(whole)
    return {
        "size": bench.size,
        "tflite_bytes": len(packed),
        "deflated_bytes": len(zlib.compress(packed, 9)),
        "macs": cost.macs,
        "macs_fraction": cost.macs_fraction(before),
        "params": cost.params,
        "speedup": times["original"].p50_ms / times["row"].p50_ms,
        "latency": {name: latency.to_dict() for name, latency in times.items()},
        "original": {
            "tflite_bytes": len(reference),
            "deflated_bytes": len(zlib.compress(reference, 9)),
            "macs": before.macs,
            "params": before.params,
        },
    }


def source_of(folder: Path, file: ModelFile) -> Path:
    """The Keras model that a file of a run was made from, by what the file says of itself.

    Raises:
        DataError: it is not there any more.
    """
    for name, sha256 in reversed(file.info.parents.items()):  # the original model stands first, the thinnest last
        path = folder / name
        if path.suffix == ".keras" and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
    raise DataError(f"expected the Keras model of {file.path.name} beside it, found none with its hash: run it again")


def keep_logits(bench: Bench, folder: Path, file: ModelFile) -> None:
    """What a file says of the test images, so that rows can be compared in pairs: the scoring of its run once more."""
    test = bench.dataset.test
    scored = score_file(
        file, decode_split(test, file.info.preprocess), test.labels, test.patients, bench.dataset.findings, samples=2
    )
    content = io.BytesIO()
    numbers = np.unique(np.asarray(scored.patients), return_inverse=True)[1]
    np.savez_compressed(content, logits=scored.logits, labels=scored.labels, patients=numbers)
    write_bytes(folder / "test_logits.npz", content.getvalue())


def spent(folder: Path) -> dict[str, float]:
    """Seconds of all stages, and the most memory that one of them took."""
    stages = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "manifests").glob("*.json")]
    return {
        "seconds": sum(stage["seconds"] for stage in stages),
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in stages),
    }


def compare(results: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Every unified row beside the parts alone at its deflated bytes, on the same resampled patients.

    Of each part that row is taken which needs the fewest deflated bytes, but no fewer than the unified one: the
    comparison leans towards the part. Where all of its rows are smaller, the largest is taken, and "smaller" says so.
    Random filters and training from scratch are compared with the row of their own budget.
    """
    rows: Mapping[str, Any] = results["rows"]
    here = {name for name in rows if (folder / name / "test_logits.npz").is_file()}
    found = []
    for name in sorted(one for one in here if rows[one]["method"] == UNIFIED):
        for method in (PRUNING, REMOVAL, RANDOM, SCRATCH):
            others = {one: rows[one] for one in here if rows[one]["method"] == method}
            if method in {RANDOM, SCRATCH}:
                others = {one: row for one, row in others.items() if _budget(row) == _budget(rows[name])}
            other = _at_bytes(others, rows[name])
            if other is not None:
                found.append({"row": name, "other": other, "method": method, **_difference(folder, name, other)})
                found[-1]["smaller"] = rows[other]["deflated_bytes"] < rows[name]["deflated_bytes"]
    return found


def _budget(row: Mapping[str, Any]) -> tuple[Any, Any]:
    budget = Recipe.from_dict(row["recipe"]).removal.budget  # rows of earlier versions have flat recipes
    return budget.tflite_bytes, budget.macs


def _at_bytes(rows: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """The row whose deflated bytes are nearest from above, else the largest."""
    sizes = {name: found["deflated_bytes"] for name, found in rows.items()}
    large = {name: size for name, size in sizes.items() if size >= row["deflated_bytes"]}
    if large:
        return min(large, key=lambda name: large[name])
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _difference(folder: Path, name: str, other: str) -> dict[str, float]:
    mine, theirs = (np.load(folder / row / "test_logits.npz", allow_pickle=False) for row in (name, other))
    if not np.array_equal(mine["labels"], theirs["labels"], equal_nan=True):
        raise DataError(f"the rows {name} and {other} were scored on different images: run both on one data set")
    drop = measure_degradation(mine["labels"], mine["logits"], theirs["logits"], mine["patients"]).auroc_drop
    return _change(drop)


def _change(drop: Interval) -> dict[str, float]:
    """A drop of AUROC as the change that tables show: below 0 where something was lost."""
    return {"value": -drop.value, "low": -drop.high, "high": -drop.low}


def read_results(path: Path) -> dict[str, Any]:
    """The rows so far.

    Raises:
        DataError: the file is something else.
    """
    if not path.is_file():
        return {"format": FORMAT, "rows": {}, "comparisons": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected the results of unified.py, could not read them: {error}") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise DataError(f"{path}: expected the results of unified.py in format {FORMAT}; move the file away")
    return results


def prepare(folder: Path) -> Bench:
    """Model and images, real or small."""
    results = Path(_RESULTS.value) if _RESULTS.value else _results_file(folder)
    if not _SMOKE.value:
        dataset = load_dataset(_DATASET.value, _DATA.value)
        return Bench(Path(_MODEL.value), dataset, Path(_DATA.value), folder, results, SIZE, 50)
    images = folder / "images"
    if not images.is_dir():
        write_phantom(images, n_train=64, n_test=24, size=48)
    dataset = load_dataset("phantom", images)
    model = tiny_chexnet(num_classes=len(dataset.findings), input_shape=(32, 32, 3))
    about = ModelAbout(dataset.findings, PreprocessSpec.preset("imagenet_torch", 32, 32), dataset=dataset.name)
    save_model(model, folder / "original.keras", about=about)
    return Bench(folder / "original.keras", dataset, images, folder, results, 64, 5)


def _results_file(folder: Path) -> Path:
    """Where rows go: a smoke run leaves nothing outside of its folder."""
    if _SMOKE.value:
        return folder / "unified.json"
    return RESULTS / results_name(_INPUT.value, _TRAINING.value)


def results_name(input_size: int | None, training: str) -> str:
    """A file for each size and way to train: the rows of one file differ in what they show alone."""
    size = f"_{input_size}" if input_size else ""
    return f"unified{size}.json" if training == USUAL else f"unified{size}_{training}.json"


def recipe_for(plan: RowPlan) -> Recipe:
    """The recipe of a row, by the flags."""
    if _SMOKE.value:
        return smoke_recipe_of(plan)
    return recipe_of(plan, _DATASET.value, _INPUT.value, _TRAINING.value)


def fill(bench: Bench, plans: Mapping[str, RowPlan], names: list[str]) -> None:
    """Measure rows and add each to the results at once."""
    for name in names:
        log = lambda line, name=name: print(f"{name}: {line}", file=sys.stderr, flush=True)  # noqa: E731
        row = measure(bench, name, plans[name], recipe_for(plans[name]), log)
        results = read_results(bench.results)
        results["dataset"] = {
            "name": bench.dataset.name,
            "synthetic": bench.dataset.synthetic,
            "attribution": bench.dataset.attribution,
            "test_images": len(bench.dataset.test),
        }
        results["rows"][name] = row
        results["comparisons"] = compare(results, bench.folder)
        write_text(bench.results, json.dumps(results, indent=1) + "\n")
        print(f"{name}: {row['tflite_bytes']:,} bytes, AUROC {row['auroc']['value']:.4f}, {row['speedup']:.1f}x faster")


def choose_rows(plans: Mapping[str, RowPlan], done: Mapping[str, Any]) -> list[str]:
    """The rows that the flags ask for, else the first that is missing; in a smoke run all.

    Raises:
        app.UsageError: an unknown row.
    """
    if _NAMES.value:
        unknown = [name for name in _NAMES.value if name not in plans]
        if unknown:
            raise app.UsageError(f"unknown rows: {', '.join(unknown)}; known are {', '.join(plans)}")
        return list(_NAMES.value)
    missing = [name for name in plans if name not in done]
    return missing if _SMOKE.value else missing[:1]


def run(folder: Path) -> None:
    """Fill the rows that are asked for."""
    plans = SMOKE_ROWS if _SMOKE.value else ROWS
    bench = prepare(make_folder(folder))
    names = choose_rows(plans, read_results(bench.results)["rows"])
    if len(names) > 1 and not _SMOKE.value:
        # A process each: what one leaves in memory would count in the next one's peak.
        kept = [argument for argument in sys.argv[1:] if not argument.startswith("--rows")]
        for name in names:
            subprocess.run([sys.executable, __file__, *kept, f"--rows={name}"], check=True)
    elif names:
        fill(bench, plans, names)
    else:
        print("all rows are there: name those to run again with --rows")


def main(_: list[str]) -> None:
    """Run with the flags; a smoke run leaves nothing behind unless it is told where."""
    with tempfile.TemporaryDirectory() as folder:
        if not _SMOKE.value and not (_MODEL.value and _DATA.value and _RUN.value):
            raise app.UsageError("give --keras_model_file, --data_dir and --run_dir, or --smoke")
        try:
            run(Path(_RUN.value or folder))
        except CompressionError as error:
            sys.exit(f"unified: {error}")


if __name__ == "__main__":
    app.run(main)

r"""The ladder of a model of 14 findings: what each rung of compression does to each finding, on two test sets.

Command:  python experiments/ladder.py --keras_model_file=lite0_nih14/model.keras --data_dir=nih14 \
              --run_dir=ladder_run --output=experiments/results/ladder_lite0.json
          (nih14 is what nih14.py wrote; parent.py says how the model is trained)
Time:     5 to 8 minutes a rung for EfficientNet-Lite0 at 128 px on two idle cores; every finished rung is kept: the
          same command goes on.
Result:   in --run_dir a run folder for each rung and what its file says of all test images; at the end, and with
          --table_only, a JSON with what compression did to each finding, a .csv of rungs (bytes, MACs, time, mean
          AUROC, verdicts), a .csv of findings beside it and a plot. Files are timed turn by turn in one run.

rungs:    int8 (the whole network), then 0.5, 0.25 and 0.12 of the MACs, each without and with half of the remaining
          weights zero (w50), all int8. The reference is the original as float32.
tests:    official (the images of NIH's own test list), held (patients drawn by seed, which no training saw), and both
          together. Dev chooses epochs, thresholds and offsets; test is scored once for each rung. A finding is "not
          inferior" where a loss of --margin or more is ruled out, "worse" where a loss is shown, else there are not
          enough images; adjusted by Holm for the findings.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from cxr_compress.data import Split, decode_split, load_dataset
from cxr_compress.data.readers.phantom import write_phantom
from cxr_compress.data.splits import join_splits
from cxr_compress.device import INTENDED_USE
from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import (
    NOT_INFERIOR,
    OWN,
    UNDECIDED,
    WORSE,
    Comparison,
    FindingChange,
    Predictions,
    compare_models,
    find_moved_images,
    find_onsets,
    predictions_csv,
    read_predictions,
    score_file,
)
from cxr_compress.files import make_folder, write_bytes, write_text
from cxr_compress.models import ModelAbout, read_about, save_model, tiny_chexnet
from cxr_compress.pipeline import run_recipe
from cxr_compress.recipe import make_recipe

_TRAINED: dict[str, Any] = {"recovery_epochs": 5, "weight_sparsity": 0.0, "finetune_epochs": 0}
_ZEROS: dict[str, Any] = {"recovery_epochs": 4, "weight_sparsity": 0.5, "sparsity_epochs": 2, "finetune_epochs": 1}
RUNGS: Mapping[str, Mapping[str, Any]] = {
    f"m{share * 100:.0f}{end}": {"target_macs": share, **changes}
    for share in (0.5, 0.25, 0.12)
    for end, changes in (("", _TRAINED), ("_w50", _ZEROS))
}
# As the rows of unified_rows.py; a smoothed average of the weights is what dev judges least by chance.
_SHARED: dict[str, Any] = {"scope": "local", "max_removed_fraction": 0.9, "ema_decay": 0.99, "quant_type": "int8"}
REFERENCE, INT8 = "original", "int8"
_RUNG_COLUMNS = (
    *("test", "rung", "bytes", "deflated", "macs", "time_over_int8", "auroc", "drop", "drop_low", "drop_high"),
    *("flips", NOT_INFERIOR, WORSE, UNDECIDED),
)
_FINDING_COLUMNS = (
    *("test", "rung", "finding", "positives", "auroc_before", "auroc", "drop", "drop_low", "drop_high"),
    *("verdict", "more_positives", "new_misses_per_1000", "note"),
)

_SMOKE = flags.DEFINE_boolean("smoke", False, "A small random network on phantom images: checks the script.")
_MODEL = flags.DEFINE_string("keras_model_file", None, "The parent.")
_DATA = flags.DEFINE_string("data_dir", None, "What nih14.py wrote.")
_RUN = flags.DEFINE_string("run_dir", None, "Where rungs are kept.")
_RUNGS = flags.DEFINE_list("rungs", list(RUNGS), "Rungs to make.")
_MARGIN = flags.DEFINE_float("margin", 0.02, "Loss of AUROC of a finding that is to be ruled out.")
_TABLE_ONLY = flags.DEFINE_boolean("table_only", False, "Make no rung; the tables of those that are there.")
_OUTPUT = flags.DEFINE_string("output", None, "The JSON; the tables and the plot lie beside it.")
_SAMPLES = flags.DEFINE_integer("bootstrap_samples", 1000, "Resampled sets of patients behind an interval.")


@dataclass(frozen=True)
class Bench:
    """What all rungs share.

    Attributes:
        model: the parent's file.
        dataset: which reader reads the tables.
        train: what is trained and chosen on.
        tests: by name, the test images of each set.
        changes: of every recipe.
        runs: how often each file is timed.
    """

    model: Path
    dataset: str
    train: Path
    tests: Mapping[str, Split]
    changes: Mapping[str, Any]
    runs: int

    @property
    def together(self) -> Split:
        """All test images, those of one set after those of the other."""
        return join_splits(list(self.tests.values()), "together")

    def places(self, name: str) -> slice:
        """Where the images of a set lie among all."""
        if name not in self.tests:
            return slice(None)
        names = list(self.tests)
        sizes = [len(self.tests[one]) for one in names[: names.index(name) + 1]]
        return slice(sum(sizes[:-1]), sum(sizes))


def make_rung(bench: Bench, name: str, folder: Path) -> None:
    """Run its recipe, and keep what its file says of the test images; with the first also the originals' answers."""
    recipe = make_recipe("efficientnet_lite0", {"dataset": bench.dataset, **_SHARED, **bench.changes, **RUNGS[name]})
    report = run_recipe(recipe, data_dir=bench.train, output_dir=folder, keras_model_file=bench.model, log=print)
    for kept, row in zip((REFERENCE, INT8, name), report["rows"], strict=True):
        place = folder.parent / kept
        if (place / "facts.json").is_file():
            continue
        make_folder(place)
        write_text(place / "predictions.csv", predictions_csv(score(bench, folder / row["file"])))
        keys = ("tflite_bytes", "deflated_bytes", "macs", "params", "weight_sparsity")
        facts = {"file": f"{folder.name}/{row['file']}", **{key: row[key] for key in keys}}
        write_text(place / "facts.json", json.dumps(facts, indent=1) + "\n")
        print(f"{kept} is there", flush=True)


def score(bench: Bench, path: Path) -> Any:
    """A file on all test images, by the device's own code."""
    file, test = read_model(path), bench.together
    images = decode_split(test, file.info.preprocess)
    return score_file(file, images, test.labels, test.patients, file.info.labels, samples=1)


def part_of(everything: Predictions, places: slice) -> Predictions:
    """The predictions of some of the images."""
    optional = None if everything.probabilities is None else everything.probabilities[places]
    return dataclasses.replace(
        everything,
        images=everything.images[places],
        patients=everything.patients[places],
        labels=everything.labels[places],
        logits=everything.logits[places],
        probabilities=optional,
        groups={},
    )


def compare_rungs(bench: Bench, rows: Path, rungs: Sequence[str]) -> dict[str, tuple[list[Comparison], Any]]:
    """By test set, every rung beside the original, and the images that move most."""
    read = {name: read_predictions(rows / name / "predictions.csv") for name in (REFERENCE, *rungs)}
    results = {}
    for test in (*bench.tests, *(("together",) if len(bench.tests) > 1 else ())):
        places = bench.places(test)
        scored = {name: part_of(one, places).score(samples=_SAMPLES.value, seed=0) for name, one in read.items()}
        images = read[REFERENCE].images[places]
        ladder = [compare_models(rung, scored[REFERENCE], scored[rung], images, margin=_MARGIN.value) for rung in rungs]
        moved = find_moved_images(scored[REFERENCE], [scored[rung] for rung in rungs], images, 100)
        results[test] = ladder, moved
    return results


def rung_rows(test: str, ladder: Sequence[Comparison], facts: Mapping[str, Any], times: Mapping[str, float]) -> Any:
    """The table of rungs: what each is, and what it did on the whole."""
    for one in ladder:
        drop = None if one.degradation is None else one.degradation.auroc_drop
        auroc = float(np.nanmean([change.after.auroc.value for change in one.findings]))
        verdicts = [change.judged.verdict for change in one.findings if change.judged is not None]
        flips = [change.decided[OWN].flips for change in one.findings if OWN in change.decided]
        row = {
            **{"test": test, "rung": one.name, "bytes": facts[one.name]["tflite_bytes"]},
            **{"deflated": facts[one.name]["deflated_bytes"], "macs": facts[one.name]["macs"]},
            **{"time_over_int8": f"{times[one.name] / times[INT8]:.3f}", "auroc": f"{auroc:.4f}"},
            "flips": f"{np.mean(flips) / len(one.images):.4f}" if flips else "",
            **{verdict: verdicts.count(verdict) for verdict in (NOT_INFERIOR, WORSE, UNDECIDED)},
        }
        if drop is not None:
            row |= {"drop": number(drop.value), "drop_low": number(drop.low), "drop_high": number(drop.high)}
        yield row


def finding_row(test: str, rung: str, change: FindingChange) -> dict[str, Any]:
    """One finding on one rung."""
    judged, own = change.judged, change.decided.get(OWN)
    more = None if judged is None else judged.more_positives
    return {
        **{"test": test, "rung": rung, "finding": change.finding, "positives": change.before.positives},
        **{"auroc_before": number(change.before.auroc.value), "auroc": number(change.after.auroc.value)},
        **{"drop": number(change.auroc_drop.value), "drop_low": number(change.auroc_drop.low)},
        **{"drop_high": number(change.auroc_drop.high), "verdict": "" if judged is None else judged.verdict},
        **{"more_positives": "" if more is None else more, "note": change.note},
        "new_misses_per_1000": "" if own is None else number(own.new_miss_rate.value),
    }


def number(value: float) -> str:
    """Four digits; nothing for what is not defined."""
    return "" if math.isnan(value) else f"{value:.4f}"


def as_csv(columns: Sequence[str], rows: Any) -> str:
    """The rows as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw(ladder: Sequence[Comparison]) -> bytes:
    """The loss of each finding on each rung, with its interval and the margin."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    findings = sorted(ladder[0].findings, key=lambda change: -change.before.positives)
    names = [change.finding for change in findings]
    size = (12, 0.42 * len(findings) + 1.6)
    figure, panels = plt.subplots(1, len(ladder), figsize=size, layout="constrained", sharey=True, squeeze=False)
    colors = {NOT_INFERIOR: "#1b7837", WORSE: "#b2182b", UNDECIDED: "#8a97a6"}
    for panel, one in zip(panels[0], ladder, strict=True):
        changes = {change.finding: change for change in one.findings}
        for place, name in enumerate(names):
            change = changes[name]
            color = colors[UNDECIDED if change.judged is None else change.judged.verdict]
            drop = change.auroc_drop
            panel.plot([-drop.low, -drop.high], [place, place], color=color, lw=1.5)
            panel.plot(-drop.value, place, "o", color=color, ms=4)
        panel.axvline(0, color="#444444", lw=0.8)
        panel.axvline(-_MARGIN.value, color="#444444", lw=0.8, ls=":")
        panel.set_title(one.name, fontsize=9)
        panel.tick_params(labelsize=7)
    panels[0][0].set_yticks(range(len(names)), [f"{one.finding} ({one.before.positives})" for one in findings])
    panels[0][0].invert_yaxis()
    figure.supxlabel("change of AUROC (95 % interval; dots: margin; green not inferior, red worse)", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, dpi=100, metadata={"Software": None})
    return content.getvalue()


def tabulate(bench: Bench, rows: Path, output: Path) -> None:
    """Write all results of the rungs that are there."""
    rungs = [name for name in (INT8, *RUNGS) if (rows / name / "facts.json").is_file()]
    if not rungs:
        raise CompressionError(f"{rows} has no rung yet: leave --table_only out")
    facts = {name: json.loads((rows / name / "facts.json").read_text()) for name in (REFERENCE, *rungs)}
    contents = {name: read_model(rows / facts[name]["file"]).content for name in facts}
    times = {name: one.p50_ms for name, one in measure_together(contents, runs=bench.runs).items()}
    results = compare_rungs(bench, rows, rungs)
    document = {
        "intended_use": INTENDED_USE,
        "margin": _MARGIN.value,
        "reference": facts[REFERENCE],
        "milliseconds": {name: round(value, 3) for name, value in times.items()},
        "tests": {
            test: {
                "onset": {onset.finding: onset.to_dict() for onset in find_onsets(ladder)},
                "moved_images": {
                    "findings_of_moved": moved.findings_of_moved,
                    "findings_of_rest": moved.findings_of_rest,
                },
            }
            for test, (ladder, moved) in results.items()
        },
    }
    write_text(output, json.dumps(document, indent=1) + "\n")
    table = [row for test, (ladder, _) in results.items() for row in rung_rows(test, ladder, facts, times)]
    write_text(output.with_suffix(".csv"), as_csv(_RUNG_COLUMNS, table))
    found = [
        finding_row(test, one.name, change)
        for test, (ladder, _) in results.items()
        for one in ladder
        for change in one.findings
    ]
    write_text(output.with_name(f"{output.stem}_findings.csv"), as_csv(_FINDING_COLUMNS, found))
    write_bytes(output.with_suffix(".png"), draw(list(results.values())[-1][0]))
    print(output.with_suffix(".csv").read_text(), end="")


def smoke(folder: Path) -> Bench:
    """A small random network on phantom images."""
    data = folder / "phantom"
    write_phantom(data, n_train=96, n_test=60, size=64)
    dataset = load_dataset("phantom", data)
    about = ModelAbout(dataset.findings, PreprocessSpec(32, 32))
    save_model(
        tiny_chexnet(num_classes=len(dataset.findings), input_shape=(32, 32, 3)), folder / "model.keras", about=about
    )
    few = dict.fromkeys(("reconstruction_images", "calibration_images", "recalibration_images"), 16)
    changes = {**few, "input_size": 32, "vary_images": False, "force": True, "bootstrap_samples": 50, "qat": "never"}
    return Bench(folder / "model.keras", "phantom", data, {"official": dataset.test}, changes, 2)


def main(_: list[str]) -> None:
    """Run with the flags; a smoke run leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        if _SMOKE.value:
            bench, rows = smoke(Path(folder)), Path(folder) / "rows"
            output = rows / "ladder.json"
        elif not (_MODEL.value and _DATA.value and _RUN.value and _OUTPUT.value):
            raise app.UsageError("give --keras_model_file, --data_dir, --run_dir and --output, or --smoke")
        else:
            tables = {name: Path(_DATA.value) / f"{name}.csv" for name in ("official", "held")}
            tests = {name: load_dataset("csv", table).test for name, table in tables.items()}
            about = read_about(Path(_MODEL.value))
            if about is None:
                raise CompressionError("the model does not say how its images are prepared: train it with cxr_train")
            changes = {"input_size": about.preprocess.height}
            bench = Bench(Path(_MODEL.value), "csv", tables["official"], tests, changes, 100)
            rows, output = Path(_RUN.value), Path(_OUTPUT.value)
        for name in () if _TABLE_ONLY.value else _RUNGS.value:
            if not (rows / name / "facts.json").is_file():
                make_rung(bench, name, rows / f"{name}_run")
        tabulate(bench, rows, output)


if __name__ == "__main__":
    app.run(main)

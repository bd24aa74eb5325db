"""Score a model on a labeled set: AUROC with its interval and the rest, per finding and per group of images.

    cxr_evaluate --model=model.tflite --dataset=kermany --data_dir=chest_xray
    cxr_evaluate --model=model.keras --dataset=nih --data_dir=nih --by=source,sex --output_file=eval.json

A .tflite file runs through the code that runs on the device, with its own preprocessing, calibration and thresholds; a
.keras or .h5 file runs in TensorFlow, with the preprocessing and findings that it was saved with. For a file that says
neither, --labels and --preset do; without --preset the dev images of the set show which one fits. Findings of model and
data set are matched by name. Intervals (95 %) resample patients. A finding with fewer than 20 images with or without it
is marked "not enough data". Images of unknown label are left out, finding by finding. Of classes that exclude one
another (a softmax) accuracy, balanced accuracy and confusion matrix come first, and AUROC is each class against the
others.

Choose everything on --split=dev and score --split=test once. Exit codes: 0 done, 2 wrong flag, data or model, 130
Ctrl-C.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, Say, UsageError, reader_options, run_command
from cxr_compress.cli.device_flags import define_delegate_flag
from cxr_compress.cli.open_model import MODEL_SUFFIXES, Dev, OpenedModel, open_keras, open_tflite
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results, write_text
from cxr_compress.cli.progress import show_progress
from cxr_compress.cli.recipe_flags import define_meaning_flags
from cxr_compress.cli.scored_set import (
    check_set_flags,
    define_set_flags,
    describe_set,
    installed_versions,
    load_set,
    say_what_to_know,
)
from cxr_compress.data import Dataset, decode_split
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.evaluate import (
    PREDICTIONS_START,
    Evaluation,
    Grouping,
    Match,
    flat_columns,
    flat_rows,
    match_findings,
    predictions_csv,
    render_evaluation,
    score_groups,
    score_model,
)
from cxr_compress.files import check_keras_file, write_bytes

NAME = "cxr_evaluate"
_CHANCE = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("model", None, "The .tflite, .keras or .h5 file.", flag_values=values)
    define_set_flags(values)
    help_text = "Size of the images in pixels, where a Keras model is to be scored at another than its own."
    number("input_size", None, help_text, lower_bound=1, flag_values=values)
    define_meaning_flags(values)
    text("output_file", None, "Write the results as JSON.", flag_values=values)
    help_text = "Write labels, logits and groups of every image as CSV: images by number, patients hashed, no names."
    text("predictions_file", None, help_text, flag_values=values)
    help_text = "Threads that compute; unless given one for a .tflite, as on the device, and all cores for the rest."
    number("num_threads", None, help_text, lower_bound=1, flag_values=values)
    define_delegate_flag(values)
    define_overwrite_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Load, score, write, print."""
    _check(values, arguments)
    path, started = Path(values.model), time.monotonic()
    with show_progress(NAME, hold_native=not values.debug) as progress:
        dataset, split, groups = load_set(values)
        opened = _open(path, values, dataset, progress.log)
        match = _match(values, dataset, opened.model.findings, opened.logits)
        say_what_to_know(progress.log, dataset, split, match)
        images = decode_split(
            split,
            opened.model.spec,
            workers=values.num_threads,
            progress=progress.counter(f"decoding {split.name}"),
            cache_dir=values.cache_dir,
        )
        scored = score_model(
            opened.model,
            images,
            split.labels[:, match.labels],
            split.patients,
            match.findings,
            columns=match.logits,
            samples=values.bootstrap_samples,
            seed=values.seed,
            progress=progress.counter("running the model", then="; resampling patients"),
        )
        _warn_of_chance(progress.log, scored)
        progress.log("dividing by " + ", ".join(groups) if groups else "scored")
        groupings = score_groups(scored, groups)
    document = {
        "model": opened.facts,
        "dataset": describe_set(values, dataset, split),
        "matching": {
            "by_position": match.by_position,
            "only_in_model": list(match.only_model),
            "only_in_dataset": list(match.only_dataset),
        },
        "evaluation": scored.to_dict(),
        "groups": {grouping.by: grouping.to_dict() for grouping in groupings},
        "versions": installed_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    if values.output_file:
        text = json.dumps({"intended_use": INTENDED_USE, **document}, indent=2, allow_nan=False) + "\n"
        write_bytes(values.output_file, text.encode())
    if values.predictions_file:
        write_bytes(values.predictions_file, predictions_csv(scored, groups).encode())
    _print(values.format, document, scored, groupings)
    return EXIT_OK


def _check(values: flags.FlagValues, arguments: list[str]) -> None:
    """Find what is wrong before the slow part starts."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    if not values.model:
        raise UsageError("expected --model, got none")
    check_set_flags(values)
    _check_model(values, Path(values.model))
    # Results that took an hour must not fail at the last step.
    outputs = [
        Output(name, Path(values[name].value), suffix, made_before)
        for name, suffix, made_before in (
            ("output_file", ".json", _results_before),
            ("predictions_file", ".csv", _predictions_before),
        )
        if values[name].value
    ]
    inputs = [values.model, values.data_dir, *reader_options(values.options).values()]
    check_outputs(NAME, outputs, inputs=inputs, overwrite=values.overwrite)


def _check_model(values: flags.FlagValues, path: Path) -> None:
    """The file, and the flags that are not for one of its kind."""
    if path.suffix.lower() not in MODEL_SUFFIXES:
        raise UsageError(f"expected --model as a file that ends in {', '.join(MODEL_SUFFIXES)}; got {values.model!r}")
    if not path.is_file():
        raise UsageError(f"expected --model to be a file, got {values.model!r}")
    if path.suffix.lower() != ".tflite":
        if values.delegate:
            raise UsageError(f"--delegate runs .tflite files, got {path.name}")
        check_keras_file(values.model)
    elif of_keras := [name for name in ("labels", "positive", "preset", "color") if values[name].present]:
        raise UsageError(f"a .tflite says itself what it means: leave --{of_keras[0]} out")


def _results_before(path: Path) -> str:
    """Of which model an earlier call wrote its results there; "" of any other file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return f"the results of {document['model']['file']}" if {"evaluation", "matching"} <= set(document) else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _predictions_before(path: Path) -> str:
    """Whether an earlier call wrote the outputs of every image there."""
    with path.open("rb") as file:
        return "the outputs of an earlier evaluation" if file.readline().startswith(PREDICTIONS_START) else ""


def _open(path: Path, values: flags.FlagValues, dataset: Dataset, log: Say) -> OpenedModel:
    """The model, by the kind of its file."""
    if path.suffix.lower() == ".tflite":
        options: dict[str, Any] = {"input_size": values.input_size, "delegate": values.delegate}
        return open_tflite(path, log, num_threads=values.num_threads or 1, **options)

    def dev(spec: PreprocessSpec) -> Dev:
        images = decode_split(dataset.dev, spec, workers=values.num_threads, cache_dir=values.cache_dir)
        return (
            images,
            dataset.dev.labels,
            dataset.dev.patients,
            lambda original: _match(values, dataset, original.names.findings, original.change.outputs),
        )

    return open_keras(path, values, dev, log)


def _match(values: flags.FlagValues, dataset: Dataset, findings: tuple[str, ...] | None, outputs: int) -> Match:
    """Which output of a model belongs to which finding of the set."""
    return match_findings(findings, dataset.findings, logits=outputs, by_position=values.match == "position")


def _warn_of_chance(log: Say, scored: Evaluation) -> None:
    """Name the findings that are ranked below chance by more than chance: something is the wrong way round."""
    for score in scored.scores:
        if score.enough_data and score.auroc.high < _CHANCE:
            log(
                f"warning: {score.finding} ranks below chance (AUROC {score.auroc.value:.3f} "
                f"[{score.auroc.low:.3f}, {score.auroc.high:.3f}]): most likely its outputs stand in another order "
                "(--labels), it is the other of two classes (--positive), or images were prepared in another way "
                "(--preset)"
            )


def _print(form: str, document: dict[str, Any], scored: Evaluation, groupings: Sequence[Grouping]) -> None:
    """Results on stdout."""
    if form != "table":
        write_results(form, document=document, headers=flat_columns(scored), rows=flat_rows(scored, groupings))
        return
    model, images = document["model"], document["dataset"]
    size = model["preprocess"]
    heading = (
        f"{model['file']} on {images['name']} {images['split']}: {images['images']:,} images of {images['patients']:,} "
        f"patients, {size['height']} x {size['width']} px, intervals from {scored.samples:,} resamplings of patients"
    )
    write_text(f"{heading}\n\n{render_evaluation(scored, groupings)}")

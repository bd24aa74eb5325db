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
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cxr_compress.cli.app import EXIT_OK, Say, UsageError, reader_options, run_command
from cxr_compress.cli.device_flags import define_delegate_flag
from cxr_compress.cli.open_model import MODEL_SUFFIXES, Dev, OpenedModel, open_keras, open_tflite
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results, write_text
from cxr_compress.cli.progress import show_progress
from cxr_compress.cli.recipe_flags import define_meaning_flags
from cxr_compress.data import DATASETS, Dataset, Split, decode_split, load_dataset
from cxr_compress.data.splits import join_splits
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import (
    GROUPINGS,
    PREDICTIONS_START,
    Evaluation,
    Grouping,
    Match,
    flat_columns,
    flat_rows,
    groups_of,
    match_findings,
    predictions_csv,
    render_evaluation,
    score_groups,
    score_model,
)
from cxr_compress.files import check_keras_file, write_bytes
from cxr_compress.metrics import count_comparable_images, count_images

NAME = "cxr_evaluate"
_SPLITS = ("test", "dev", "train", "all")
_AUTO = "auto"
_CHANCE = 0.5
_PACKAGES = ("cxr-compress", "numpy", "opencv-python-headless", "ai-edge-litert", "tensorflow", "tf_keras")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    text, number, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    text("model", None, "The .tflite, .keras or .h5 file.", flag_values=values)
    text("dataset", None, f"Kind of the data set: {', '.join(DATASETS)}.", flag_values=values)
    text("data_dir", None, "Where the data set lies; it is only read.", flag_values=values)
    choice("split", "test", _SPLITS, "Which images to score; all is train, dev and test.", flag_values=values)
    help_text = "Size of the images in pixels, where a Keras model is to be scored at another than its own."
    number("input_size", None, help_text, lower_bound=1, flag_values=values)
    define_meaning_flags(values)
    help_text = f"Report by {', '.join(GROUPINGS)}; {_AUTO}: by all that the set knows; empty: by none."
    flags.DEFINE_list("by", [_AUTO], help_text, flag_values=values)
    number(
        "bootstrap_samples", 1000, "Resampled sets of patients behind an interval.", lower_bound=1, flag_values=values
    )
    text("output_file", None, "Write the results as JSON.", flag_values=values)
    help_text = "Write labels and logits of every image as CSV: images by number, patients hashed, no names."
    text("predictions_file", None, help_text, flag_values=values)
    help_text = "Threads that compute; unless given one for a .tflite, as on the device, and all cores for the rest."
    number("num_threads", None, help_text, lower_bound=1, flag_values=values)
    define_delegate_flag(values)
    flags.DEFINE_list("options", [], "Options of the data set's reader, as name=value.", flag_values=values)
    flags.DEFINE_float("dev_fraction", 0.1, "Share of the training patients that is dev.", flag_values=values)
    number("seed", 0, "Seed of the choice of dev and of the resampling.", lower_bound=0, flag_values=values)
    help_text = "Go on with a part of the images that the set's own list names."
    flags.DEFINE_boolean("allow_missing", False, help_text, flag_values=values)
    text("cache_dir", None, "Keep decoded images here, for sets larger than the memory.", flag_values=values)
    define_overwrite_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Load, score, write, print."""
    _check(values, arguments)
    path, started = Path(values.model), time.monotonic()
    with show_progress(NAME, hold_native=not values.debug) as progress:
        dataset = load_dataset(
            values.dataset,
            values.data_dir,
            dev_fraction=values.dev_fraction,
            seed=values.seed,
            allow_missing=values.allow_missing,
            options=reader_options(values.options),
        )
        split = join_splits(dataset.splits, "all") if values.split == "all" else getattr(dataset, values.split)
        count_images(split.labels)  # refuses soft labels before anything slow
        groups = _groups(values.by, split, dataset.name)
        opened = _open(path, values, dataset, progress.log)
        match = _match(values, dataset, opened.model.findings, opened.logits)
        _say_what_to_know(progress.log, dataset, split, match)
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
        "dataset": _describe(values, dataset, split),
        "matching": {
            "by_position": match.by_position,
            "only_in_model": list(match.only_model),
            "only_in_dataset": list(match.only_dataset),
        },
        "evaluation": scored.to_dict(),
        "groups": {grouping.by: grouping.to_dict() for grouping in groupings},
        "versions": _versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    if values.output_file:
        text = json.dumps({"intended_use": INTENDED_USE, **document}, indent=2, allow_nan=False) + "\n"
        write_bytes(values.output_file, text.encode())
    if values.predictions_file:
        write_bytes(values.predictions_file, predictions_csv(scored).encode())
    _print(values.format, document, scored, groupings)
    return EXIT_OK


def _check(values: flags.FlagValues, arguments: list[str]) -> None:
    """Find what is wrong before the slow part starts."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    for name in ("model", "dataset", "data_dir"):
        if not values[name].value:
            raise UsageError(f"expected --{name}, got none")
    if values.dataset not in DATASETS:
        raise UsageError(f"expected a --dataset of {', '.join(DATASETS)}; got {values.dataset!r}")
    _check_model(values, Path(values.model))
    if not Path(values.data_dir).exists():
        raise UsageError(f"expected --data_dir to exist, got {values.data_dir!r}")
    unknown = sorted(set(values.by) - {_AUTO, *GROUPINGS})
    if unknown:
        raise UsageError(f"expected --by as some of {', '.join(GROUPINGS)}, or {_AUTO}; got {unknown[0]!r}")
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


def _groups(asked: Sequence[str], split: Split, dataset: str) -> dict[str, tuple[str, ...]]:
    """The ways to divide the images: those asked for, or all that divide them."""
    known = groups_of(split)
    if _AUTO in asked:
        # Groups that never hold an image with a finding beside one without it (subtypes of the disease, say) cannot be
        # scored, alone or within.
        return {
            by: names
            for by, names in known.items()
            if len(set(names)) > 1 and np.any(count_comparable_images(split.labels, names))
        }
    lacking = [by for by in asked if by not in known]
    if lacking:
        raise CompressionError(
            f"{dataset} does not say the {lacking[0]} of its {split.name} images (it says: "
            f"{', '.join(known) or 'nothing'}); correct --by"
        )
    return {by: known[by] for by in asked}


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


def _describe(values: flags.FlagValues, dataset: Dataset, split: Split) -> dict[str, Any]:
    """What the results say about the images."""
    return {
        "name": dataset.name,
        "split": split.name,
        "images": len(split),
        "patients": len(set(split.patients)),
        "patient_key": dataset.patient_key,
        "findings": list(dataset.findings),
        "attribution": dataset.attribution,
        "synthetic": dataset.synthetic,
        "notes": list(dataset.notes),
        "options": reader_options(values.options),
        "dev_fraction": values.dev_fraction,
        "seed": values.seed,
    }


def _say_what_to_know(log: Say, dataset: Dataset, split: Split, match: Match) -> None:
    """What a reader of the numbers has to know, before they come."""
    if split.name in ("train", "all"):
        log(f"note: --split={split.name} holds images that a model trained on {dataset.name} has seen")
    if match.by_position:
        log("note: findings are matched by position, not by name")
    for whose, names in (("the model", match.only_model), ("the data set", match.only_dataset)):
        if names:
            log(f"note: not scored, only {whose} has {', '.join(names)}")
    for note in dataset.notes:
        log(f"note: {note}")
    if dataset.synthetic:
        log("warning: drawn images; the numbers say nothing about patients")


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


def _versions() -> dict[str, str]:
    """What was installed."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


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

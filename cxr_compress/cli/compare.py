"""Compare compressed models with the one they came from, finding by finding and group by group, with a verdict on each.

    cxr_compare --reference=original.tflite --candidate=a.tflite --candidate=b.tflite --dataset=nih --data_dir=nih
    cxr_compare --predictions=original.csv --predictions=a.csv --html=page.html

Models answer to the same images through the code that runs on the device; or nothing is run and --predictions gives
what cxr_evaluate --predictions_file wrote, the reference first unless --reference names it. Candidates go from the
least compressed to the most: then it is seen where harm begins.

Each finding is "not inferior" (a loss of AUROC of --margin or more is ruled out), "worse" (a loss is shown), or there
are "not enough images", with how many more would probably tell; Holm adjusts for the number of findings, and in groups
for that of groups and findings. Intervals (95 %) resample patients and are paired. Without labels agreement alone is
compared. Set margin and limits before you look at test images, and look once.

Exit codes: 0 nothing is broken (it may be undecided: see --strict), 2 wrong flag, data or model, 3 a finding or a group
is worse or a limit is broken, 130 Ctrl-C.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cxr_compress.cli.app import EXIT_GATE, EXIT_OK, UsageError, reader_options, run_command
from cxr_compress.cli.device_flags import define_delegate_flag
from cxr_compress.cli.open_model import OpenedModel, open_tflite
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, page_by, write_results, write_text
from cxr_compress.cli.progress import Progress, show_progress
from cxr_compress.cli.scored_set import (
    check_set_flags,
    define_set_flags,
    describe_set,
    installed_versions,
    load_set,
    say_what_to_know,
)
from cxr_compress.data import Dataset, Split, decode_split
from cxr_compress.device.benchmark import measure_together
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.evaluate import (
    Evaluation,
    Limits,
    Match,
    MovedImages,
    Onset,
    check_limits,
    compare_groups,
    compare_models,
    find_moved_images,
    find_onsets,
    match_findings,
    read_groups,
    read_predictions,
    score_model,
    with_intersections,
)
from cxr_compress.evaluate.agreement import BROKEN, HOLDS
from cxr_compress.files import write_bytes
from cxr_compress.files import write_text as write_text_file
from cxr_compress.lite.graph.macs import count_macs
from cxr_compress.report.comparison import (
    COLUMNS,
    Compared,
    changed_rows,
    comparison_rows,
    render_compared,
    render_ladder,
)
from cxr_compress.report.page import GENERATOR, render_page

NAME = "cxr_compare"
SCHEMA_VERSION = 1
_LIMITS = {
    "max_auroc_drop": "Largest drop of the mean AUROC, as measured.",
    "max_new_miss_rate": "Most new misses of a finding per 1,000 images, at the candidate's own threshold.",
    "max_group_drop": "Largest drop of the AUROC of a finding in a group.",
    "max_ece": "Largest calibration error of a finding.",
}
_CSV_FILES = {
    "changed_images_file": "Write new misses and new false alarms as CSV, images by number.",
    "moved_images_file": "Write the images whose rank changes most as CSV, by number.",
}
_CSV_STARTS = {
    "changed_images_file": b"candidate,finding,what,image",
    "moved_images_file": b"image,mean_rank_change",
}
_AUTO = "auto"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    text, many = flags.DEFINE_string, flags.DEFINE_multi_string
    text("reference", None, "The .tflite before compression; with --predictions one of these.", flag_values=values)
    many("candidate", [], "A .tflite that came of it; give the flag again for more.", flag_values=values)
    many("predictions", [], "A CSV of cxr_evaluate in place of a model; give the flag again.", flag_values=values)
    define_set_flags(values)
    help_text = "CSV of more groups: a column image with the images' numbers, every other column divides them."
    text("groups_file", None, help_text, flag_values=values)
    help_text = "Cross every two ways to divide the images, too."
    flags.DEFINE_boolean("intersections", True, help_text, flag_values=values)
    help_text = "Loss of AUROC that is to be ruled out for each finding and group."
    flags.DEFINE_float("margin", 0.01, help_text, lower_bound=1e-6, upper_bound=1.0, flag_values=values)
    for name, help_text in _LIMITS.items():
        flags.DEFINE_float(name, None, help_text, lower_bound=0.0, flag_values=values)
    help_text = "End with code 3 also where the images are too few to tell."
    flags.DEFINE_boolean("strict", False, help_text, flag_values=values)
    text(
        "output_file",
        None,
        "Write the results as JSON (report/comparison.schema.json says what is in it).",
        flag_values=values,
    )
    text("html", None, "Write them as a page for people who decide; needs the extra `report`.", flag_values=values)
    for name, help_text in _CSV_FILES.items():
        text(name, None, help_text, flag_values=values)
    help_text = "How many images count as those whose rank changes most."
    flags.DEFINE_integer("moved_images", 100, help_text, lower_bound=1, flag_values=values)
    help_text = "Threads that run a model; one, as on the device, unless given."
    flags.DEFINE_integer("num_threads", 1, help_text, lower_bound=1, flag_values=values)
    help_text = "Time the models too, turn by turn, each so many times; 0 does not."
    flags.DEFINE_integer("timed_runs", 0, help_text, lower_bound=0, flag_values=values)
    define_delegate_flag(values)
    define_overwrite_flag(values)


@dataclass(frozen=True, eq=False)
class _Scored:
    """The reference and its candidates on the same images.

    Attributes:
        evaluations: name -> scores; the reference first.
        facts: what is known of each, JSON-ready, in that order.
        images: int64 (n,) the images' numbers.
        groups: grouping -> the group of each image.
        dataset: what the results say about the images.
    """

    evaluations: dict[str, Evaluation]
    facts: list[dict[str, Any]]
    images: np.ndarray[Any, np.dtype[np.int64]]
    groups: Mapping[str, Sequence[str]]
    dataset: dict[str, Any]


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Score or read, compare, write, print."""
    paths = _check(values, arguments)
    started = time.monotonic()
    with show_progress(NAME, hold_native=not values.debug) as progress:
        scored = _read(values, paths) if values.predictions else _score(values, paths, progress)
        (reference_name, reference), *candidates = scored.evaluations.items()
        groups = with_intersections(scored.groups) if values.intersections else scored.groups
        limits = Limits(**{name: values[name].value for name in _LIMITS})
        ladder = []
        for name, candidate in candidates:
            progress.log(f"comparing {name} with {reference_name}" + (", by " + ", ".join(groups) if groups else ""))
            comparison = compare_models(name, reference, candidate, scored.images, margin=values.margin)
            labeled = groups if comparison.labeled else {}
            divided = compare_groups(reference, candidate, labeled, margin=values.margin)
            ladder.append(Compared(comparison, divided, check_limits(comparison, divided, limits)))
    moved = find_moved_images(reference, [one for _, one in candidates], scored.images, values.moved_images)
    onsets = find_onsets([one.comparison for one in ladder]) if len(ladder) > 1 else []
    document = {
        "intended_use": INTENDED_USE,
        **_document(values, scored, ladder, onsets, moved),
        "versions": installed_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    if values.output_file:
        write_text_file(values.output_file, json.dumps(document, indent=2, allow_nan=False) + "\n")
    if values.html:
        write_text_file(values.html, render_page(document))
    for name, rows in (("changed_images_file", changed_rows(ladder)), ("moved_images_file", moved.rows())):
        if values[name].value:
            write_bytes(values[name].value, _as_csv(rows))
    if values.format == "table":
        parts = [_heading(scored, reference), *map(render_compared, ladder), render_ladder(onsets, moved)]
        write_text("\n\n".join(parts))
    else:
        rows = [row for one in ladder for row in comparison_rows(one)]
        write_results(values.format, document=document, headers=COLUMNS, rows=rows)
    verdicts = {one.outcome.verdict for one in ladder}
    return EXIT_GATE if BROKEN in verdicts or (values.strict and verdicts != {HOLDS}) else EXIT_OK


def _document(
    values: flags.FlagValues,
    scored: _Scored,
    ladder: Sequence[Compared],
    onsets: Sequence[Onset],
    moved: MovedImages,
) -> dict[str, Any]:
    """The results, JSON-ready."""
    reference = next(iter(scored.evaluations.values()))
    return {
        "schema_version": SCHEMA_VERSION,
        "reference": scored.facts[0],
        "dataset": scored.dataset,
        "margin": values.margin,
        "limits": {name: values[name].value for name in _LIMITS},
        "interval": f"95 %, paired, {reference.samples} resamplings of patients, seed {reference.seed}",
        "candidates": [
            {
                "model": facts,
                "outcome": one.outcome.to_dict(),
                "comparison": one.comparison.to_dict(),
                "groups": {grouping.by: grouping.to_dict() for grouping in one.groupings},
            }
            for facts, one in zip(scored.facts[1:], ladder, strict=True)
        ],
        "onset": {onset.finding: onset.to_dict() for onset in onsets},
        "moved_images": moved.to_dict(),
    }


def _heading(scored: _Scored, reference: Evaluation) -> str:
    images, facts = scored.dataset, scored.facts[0]
    where = f" on {images['name']} {images['split']}" if "split" in images else ""
    patients = len(set(reference.patients))
    return (
        f"reference {facts['file']}{where}: {len(scored.images):,} images of {patients:,} patients, intervals from "
        f"{reference.samples:,} resamplings of patients"
    )


def _as_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _check(values: flags.FlagValues, arguments: list[str]) -> list[Path]:
    """Find what is wrong before the slow part starts; the reference's file, then the candidates'."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    if values.predictions:
        paths = _prediction_paths(values)
    else:
        if not values.reference or not values.candidate:
            raise UsageError("expected --reference and --candidate, or --predictions twice or more")
        paths = [Path(values.reference), *map(Path, values.candidate)]
        check_set_flags(values)
    suffix = ".csv" if values.predictions else ".tflite"
    for path in paths:
        if path.suffix.lower() != suffix:
            advice = "" if values.predictions else "; write what others say with cxr_evaluate --predictions_file"
            raise UsageError(f"expected a file that ends in {suffix}, got {str(path)!r}{advice}")
        if not path.is_file():
            raise UsageError(f"expected {str(path)!r} to be a file")
    if twice := next((path for place, path in enumerate(paths) if path in paths[:place]), None):
        raise UsageError(f"{twice} is given twice: compare a model with others")
    outputs = [Output("output_file", Path(values.output_file), ".json", _results_before)] if values.output_file else []
    if values.html:
        # Their absence would else show after the models have run.
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401

        outputs.append(Output("html", Path(values.html), ".html", page_by(GENERATOR, "comparison")))
    outputs += [
        Output(name, Path(values[name].value), ".csv", _made_before(start))
        for name, start in _CSV_STARTS.items()
        if values[name].value
    ]
    inputs = [*paths, values.data_dir, values.groups_file, *reader_options(values.options).values()]
    check_outputs(NAME, outputs, inputs=inputs, overwrite=values.overwrite)
    return paths


def _prediction_paths(values: flags.FlagValues) -> list[Path]:
    """The files of --predictions, the reference first."""
    if values.candidate or values.dataset or values.data_dir:
        raise UsageError("--predictions says all of the images: leave --candidate, --dataset and --data_dir out")
    if values.timed_runs:
        raise UsageError(
            "--timed_runs times models, and with --predictions none is run: give --reference and --candidate"
        )
    paths = [Path(path) for path in values.predictions]
    if values.reference:
        first = Path(values.reference)
        if first not in paths:
            raise UsageError(f"expected --reference as one of --predictions, got {values.reference!r}")
        paths = [first, *(path for path in paths if path != first)]
    if len(paths) == 1:
        raise UsageError("expected --predictions twice or more: a reference and its candidates")
    return paths


def _results_before(path: Path) -> str:
    """Whether an earlier call wrote its results there."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return "an earlier comparison" if {"reference", "candidates", "margin"} <= set(document) else ""
    except (OSError, ValueError, TypeError):
        return ""


def _made_before(start: bytes) -> Any:
    """Whether an earlier call wrote a CSV there, by how it starts."""

    def made_before(path: Path) -> str:
        with path.open("rb") as file:
            return "the images of an earlier comparison" if file.readline().startswith(start) else ""

    return made_before


def _names(paths: Sequence[Path]) -> list[str]:
    """The files' names, with their folders where two are alike."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _read(values: flags.FlagValues, paths: Sequence[Path]) -> _Scored:
    """What the predictions files say."""
    first, *others = (read_predictions(path) for path in paths)
    every = [first, *(other.pair_with(first) for other in others)]
    known = dict(first.groups)
    if values.groups_file:
        known |= read_groups(Path(values.groups_file), first.images)
    evaluations = [one.score(samples=values.bootstrap_samples, seed=values.seed) for one in every]
    return _Scored(
        dict(zip(_names(paths), evaluations, strict=True)),
        [{"file": path.name} for path in paths],
        first.images,
        _chosen(values.by, known),
        {"name": "predictions", "images": len(first.images), "findings": list(first.findings)},
    )


def _chosen(asked: Sequence[str], known: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The ways to divide that are asked for, or all that divide."""
    if _AUTO in asked:
        return {by: names for by, names in known.items() if len(set(names)) > 1}
    if lacking := [by for by in asked if by not in known]:
        raise CompressionError(
            f"the predictions do not say the {lacking[0]} of their images (they say: {', '.join(known) or 'nothing'}); "
            "correct --by, or give --groups_file"
        )
    return {by: known[by] for by in asked}


def _score(values: flags.FlagValues, paths: Sequence[Path], progress: Progress) -> _Scored:
    """Run every model on the images."""
    dataset, split, groups = load_set(values)
    if values.groups_file:
        groups |= read_groups(Path(values.groups_file), range(len(split)))
    options: dict[str, Any] = {"input_size": None, "delegate": values.delegate, "num_threads": values.num_threads}
    opened = [open_tflite(path, progress.log, **options) for path in paths]
    labels, matches = _match(dataset, split, paths, opened)
    say_what_to_know(progress.log, dataset, split, matches[0])
    evaluations = []
    decoded: tuple[Any, Any] = (None, None)  # models of one preprocessing share the images
    for path, model, match in zip(paths, opened, matches, strict=True):
        if decoded[0] != model.model.spec:
            counter = progress.counter(f"decoding {split.name}")
            pixels = decode_split(split, model.model.spec, progress=counter, cache_dir=values.cache_dir)
            decoded = (model.model.spec, pixels)
        evaluations.append(
            score_model(
                model.model,
                decoded[1],
                labels,
                split.patients,
                match.findings,
                columns=match.logits,
                samples=values.bootstrap_samples,
                seed=values.seed,
                progress=progress.counter(f"running {path.name}", then="; resampling patients"),
            )
        )
    return _Scored(
        dict(zip(_names(paths), evaluations, strict=True)),
        _costs(values, paths, [model.facts for model in opened], progress),
        np.arange(len(split)),
        groups,
        describe_set(values, dataset, split),
    )


def _costs(
    values: flags.FlagValues, paths: Sequence[Path], facts: Sequence[dict[str, Any]], progress: Progress
) -> list[dict[str, Any]]:
    """The facts of each model, with what it computes and, where asked for, how long that takes here."""
    contents = {str(path): read_model(path).content for path in paths}
    facts = [{**one, "macs": count_macs(content)} for one, content in zip(facts, contents.values(), strict=True)]
    if not values.timed_runs:
        return facts
    latencies = measure_together(
        contents,
        runs=values.timed_runs,
        num_threads=values.num_threads,
        delegate=values.delegate,
        progress=progress.counter("timing the models", "turns"),
    )
    return [{**one, "latency": latency.to_dict()} for one, latency in zip(facts, latencies.values(), strict=True)]


def _match(
    dataset: Dataset, split: Split, paths: Sequence[Path], opened: Sequence[OpenedModel]
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], list[Match]]:
    """The labels, and which logit of each model belongs to which of their columns."""
    findings = dataset.findings or opened[0].model.findings or ()  # those of the reference, where nothing is known
    matches = [match_findings(one.model.findings, findings, logits=one.logits) for one in opened]
    for path, match in zip(paths, matches, strict=True):
        if set(match.findings) != set(matches[0].findings):
            differ = sorted(set(match.findings) ^ set(matches[0].findings))
            raise DataError(
                f"{path.name} and {paths[0].name} have different findings of this set ({', '.join(differ)} in one "
                "alone): compare models of the same findings"
            )
    columns = list(matches[0].labels)
    unknown = np.full((len(split), len(findings)), np.nan, np.float32)
    return (split.labels if dataset.findings else unknown)[:, columns], matches

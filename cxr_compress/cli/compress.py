"""Compress a chest X-ray model into a small .tflite and say what that did to every finding.

    cxr_compress --model=tiny_chexnet --dataset=kermany --data_dir=chest_xray --output_dir=run
    cxr_compress --keras_model_file=base.keras --dataset=nih --data_dir=nih --output_dir=run
    cxr_compress --keras_model_file=base.keras ... --search --max_auroc_drop=0.005
    cxr_compress --keras_model_file=base.keras --dataset=images --data_dir=images --recovery_epochs=0 --output_dir=run

Trains the model (or loads yours), removes filters down to the budget, refits what is left without labels, fine-tunes,
zeroes weights, quantizes, converts, and scores the original float file, its int8 twin and the compressed file once on
the test split, through the code that runs on the device. Budgets on MACs, parameters, bytes and milliseconds may be
combined: all hold. --search looks for the smallest model that keeps --max_auroc_drop, or for the best one within
--target_bytes or --target_latency_ms, judging on dev images alone. Every stage leaves its artifact in the output
folder; the same command again goes on where it was stopped. A model from a file needs no labels (--dataset=images):
everything follows it, and agreement with it is reported in place of AUROC. Exit codes: 0 done, 2 wrong flag, data or
model, 3 done but worse than --max_auroc_drop (without labels --max_flips, --max_logit_distance) allows, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.app import EXIT_GATE, EXIT_OK, UsageError, run_command
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag
from cxr_compress.cli.progress import Progress, show_progress
from cxr_compress.cli.recipe_flags import common_flags, define_recipe_flags, make_recipe_of
from cxr_compress.device.probe_pack import read_pack
from cxr_compress.errors import CompressionError
from cxr_compress.files import check_keras_file, check_writable
from cxr_compress.recipe import Recipe, is_labeled

if TYPE_CHECKING:
    from cxr_compress.pipeline import SearchSpec

NAME = "cxr_compress"
SEARCHED = "search.json"
_GO_ON = "finished epochs and stages are kept; the same command goes on from there"

_FILES = {
    "keras_model_file": "Original model of yours to start from: .keras, .h5 or a SavedModel folder.",
    "data_dir": "Folder of the data set; it is only read.",
    "output_dir": "Folder of the run: models, reports, and what it needs to go on.",
    "recipe": "Recipe file to start from, as the recipe.json of a run; other flags change it.",
    "latency_table": "Layer times that cxr_benchmark --layers measured on a device; without it they are measured here.",
    "probe_pack": "ZIP to write, with which a device makes --latency_table; the command then stops.",
}
_SWITCHES = {
    "dry_run": "Make the plan, say what it will give and take, and stop; nothing is written.",
    "search": "Search for the smallest model that keeps --max_auroc_drop, or the best one of --target_bytes.",
}
_AFTER_PROBES = (
    "wrote {pack}: on the device run  cxr_benchmark --layers={name} --output_file=table.json  and give this command "
    "--latency_table=table.json instead of --probe_pack"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, define_flags, _run, argv, common=_common)


def _common() -> dict[str, list[str]]:
    """The flags that most people need: the command's own, and those of each section that are marked so."""
    marked = common_flags()
    start = [*marked.pop("model"), "keras_model_file", *marked.pop("data"), "data_dir", "output_dir"]
    return {"from what, to where": start, **marked, "what to do": ["recipe", "search", "dry_run"]}


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the recipe, which have no default here (the recipe has), and the command's own."""
    define_recipe_flags(values)
    for name, text in _FILES.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, text in _SWITCHES.items():
        flags.DEFINE_boolean(name, False, text, flag_values=values)
    text = "Shares of the MACs that --search tries; by default seven from 0.5."
    flags.DEFINE_list("search_macs", None, text, flag_values=values)
    text = "Epochs of each training while --search tries budgets."
    flags.DEFINE_integer("search_epochs", 1, text, flag_values=values)
    text = "Number of candidates that --search recovers in full."
    flags.DEFINE_integer("search_finalists", 3, text, flag_values=values)
    define_overwrite_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Check the flags before anything slow is imported, then run."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    recipe = make_recipe_of(values)
    _check_files(values, recipe)
    with show_progress(NAME, hold_native=not values.debug) as progress:
        try:
            return _start(values, recipe, progress)
        except KeyboardInterrupt as error:  # or one of its kind, which stays what it is
            error.args = (_GO_ON,)
            raise


def _check_files(values: flags.FlagValues, recipe: Recipe) -> None:
    for name in ("data_dir", "output_dir"):
        if not values[name].value:
            raise UsageError(f"expected --{name}=FOLDER, got none")
    if not Path(values.data_dir).exists():
        raise UsageError(f"expected --data_dir to exist, got {values.data_dir!r}")
    _check_labels(values, recipe)
    if values.keras_model_file and not Path(values.keras_model_file).exists():
        raise UsageError(f"expected --keras_model_file to be a model file, got {values.keras_model_file!r}")
    if values.keras_model_file and not Path(values.keras_model_file).is_dir():
        check_keras_file(values.keras_model_file)
    if values.latency_table and not Path(values.latency_table).is_file():
        raise UsageError(f"expected --latency_table to be a file, got {values.latency_table!r}")
    _check_outputs(values)
    if values.search and values.dry_run:
        raise UsageError("--dry_run forecasts one run, not a search: leave one of the two out")
    budget = recipe.removal.budget
    if values.search and isinstance(budget.tflite_bytes, float):
        raise UsageError("--search wants --target_bytes as a number of bytes such as 1MB, got a fraction")
    if values.latency_table and budget.latency_ms is None:
        raise UsageError("--latency_table is for a bound on latency: give --target_latency_ms too")


def _check_labels(values: flags.FlagValues, recipe: Recipe) -> None:
    dataset = recipe.data.dataset
    if is_labeled(recipe):
        return
    if not values.keras_model_file:
        raise UsageError(
            f"expected --keras_model_file with --dataset={dataset}: without labels no model can be trained, only one "
            "that has learnt already be compressed"
        )
    if values.search:
        raise UsageError(
            f"--search judges by AUROC, for which --dataset={dataset} has no labels: give a budget such as "
            "--target_macs=0.25"
        )


def _check_outputs(values: flags.FlagValues) -> None:
    """What hours of work are to be written to; a dry run needs nothing of the kind."""
    if not values.dry_run:
        check_writable(values.output_dir, to_be_made=True)
    if not values.probe_pack:
        return
    if values.dry_run or values.search:
        raise UsageError("--probe_pack writes a file and stops: leave --dry_run and --search out")
    output = Output("probe_pack", Path(values.probe_pack), ".zip", _pack_before)
    check_outputs(NAME, [output], inputs=[values.keras_model_file, values.data_dir], overwrite=values.overwrite)


def _pack_before(path: Path) -> str:
    """Whether a probe pack stands there, which only this command writes."""
    try:
        read_pack(path)
    except CompressionError:
        return ""
    return "an earlier probe pack"


def _start(values: flags.FlagValues, recipe: Recipe, progress: Progress) -> int:
    """Do what the flags ask for: probes for a device, a forecast, or the run."""
    # Here and not above: TensorFlow takes seconds to load, and a wrong flag or --help should not wait for it.
    from cxr_compress.evaluate.agreement import BROKEN
    from cxr_compress.pipeline import forecast_run, read_latency_table, run_recipe, search_recipe, write_probe_pack

    recipe = _at_model_size(values, recipe)
    shared: dict[str, Any] = {
        "data_dir": Path(values.data_dir),
        "output_dir": Path(values.output_dir),
        "keras_model_file": Path(values.keras_model_file) if values.keras_model_file else None,
        "log": progress.log,
        "decoding": progress.decoding,
        "overwrite": values.overwrite,
    }
    if values.probe_pack:
        pack = Path(values.probe_pack)
        write_probe_pack(recipe, pack, **shared)
        progress.log(_AFTER_PROBES.format(pack=pack, name=pack.name))
        return EXIT_OK
    shared["latency_table"] = read_latency_table(values.latency_table) if values.latency_table else None
    if values.dry_run:
        progress.log(f"dry run: nothing is written to {values.output_dir}")
        _print_forecast(values.format, forecast_run(recipe, **shared).to_dict())
        return EXIT_OK
    if values.search:
        found = search_recipe(recipe, _search_spec(values, recipe), **shared)
        progress.log(f"found {found.name}; {SEARCHED} holds every point that was tried")
        report = found.report
    else:
        report = run_recipe(recipe, **shared)
    _print(values.format, report)
    gate = report["facts"]["gate"]
    if gate.get("verdict") == BROKEN and not recipe.run.force:
        return EXIT_GATE
    if gate["reason"] and not recipe.run.force:
        progress.log(f"nothing was shown: {gate['reason']}; --force accepts that")
        return EXIT_GATE
    return EXIT_GATE if values.max_auroc_drop is not None and not gate["holds"] else EXIT_OK


def _at_model_size(values: flags.FlagValues, recipe: Recipe) -> Recipe:
    """The recipe at the size of the model to start from, which a flag or a recipe file may only say again."""
    from cxr_compress.pipeline import image_size

    size = image_size(Path(values.keras_model_file)) if values.keras_model_file else None
    if size is None:
        return recipe
    told = "--input_size" if values.input_size is not None else "the input_size of --recipe"
    given = recipe.model.input_size
    if (values.input_size is not None or values.recipe) and given != size:
        raise UsageError(
            f"{told} is {given}, {Path(values.keras_model_file).name} takes images of {size} x {size}: "
            f"leave --input_size out, or give --input_size={size} beside --recipe"
        )
    return recipe.with_values(input_size=size)


def _search_spec(values: flags.FlagValues, recipe: Recipe) -> SearchSpec:
    """The smallest model that keeps a tolerance, where one is given; else the best one of a size."""
    from cxr_compress.pipeline import SearchSpec

    budget = recipe.removal.budget
    sized = budget.tflite_bytes is not None or budget.latency_ms is not None
    return SearchSpec(
        goal="smallest" if values.max_auroc_drop is not None or not sized else "best_auroc",
        macs=tuple(map(_share, values.search_macs)) if values.search_macs else None,
        max_auroc_drop=recipe.gate.max_auroc_drop,
        margin=recipe.gate.margin,
        max_bytes=None if budget.tflite_bytes is None else int(budget.tflite_bytes),
        max_latency_ms=budget.latency_ms,
        cheap_epochs=values.search_epochs,
        finalists=values.search_finalists,
    )


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"expected --search_macs as shares such as 0.5,0.25; got {text!r}") from None


def _print(form: str, report: dict[str, Any]) -> None:
    """The report as asked for: the table, or the whole JSON."""
    from cxr_compress.report import render_report

    if form == "json":
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(render_report(report) + "\n")


def _print_forecast(form: str, forecast: dict[str, Any]) -> None:
    from cxr_compress.report import render_forecast

    sys.stdout.write((json.dumps(forecast, indent=2) if form == "json" else render_forecast(forecast)) + "\n")

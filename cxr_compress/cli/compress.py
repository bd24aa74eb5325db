"""Compress a chest X-ray model into a small .tflite and say what that did to every finding.

    cxr_compress --model=tiny_chexnet --dataset=kermany --data_dir=chest_xray --output_dir=run
    cxr_compress --keras_model_file=base.keras --dataset=nih --data_dir=nih --output_dir=run
    cxr_compress --keras_model_file=base.keras ... --search --max_auroc_drop=0.005

Trains the model (or loads yours), removes filters down to the budget, refits what is left without labels, fine-tunes,
zeroes weights, quantizes, converts, and scores the original float file, its int8 twin and the compressed file once on
the test split, through the code that runs on the device. Budgets on MACs, parameters, bytes and milliseconds may be
combined: all hold. --search looks for the smallest model that keeps --max_auroc_drop, or for the best one within
--target_bytes or --target_latency_ms, judging on dev images alone. Every stage leaves its artifact in the output
folder; the same command again goes on where it was stopped. Exit codes: 0 done, 2 wrong flag, data or model, 3 done but
worse than --max_auroc_drop allows, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.app import EXIT_GATE, EXIT_OK, UsageError, run_command
from cxr_compress.cli.compress_flags import define_flags, make_recipe_of
from cxr_compress.cli.output import Output, check_outputs
from cxr_compress.cli.progress import Progress, show_progress
from cxr_compress.device.probe_pack import read_pack
from cxr_compress.errors import CompressionError
from cxr_compress.files import check_keras_file, check_writable
from cxr_compress.recipe import Recipe

if TYPE_CHECKING:
    from cxr_compress.pipeline import SearchSpec

NAME = "cxr_compress"
SEARCHED = "search.json"
_GO_ON = "finished epochs and stages are kept; the same command goes on from there"

_AFTER_PROBES = (
    "wrote {pack}: on the device run  cxr_benchmark --layers={name} --output_file=table.json  and give this command "
    "--latency_table=table.json instead of --probe_pack"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, define_flags, _run, argv)


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
    if values.keras_model_file and not Path(values.keras_model_file).exists():
        raise UsageError(f"expected --keras_model_file to be a model file, got {values.keras_model_file!r}")
    if values.keras_model_file and not Path(values.keras_model_file).is_dir():
        check_keras_file(values.keras_model_file)
    if values.latency_table and not Path(values.latency_table).is_file():
        raise UsageError(f"expected --latency_table to be a file, got {values.latency_table!r}")
    _check_outputs(values)
    if values.search and values.dry_run:
        raise UsageError("--dry_run forecasts one run, not a search: leave one of the two out")
    if values.search and isinstance(recipe.target_bytes, float):
        raise UsageError("--search wants --target_bytes as a number of bytes such as 1MB, got a fraction")
    if values.latency_table and recipe.target_latency_ms is None:
        raise UsageError("--latency_table is for a bound on latency: give --target_latency_ms too")


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
    if gate["reason"] and not recipe.force:
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
    if (values.input_size is not None or values.recipe) and recipe.input_size != size:
        raise UsageError(
            f"{told} is {recipe.input_size}, {Path(values.keras_model_file).name} takes images of {size} x {size}: "
            f"leave --input_size out, or give --input_size={size} beside --recipe"
        )
    return replace(recipe, input_size=size)


def _search_spec(values: flags.FlagValues, recipe: Recipe) -> SearchSpec:
    """The smallest model that keeps a tolerance, where one is given; else the best one of a size."""
    from cxr_compress.pipeline import SearchSpec

    sized = recipe.target_bytes is not None or recipe.target_latency_ms is not None
    return SearchSpec(
        goal="smallest" if values.max_auroc_drop is not None or not sized else "best_auroc",
        macs=tuple(map(_share, values.search_macs)) if values.search_macs else None,
        max_auroc_drop=recipe.max_auroc_drop,
        margin=recipe.margin,
        max_bytes=None if recipe.target_bytes is None else int(recipe.target_bytes),
        max_latency_ms=recipe.target_latency_ms,
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

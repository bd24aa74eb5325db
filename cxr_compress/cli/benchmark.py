"""Time .tflite models on this machine: the model alone, and from a PNG in memory to findings.

    cxr_benchmark --model=model.tflite
    cxr_benchmark --model=original.tflite,compressed.tflite --runs=100
    cxr_benchmark --layers=pack.zip --output_file=table.json

Several models are run turn by turn, so their ratios (to the first one) are fair even on a busy machine; the absolute
numbers hold for this machine only. The peak memory is that of this process with all the models loaded.

--layers times single layers at several widths, from a probe pack that was made where the model is trained, and writes a
table with which a model can be pruned to a latency on this machine. With one thread it takes the processor's time,
which other programs do not add to.

Exit code 2: wrong flag, model or probe pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError, print_error, run_command
from cxr_compress.cli.device_flags import (
    check_model_list,
    define_model_list_flag,
    define_runtime_flags,
    runtime_options,
)
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results
from cxr_compress.cli.progress import show_progress
from cxr_compress.device.benchmark import (
    Latency,
    describe_machine,
    measure_end_to_end,
    measure_together,
    peak_memory_bytes,
)
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.layer_times import LayerReport, time_layers
from cxr_compress.device.modelfile import INTENDED_USE, ModelFile, read_model
from cxr_compress.errors import CompressionError
from cxr_compress.files import write_text

NAME = "cxr_benchmark"
_COLUMNS = (
    "model",
    "quant_type",
    "file_bytes",
    "model_p50_ms",
    "model_p95_ms",
    "ratio",
    "end_to_end_p50_ms",
    "end_to_end_p95_ms",
)
_LAYER_COLUMNS = ("kind", "fixed_us", "per_input_us", "per_output_us", "per_pair_us", "largest_residual")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    define_model_list_flag(values)
    flags.DEFINE_integer("runs", 50, "Timed runs of each model.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("warmup", 5, "Untimed runs of each model before those.", lower_bound=0, flag_values=values)
    text = "Height and width in pixels of the PNG that is drawn to be decoded."
    flags.DEFINE_integer("image_size", 1024, text, lower_bound=8, upper_bound=8192, flag_values=values)
    flags.DEFINE_string(
        "layers", None, "Probe pack (.zip) whose layers are timed in place of models.", flag_values=values
    )
    flags.DEFINE_string("output_file", None, "Where --layers writes its table (.json).", flag_values=values)
    define_runtime_flags(values)
    define_overwrite_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Time every model, or the layers of one."""
    if values.layers:
        return _run_layers(values, arguments)
    check_model_list(values, arguments, "time")
    if values.output_file:
        raise UsageError("expected --output_file with --layers only; results of --model go to stdout")
    # Numbers as names, so that one file may be given twice, which shows how far ratios can be trusted.
    models = {str(number): read_model(path) for number, path in enumerate(values.model)}
    options = {"runs": values.runs, "warmup": values.warmup, **runtime_options(values)}
    contents = {name: model.content for name, model in models.items()}
    with show_progress(NAME) as progress:
        alone = measure_together(contents, progress=progress.counter("timing the model", "turns"), **options)
        count = progress.counter("timing from PNG to findings", "turns")
        whole = measure_end_to_end(models, image_size=values.image_size, progress=count, **options)
    entries = [_entry(models[name], alone[name], whole[name], alone["0"]) for name in models]
    _print(values.format, entries, options, alone["0"].runtime, values.image_size)
    return EXIT_OK


def _entry(model: ModelFile, alone: Latency, whole: Latency, first: Latency) -> dict[str, Any]:
    """Give what is reported of one model."""
    return {
        "model": str(model.path),
        "quant_type": model.info.quant_type,
        "file_bytes": model.file_bytes,
        "model_p50_ms": round(alone.p50_ms, 3),
        "model_p95_ms": round(alone.p95_ms, 3),
        "ratio": round(alone.p50_ms / first.p50_ms, 3),
        "end_to_end_p50_ms": round(whole.p50_ms, 3),
        "end_to_end_p95_ms": round(whole.p95_ms, 3),
        "sha256": model.sha256,
    }


def _print(form: str, entries: list[dict[str, Any]], options: dict[str, Any], runtime: str, image_size: int) -> None:
    """Print the report; what the numbers hold for is part of it."""
    peak = peak_memory_bytes()
    document = {
        "machine": describe_machine(),
        "note": "these numbers are for this machine, not for a Raspberry Pi unless it is one",
        **options,
        "runtime": runtime,
        "image_size": image_size,
        "peak_memory_bytes": peak,
        "models": entries,
    }
    rows = [[entry[column] for column in _COLUMNS] for entry in entries]
    write_results(form, document=document, headers=_COLUMNS, rows=rows, intended_use=INTENDED_USE)
    if form == "json":
        return
    memory = "unknown" if peak is None else f"{peak / 2**20:.0f} MiB"
    print_error(NAME, f"{document['machine']}; {runtime}, {options['num_threads']} thread(s); peak memory {memory}")
    print_error(NAME, f"{document['note']}; ratio is to the first model; PNG of {image_size} x {image_size} pixels")


def _run_layers(values: flags.FlagValues, arguments: list[str]) -> int:
    """Time the layers of a probe pack and write the table."""
    if values.model or arguments:
        raise UsageError("expected --layers alone, got models too; time them in a call of their own")
    if values.delegate:
        raise UsageError("--delegate is for --model: a probe pack holds layers as the processor runs them")
    if not values.output_file:
        raise UsageError("expected --output_file=TABLE.json beside --layers: where the table goes")
    # Told now, not after minutes of timing.
    output = Output("output_file", Path(values.output_file), ".json", _table_before)
    check_outputs(NAME, [output], inputs=[values.layers], overwrite=values.overwrite)
    options = {"runs": values.runs, "warmup": values.warmup, **runtime_options(values)}
    del options["delegate"]
    with show_progress(NAME) as progress:
        report = time_layers(values.layers, progress=progress.log, **options)
    write_text(values.output_file, report.table.to_json())
    _print_layers(values, report, options)
    return EXIT_OK


def _table_before(path: Path) -> str:
    """Where an earlier call measured its table; "" of a file that is no such table."""
    try:
        times = CostTable.from_json(path.read_text(encoding="utf-8", errors="replace")).layer_times
    except CompressionError:
        return ""
    return "" if times is None else f"the table of {times.machine}"


def _print_layers(values: flags.FlagValues, report: LayerReport, options: dict[str, Any]) -> None:
    """Print where the model's time goes and how well the widths are explained."""
    times = report.times
    entries = [
        dict(zip(_LAYER_COLUMNS, (kind, *(term * 1e3 for term in terms), report.residuals[kind]), strict=True))
        for kind, terms in times.kinds.items()
    ]
    shares = {
        "model_ms": report.model_ms,
        "kernels_ms": report.kernels_ms,
        "moves_ms": report.moves_ms,
        "fixed_ms": times.fixed,
        "scale": report.scale,
    }
    document = {
        "machine": times.machine,
        "output_file": values.output_file,
        "quant_type": times.quant_type,
        **options,
        "runtime": times.runtime,
        "output_block": times.output_block,
        **shares,
        "kinds": entries,
    }
    rows = [[entry[column] for column in _LAYER_COLUMNS] for entry in entries]
    write_results(values.format, document=document, headers=_LAYER_COLUMNS, rows=rows, intended_use=INTENDED_USE)
    if values.format != "json":
        summary = ", ".join(f"{name} {value:.4g}" for name, value in shares.items())
        print_error(NAME, f"{times.machine}; {times.runtime}, {times.num_threads} thread(s); {summary}")
        print_error(NAME, f"wrote {values.output_file}; it holds for this machine, runtime and number of threads")

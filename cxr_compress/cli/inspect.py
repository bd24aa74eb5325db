"""Show what is inside a model: what may be removed from it and why not, or what a .tflite really runs.

    cxr_inspect model.keras
    cxr_inspect model.keras --what=layers
    cxr_inspect model.keras --plan=run/plan.json --plot=plan.png
    cxr_inspect model.tflite
    cxr_inspect model.tflite --target=edgetpu

For a Keras model (.keras, .h5): its cost, and the groups of channels that stand and fall together. A group's params and
MACs are what would go with all of its channels; every MAC belongs to two groups, so these shares overlap. With --plan:
what each layer of the model loses by that plan, which was made for this very model (base.keras in a run's folder). A
plan whose "kept" was edited by hand is counted anew.

For a .tflite, of cxr_compress or not: operators with versions, dtypes, float islands, both ends, zeros, and what the
file says about itself. With --target: where each operator would run, and why not there: on Coral's Edge TPU (by its
documented rules; where edgetpu_compiler is on the PATH, its verdict stands below), or in XNNPACK, the fast engine of
processors.

Research use only; not a medical device and not a diagnosis.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, Say, UsageError, print_error, quiet_native_stderr, run_command
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results
from cxr_compress.device.modelfile import check_tflite, read_model
from cxr_compress.device.modelinfo import JSON_NAME, ModelInfo
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import check_keras_file, special_kind, write_bytes
from cxr_compress.lite import Audit, audit
from cxr_compress.lite.targets.edgetpu import EdgeTpuReport, OpVerdict, edgetpu_report
from cxr_compress.lite.targets.edgetpu_compiler import COMPILER, find_compiler, run_compiler
from cxr_compress.lite.targets.xnnpack_nodes import NodeVerdict, XnnpackReport, xnnpack_report
from cxr_compress.report.plots import HEADERS, draw_plan, plan_rows, plan_title

NAME = "cxr_inspect"
_KERAS = (".keras", ".h5", ".hdf5")
_TFLITE = ".tflite"
_TARGETS = ("edgetpu", "xnnpack")
_WHAT = {
    "groups": ("group", "channels", "also_made_by", "consumers", "params", "params_percent", "macs", "macs_percent"),
    "layers": ("layer", "class", "output", "weights", "params", "macs", "filters", "group", "filters_may_go"),
    "protected": ("group", "reason"),
}
_NAMES_SHOWN = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    flags.DEFINE_enum("what", "groups", list(_WHAT), "What to list of a Keras model.", flag_values=values)
    text = "Regular expressions of layers that keep all filters (Keras models)."
    flags.DEFINE_list("exclude", [], text, flag_values=values)
    text = "Let channels go that a LayerNormalization takes statistics over (Keras models)."
    flags.DEFINE_boolean("allow_inexact", False, text, flag_values=values)
    flags.DEFINE_string("plan", None, "A plan.json made for this model: show what it removes.", flag_values=values)
    text = "Draw the plan into this PNG too; needs --plan and the extra `report`."
    flags.DEFINE_string("plot", None, text, flag_values=values)
    define_overwrite_flag(values)
    text = "Where each operator of a .tflite would run."
    flags.DEFINE_enum("target", None, _TARGETS, text, flag_values=values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Look at one model."""
    path = _model_path(arguments)
    _check_usage(values, path)
    if path.suffix.lower() == _TFLITE and values.target:
        print_target(path, values.format, values.target)
        return EXIT_OK
    if path.suffix.lower() == _TFLITE:
        print_tflite(path, values.format)
        return EXIT_OK
    plan_text = _read_plan(values.plan) if values.plan else None
    with quiet_native_stderr(NAME, enabled=not values.debug) as say:
        found = _describe(values, path, plan_text, say)
    if plan_text is None:
        _print_model(values, found)
        return EXIT_OK
    if values.plot:
        write_bytes(values.plot, draw_plan(found, path.stem))
    _print_plan(values, found)
    return EXIT_OK


def _model_path(arguments: list[str]) -> Path:
    if len(arguments) != 1:
        raise UsageError(f"expected one model file, got {len(arguments)}: cxr_inspect MODEL")
    path = Path(arguments[0])
    if path.is_dir():
        raise CompressionError(
            f"expected a model file, got the folder {path}: turn a SavedModel into a .tflite with cxr_convert "
            "--saved_model_dir and inspect that"
        )
    if path.suffix.lower() not in (*_KERAS, _TFLITE):
        raise CompressionError(f"expected a model file ({', '.join((*_KERAS, _TFLITE))}), got {path.name}")
    return path


def _check_usage(values: flags.FlagValues, path: Path) -> None:
    """Find what is wrong before the slow part starts."""
    given = [name for name in ("what", "exclude", "allow_inexact", "plan", "plot") if values[name].present]
    if path.suffix.lower() == _TFLITE and given:
        raise UsageError(f"--{given[0]} is for Keras models, {path.name} is a .tflite")
    if path.suffix.lower() != _TFLITE and values.target:
        raise UsageError(f"--target is for .tflite files, got {path.name}: export it with cxr_convert first")
    for pattern in values.exclude:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"expected regular expressions in --exclude, got {pattern!r}: {error}") from error
    if values.plan:
        _check_plan_usage(given)
    elif values.plot is not None:
        raise UsageError("--plot draws a plan: give --plan=FILE too")
    if values.plot:
        # Its absence would else show after the model is loaded.
        import matplotlib  # noqa: F401

        output = Output("plot", Path(values.plot), ".png", lambda path: "")
        check_outputs(NAME, [output], inputs=[path, values.plan], overwrite=values.overwrite)
    check_keras_file(path)  # of a .tflite this looks at kind and size alone


def _check_plan_usage(given: list[str]) -> None:
    """A plan brings what it was made with."""
    clash = next((name for name in ("what", "exclude", "allow_inexact") if name in given), None)
    if clash:
        raise UsageError(f"--{clash} does not go with --plan: the plan says itself what it was made with")


def _read_plan(path: str) -> str:
    if kind := special_kind(path):  # a pipe would be waited for
        raise CompressionError(f"expected --plan to be a plan.json, got {path}, which is {kind}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CompressionError(f"the plan {path} does not exist: check the path") from error
    except UnicodeDecodeError as error:
        raise CompressionError(f"expected --plan to be a plan.json, got {path}, which is no text") from error


def _describe(values: flags.FlagValues, path: Path, plan_text: str | None, say: Say) -> dict[str, Any]:
    """Load and analyze the model; its description, or that of what the plan does to it."""
    # Here and not above: importing Keras loads TensorFlow, slow and noisy; a wrong flag should not wait for it.
    from cxr_compress.models.files import load_model
    from cxr_compress.structured import ChannelPlan, analyze_channels
    from cxr_compress.structured.describe import describe_model, describe_plan

    plan = None if plan_text is None else ChannelPlan.from_json(plan_text)
    model = load_model(path, say)
    if plan is None:
        analysis = analyze_channels(model, exclude=values.exclude, allow_inexact=values.allow_inexact)
        return {"model": str(path), **describe_model(analysis, model)}
    return {"model": str(path), "plan": values.plan, **describe_plan(plan.on(model), model, plan)}


def _print_model(values: flags.FlagValues, found: dict[str, Any]) -> None:
    if values.format == "table":
        sys.stdout.write(_summary_text(found["summary"]) + "\n\n")
    shorten = values.format == "table"
    rows = _ROWS[values.what](found, shorten)
    write_results(values.format, document=found, headers=_WHAT[values.what], rows=rows)


def _print_plan(values: flags.FlagValues, found: dict[str, Any]) -> None:
    if values.format == "table":
        edited = "(edited since it was made: these costs are counted anew)\n" if found["edited"] else ""
        peak = [found[side]["peak_activation_bytes"] for side in ("before", "after")]
        sys.stdout.write(f"{plan_title(found)}, peak activation bytes {peak[0]:,} -> {peak[1]:,}\n{edited}")
        sys.stdout.write(f"{_predicted(found)}\n")
    write_results(values.format, document=found, headers=HEADERS, rows=plan_rows(found))


def _predicted(found: dict[str, Any]) -> str:
    """A line of the costs that were predicted from measured ones, where the plan has any."""
    before, after = found["before"], found["after"]
    named = [name for name in ("tflite_bytes", "latency_ms") if name in before and name in after]
    line = ", ".join(f"{name} {before[name]:,.10g} -> {after[name]:,.10g}" for name in named)
    return f"predicted: {line}\n" if line else ""


def _summary_text(summary: dict[str, Any]) -> str:
    """The first lines under which the list stands."""
    lines = [
        f"params                {summary['params']:,}",
        f"MACs per image        {_macs(summary)}",
        f"peak activation bytes {summary['peak_activation_bytes']:,}",
        f"layers                {summary['layers']:,}",
        f"groups that may go    {summary['groups']:,} with {summary['channels']:,} channels",
        f"protected groups      {summary['protected_groups']:,}",
    ]
    lines += [f"  {count:,} x {reason}" for reason, count in summary["protected_reasons"].items()]
    return "\n".join(lines)


def _macs(summary: dict[str, Any]) -> str:
    """The MACs, or whose are missing: a number without them would pass for a small model."""
    if summary["macs"] is not None:
        return f"{summary['macs']:,}"
    return f"? (not counted: {', '.join(summary['not_counted'])})"


def _group_rows(found: dict[str, Any], shorten: bool) -> list[list[Any]]:
    return [
        [
            group["name"],
            group["channels"],
            _names(group["members"][1:], shorten),
            _names(group["consumers"], shorten),
            group["params"],
            round(100 * group["params_fraction"], 2),
            group["macs"],
            None if group["macs_fraction"] is None else round(100 * group["macs_fraction"], 2),
        ]
        for group in found["groups"]
    ]


def _layer_rows(found: dict[str, Any], shorten: bool) -> list[list[Any]]:
    keys = ("path", "class", "output_shape", "weights", "params", "macs", "filters", "group")
    return [
        [
            *(_layer_cell(key, layer[key], shorten) for key in keys),
            _may_go(layer),
        ]
        for layer in found["layers"]
    ]


def _layer_cell(key: str, value: Any, shorten: bool) -> Any:
    """One cell; a table shows MACs that are not counted as "?", where other empty cells mean that nothing fits."""
    if key == "output_shape":
        return "x".join(map(str, value))
    return "?" if key == "macs" and value is None and shorten else value


def _may_go(layer: dict[str, Any]) -> str | None:
    if not layer["has_filters"]:
        return None
    return "yes" if layer["removable"] else f"no: {layer['why_not']}"


def _protected_rows(found: dict[str, Any], shorten: bool) -> list[list[Any]]:
    return [[name, reason] for name, reason in found["protected"].items()]


_ROWS = {"groups": _group_rows, "layers": _layer_rows, "protected": _protected_rows}


def _names(names: list[str], shorten: bool) -> str:
    """Names in one cell; a table shows the first ones."""
    if not shorten or len(names) <= _NAMES_SHOWN:
        return " ".join(names)
    return f"{' '.join(names[:_NAMES_SHOWN])} +{len(names) - _NAMES_SHOWN}"


_OP_LINE = "op  "


def print_tflite(path: Path, form: str) -> None:
    """Print what a .tflite holds, in the --format asked for.

    Raises:
        ModelFileError: no .tflite, or a damaged one.
    """
    data, content, info = read_any(path)
    try:
        found = audit(content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error
    if form == "table":
        sys.stdout.write(_text(found, info, len(data)) + "\n\n")
    document = {"model": str(path), "bytes": len(data), "info": info.to_dict() if info else None, **found.to_dict()}
    rows = [[op.kind, op.version, op.count] for op in found.ops]
    write_results(form, document=document, headers=("operator", "version", "count"), rows=rows)


def read_any(path: Path) -> tuple[bytes, bytes, ModelInfo | None]:
    """A .tflite of cxr_compress or not: the whole file, the flatbuffer in it, and what it says about itself or None.

    Raises:
        ModelFileError: one of cxr_compress that is damaged.
    """
    check_tflite(path)
    data = path.read_bytes()
    # One of ours is verified; a damaged one must not pass for a foreign file.
    own = read_model(path) if JSON_NAME.encode() in data else None
    return (data, own.content, own.info) if own else (data, data, None)


def _text(found: Audit, info: ModelInfo | None, size: int) -> str:
    """The lines above the list of operators."""
    lines = [f"file    {size} bytes", *_own_lines(info)]
    lines += [line for line in found.to_text().splitlines() if not line.startswith(_OP_LINE)]
    if not found.float_islands:
        lines.append("float   " + ("no float islands" if found.has_integer_activations else "computes in float"))
    return "\n".join(lines)


def _own_lines(info: ModelInfo | None) -> list[str]:
    """What the file says about itself."""
    if info is None:
        return ["about   not of cxr_compress: no labels and no preprocessing inside"]
    spec: dict[str, Any] = info.preprocess.to_dict()
    shape = f"{spec['height']} x {spec['width']} x {spec['channels']} {spec['color']}"
    return [
        f"about   {info.model_name}, quantization {info.quant_type}, images {shape}",
        f"labels  {', '.join(info.labels)}",
        _decision_line(info),
        *_origin_lines(info),
        *(["trained on drawn phantom images: its findings say nothing about patients"] if info.synthetic else []),
    ]


def _decision_line(info: ModelInfo) -> str:
    """How an image gets its findings, or its one class."""
    if info.exclusive:
        return "classes exclude one another: one softmax, and the likeliest is predicted"
    return f"at      {', '.join(f'{value:.4g}' for value in info.thresholds)} ({info.threshold_source})"


def _origin_lines(info: ModelInfo) -> list[str]:
    """Where its numbers come from and what it can be checked by; what a file of version 1 does not say is left out."""
    images = (
        f"reference  {info.reference.shape[0]} images, answered by {info.reference.runtime}" if info.reference else ""
    )
    lines = [
        f"scaled  {info.calibration_source}",
        f"weights canonical sha256 {info.canonical_hash}" if info.canonical_hash else "",
        *(f"from    {name} sha256 {digest}" for name, digest in info.parents.items()),
        images,
    ]
    return [line for line in lines if line]


_COLUMNS = ("index", "operator", "version", "verdict", "reason", "layer")
_NOTES = {
    "edgetpu": "predicted from the documented rules; only the compiler knows how large a tensor may be",
    "xnnpack": "as LiteRT 2 takes them; tflite-runtime 2.14 takes fewer 8-bit operators",
}


def print_target(path: Path, form: str, target: str) -> None:
    """Print what a target makes of a .tflite: a summary and a row for each operator.

    Raises:
        ModelFileError: no .tflite, or a damaged one.
    """
    report = _report(path, target)
    if form == "table":
        sys.stdout.write(f"{report.to_text()}\nnote       {_NOTES[target]}\n\n")
    document = {"model": str(path), "target": target, "note": _NOTES[target], **report.to_dict()}
    write_results(form, document=document, headers=_COLUMNS, rows=_rows(report))


def _report(path: Path, target: str) -> EdgeTpuReport | XnnpackReport:
    _, content, _ = read_any(path)
    try:
        return xnnpack_report(content) if target == "xnnpack" else _with_compiler(edgetpu_report(content), content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error


def _with_compiler(report: EdgeTpuReport, content: bytes) -> EdgeTpuReport:
    """The report with what edgetpu_compiler says, where it is installed; the prediction stands without it too."""
    program = find_compiler()
    if program is None:
        return report
    try:
        return report.with_compiler(run_compiler(content, program))
    except CompressionError as error:
        print_error("cxr_inspect", f"{COMPILER} is left out: {error}")
        return report


def _rows(report: EdgeTpuReport | XnnpackReport) -> list[list[Any]]:
    if isinstance(report, XnnpackReport):
        return [_row(op, "xnnpack" if op.taken else "left") for op in report.ops]
    return [_row(op, "edge tpu" if op.mapped else "cpu") for op in report.ops]


def _row(op: OpVerdict | NodeVerdict, verdict: str) -> list[Any]:
    return [op.index, op.kind, op.version, verdict, op.reason, op.layer]

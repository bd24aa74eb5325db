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

For a .tflite, of cxr_compress or not: operators with versions, dtypes, float islands, input and output, zeros, and what
the file says about itself. With --target: where each operator would run, and why not there: on Coral's Edge TPU (by its
documented rules; where edgetpu_compiler is on the PATH, its verdict stands below), or in XNNPACK, the fast engine of
processors.

Research use only; not a medical device and not a diagnosis.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError, print_error, quiet_native_stderr, run_command
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results
from cxr_compress.device.modelfile import check_tflite, read_model
from cxr_compress.device.modelinfo import JSON_NAME, ModelInfo
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import check_keras_file, special_kind, write_bytes
from cxr_compress.lite import audit
from cxr_compress.lite.targets.edgetpu import COMPILER, EdgeTpuReport, edgetpu_report, find_compiler, run_compiler
from cxr_compress.lite.targets.xnnpack import XnnpackReport, xnnpack_report
from cxr_compress.report.plots import HEADERS, draw_plan, plan_rows, plan_title

NAME = "cxr_inspect"
_KERAS = (".keras", ".h5", ".hdf5")
_TFLITE = ".tflite"
_WHAT = {
    "groups": ("group", "channels", "also_made_by", "consumers", "params", "params_percent", "macs", "macs_percent"),
    "layers": ("layer", "class", "output", "weights", "params", "macs", "filters", "group", "filters_may_go"),
    "protected": ("group", "reason"),
}
_OF_KERAS = ("what", "exclude", "allow_inexact", "plan", "plot")
_OF_A_PLAN = ("what", "exclude", "allow_inexact")  # what a plan says itself
_NAMES_SHOWN = 2
_OP_LINE = "op  "
# Target -> what its verdicts rest on.
_TARGETS = {
    "edgetpu": "predicted from the documented rules; only the compiler knows how large a tensor may be",
    "xnnpack": "as LiteRT 2 takes them; tflite-runtime 2.14 takes fewer 8-bit operators",
}

# Heading, JSON document, titles and rows: what `write_results` prints.
Shown = tuple[str, dict[str, Any], Sequence[str], list[list[Any]]]


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
    flags.DEFINE_enum("target", None, list(_TARGETS), text, flag_values=values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Look at one model."""
    path = _model_path(arguments)
    _check_usage(values, path)
    if path.suffix.lower() == _TFLITE:
        heading, document, headers, rows = _show_target(path, values.target) if values.target else _show_tflite(path)
    else:
        heading, document, headers, rows = _show_keras(values, path)
    write_results(values.format, document=document, headers=headers, rows=rows, heading=heading)
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
    present = [name for name in _OF_KERAS if values[name].present]
    if path.suffix.lower() == _TFLITE and present:
        raise UsageError(f"--{present[0]} is for Keras models, {path.name} is a .tflite")
    if path.suffix.lower() != _TFLITE and values.target:
        raise UsageError(f"--target is for .tflite files, got {path.name}: export it with cxr_convert first")
    for pattern in values.exclude:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"expected regular expressions in --exclude, got {pattern!r}: {error}") from error
    if values.plan and (clash := [name for name in present if name in _OF_A_PLAN]):
        raise UsageError(f"--{clash[0]} does not go with --plan: the plan says itself what it was made with")
    if values.plot is not None and not values.plan:
        raise UsageError("--plot draws a plan: give --plan=FILE too")
    if values.plot:
        # Its absence would else show after the model is loaded.
        import matplotlib  # noqa: F401

        output = Output("plot", Path(values.plot), ".png", lambda path: "")
        check_outputs(NAME, [output], inputs=[path, values.plan], overwrite=values.overwrite)
    check_keras_file(path)  # of a .tflite this looks at kind and size alone


def _show_keras(values: flags.FlagValues, path: Path) -> Shown:
    """Load and analyze a Keras model: what may go, or what a plan removes."""
    plan_text = _read_plan(values.plan) if values.plan else None
    with quiet_native_stderr(NAME, enabled=not values.debug) as say:
        # Here and not above: importing Keras loads TensorFlow, slow and noisy; a wrong flag should not wait for it.
        from cxr_compress.models.files import load_model
        from cxr_compress.structured import ChannelPlan, analyze_channels
        from cxr_compress.structured.describe import describe_model, describe_plan

        if plan_text is None:
            model = load_model(path, say)
            analysis = analyze_channels(model, exclude=values.exclude, allow_inexact=values.allow_inexact)
            about = {"model": str(path), **describe_model(analysis, model)}
            rows = _ROWS[values.what](about, values.format == "table")
            return _summary_text(about["summary"]), about, _WHAT[values.what], rows
        plan = ChannelPlan.from_json(plan_text)
        model = load_model(path, say)
        about = {"model": str(path), "plan": values.plan, **describe_plan(plan.on(model), model, plan)}
    if values.plot:
        write_bytes(values.plot, draw_plan(about, path.stem))
    return _plan_text(about), about, HEADERS, plan_rows(about)


def _read_plan(path: str) -> str:
    if kind := special_kind(path):  # a pipe would be waited for
        raise CompressionError(f"expected --plan to be a plan.json, got {path}, which is {kind}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CompressionError(f"the plan {path} does not exist: check the path") from error
    except UnicodeDecodeError as error:
        raise CompressionError(f"expected --plan to be a plan.json, got {path}, which is no text") from error


def _plan_text(about: dict[str, Any]) -> str:
    """The lines above the table of a plan: costs as counted, and those that were predicted from measured ones."""
    before, after = about["before"], about["after"]
    key = "peak_activation_bytes"
    lines = [f"{plan_title(about)}, peak activation bytes {before[key]:,} -> {after[key]:,}"]
    if about["edited"]:
        lines.append("(edited since it was made: these costs are counted anew)")
    measured = [name for name in ("tflite_bytes", "latency_ms") if name in before and name in after]
    costs = ", ".join(f"{name} {before[name]:,.10g} -> {after[name]:,.10g}" for name in measured)
    return "\n".join([*lines, *([f"predicted: {costs}"] if costs else [])])


def _summary_text(summary: dict[str, Any]) -> str:
    """The lines above the list of a model."""
    # Whose MACs are missing: a number without them would pass for a small model.
    unknown = f"? (not counted: {', '.join(summary['not_counted'])})"
    lines = [
        f"params                {summary['params']:,}",
        f"MACs per image        {unknown if summary['macs'] is None else format(summary['macs'], ',')}",
        f"peak activation bytes {summary['peak_activation_bytes']:,}",
        f"layers                {summary['layers']:,}",
        f"groups that may go    {summary['groups']:,} with {summary['channels']:,} channels",
        f"protected groups      {summary['protected_groups']:,}",
    ]
    return "\n".join([*lines, *(f"  {count:,} x {reason}" for reason, count in summary["protected_reasons"].items())])


def _group_rows(about: dict[str, Any], shorten: bool) -> list[list[Any]]:
    return [
        [
            group["name"],
            group["channels"],
            _names(group["members"][1:], shorten),
            _names(group["consumers"], shorten),
            *(cell for cost in ("params", "macs") for cell in (group[cost], _percent(group[f"{cost}_fraction"]))),
        ]
        for group in about["groups"]
    ]


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 2)


def _names(names: list[str], shorten: bool) -> str:
    """Names in one cell; a table shows the first ones."""
    if not shorten or len(names) <= _NAMES_SHOWN:
        return " ".join(names)
    return f"{' '.join(names[:_NAMES_SHOWN])} +{len(names) - _NAMES_SHOWN}"


def _layer_rows(about: dict[str, Any], shorten: bool) -> list[list[Any]]:
    rows = []
    for layer in about["layers"]:
        # A table shows MACs that are not counted as "?", where other empty cells mean that nothing fits.
        macs = "?" if layer["macs"] is None and shorten else layer["macs"]
        may_go = None
        if layer["has_filters"]:
            may_go = "yes" if layer["removable"] else f"no: {layer['why_not']}"
        shape = "x".join(map(str, layer["output_shape"]))
        costs = [layer["weights"], layer["params"], macs]
        rows.append([layer["path"], layer["class"], shape, *costs, layer["filters"], layer["group"], may_go])
    return rows


def _protected_rows(about: dict[str, Any], shorten: bool) -> list[list[Any]]:
    return [[name, reason] for name, reason in about["protected"].items()]


_ROWS = {"groups": _group_rows, "layers": _layer_rows, "protected": _protected_rows}


def _show_tflite(path: Path) -> Shown:
    """What a .tflite holds.

    Raises:
        ModelFileError: no .tflite, or a damaged one.
    """
    data, content, info = _read_tflite(path)
    try:
        audited = audit(content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error
    lines = [f"file    {len(data)} bytes", *_own_lines(info)]
    lines += [line for line in audited.to_text().splitlines() if not line.startswith(_OP_LINE)]
    if not audited.float_islands:
        lines.append("float   " + ("no float islands" if audited.has_integer_activations else "computes in float"))
    about = {"model": str(path), "bytes": len(data), "info": info.to_dict() if info else None, **audited.to_dict()}
    rows = [[op.kind, op.version, op.count] for op in audited.ops]
    return "\n".join(lines), about, ("operator", "version", "count"), rows


def _read_tflite(path: Path) -> tuple[bytes, bytes, ModelInfo | None]:
    """A .tflite of cxr_compress or not: the whole file, the flatbuffer in it, and what it says about itself or None.

    Raises:
        ModelFileError: one of cxr_compress that is damaged.
    """
    check_tflite(path)
    data = path.read_bytes()
    # One of ours is verified; a damaged one must not pass for a foreign file.
    own = read_model(path) if JSON_NAME.encode() in data else None
    return (data, own.content, own.info) if own else (data, data, None)


def _own_lines(info: ModelInfo | None) -> list[str]:
    """What the file says about itself; what a file of version 1 does not say is left out."""
    if info is None:
        return ["about   not of cxr_compress: no labels and no preprocessing inside"]
    spec: dict[str, Any] = info.preprocess.to_dict()
    shape = f"{spec['height']} x {spec['width']} x {spec['channels']} {spec['color']}"
    thresholds = ", ".join(f"{value:.4g}" for value in info.thresholds)
    lines = [
        f"about   {info.model_name}, quantization {info.quant_type}, images {shape}",
        f"labels  {', '.join(info.labels)}",
        "classes exclude one another: one softmax, and the likeliest is predicted"
        if info.exclusive
        else f"at      {thresholds} ({info.threshold_source})",
        f"scaled  {info.calibration_source}",
        f"weights canonical sha256 {info.canonical_hash}" if info.canonical_hash else "",
        *(f"from    {name} sha256 {digest}" for name, digest in info.parents.items()),
        f"reference  {info.reference.shape[0]} images, answered by {info.reference.runtime}" if info.reference else "",
        "trained on drawn phantom images: its findings say nothing about patients" if info.synthetic else "",
    ]
    return [line for line in lines if line]


def _show_target(path: Path, target: str) -> Shown:
    """What a target makes of a .tflite: a summary and a row for each operator.

    Raises:
        ModelFileError: no .tflite, or a damaged one.
    """
    _, content, _ = _read_tflite(path)
    try:
        report = xnnpack_report(content) if target == "xnnpack" else _with_compiler(edgetpu_report(content), content)
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error
    note = _TARGETS[target]
    verdicts: list[tuple[Any, str]]
    if isinstance(report, XnnpackReport):
        verdicts = [(op, "xnnpack" if op.taken else "left") for op in report.ops]
    else:
        verdicts = [(op, "edge tpu" if op.mapped else "cpu") for op in report.ops]
    rows = [[op.index, op.kind, op.version, verdict, op.reason, op.layer] for op, verdict in verdicts]
    about = {"model": str(path), "target": target, "note": note, **report.to_dict()}
    return f"{report.to_text()}\nnote       {note}", about, _COLUMNS, rows


_COLUMNS = ("index", "operator", "version", "verdict", "reason", "layer")


def _with_compiler(report: EdgeTpuReport, content: bytes) -> EdgeTpuReport:
    """The report with what edgetpu_compiler says, where it is installed; the prediction stands without it too."""
    program = find_compiler()
    if program is None:
        return report
    try:
        return report.with_compiler(run_compiler(content, program))
    except CompressionError as error:
        print_error(NAME, f"{COMPILER} is left out: {error}")
        return report

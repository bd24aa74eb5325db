"""Export a Keras classifier to .tflite files that carry their labels and preprocessing.

    cxr_convert --keras_model_file=model.keras --output_file=model.tflite
    cxr_convert --saved_model_dir=saved/ --output_file=model.tflite --quant_type=none,int8 --calibration_data=images/

A sigmoid or softmax at the end of a Keras file is taken off, and said so: files give logits, and the device computes
the probabilities; a SavedModel has to give logits by itself. The int8 types need calibration images: training images
of the same kind as the device will see, from a folder, a table, a data set (its training part) or a cache of cxr_data;
images that do not look like those the model was trained on are warned of. With several quant types each file gets its
type's name: model_none.tflite, model_int8.tflite. --edgetpu fails where Coral's Edge TPU would not run the whole file.

With --dataset each file gets its own thresholds and calibrated probabilities, from the dev part of that set. Without,
thresholds are 0.5 and the probabilities are not calibrated: choose both on data before anyone relies on them.
Research use only; not a medical device and not a diagnosis.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, Say, UsageError, quiet_native_stderr, reader_options, run_command
from cxr_compress.cli.convert_images import (
    CalibrationImages,
    DevImages,
    calibration_images,
    calibration_set,
    check_calibration_flags,
    check_fit_flag,
    define_calibration_flags,
    define_fit_flag,
    dev_images,
    has_calibration,
    named_dataset,
)
from cxr_compress.cli.convert_source import Source, load_source
from cxr_compress.cli.device_flags import check_sign_flag, define_sign_flag, sign_written, signature_outputs
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results
from cxr_compress.cli.recipe_flags import changed_options, convert_options, define_convert_flags, define_meaning_flags
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.spec import INPUTS, PreprocessSpec, preset_name
from cxr_compress.errors import CompressionError
from cxr_compress.files import check_keras_file, write_bytes
from cxr_compress.lite import FrozenFunction, LiteModel, convert
from cxr_compress.lite.freeze import fingerprint
from cxr_compress.lite.head import LOGITS_AND_CAM
from cxr_compress.lite.int8.layer_snr import COLUMNS as LAYER_COLUMNS
from cxr_compress.lite.pack_file import pack_file
from cxr_compress.quant_types import TYPES

if TYPE_CHECKING:
    pass


_COLUMNS = ("file", "quant_type", "bytes", "input", "output", "zero_weights", "answers", "dB", "rank", "runs on")


def print_report(
    form: str,
    targets: Mapping[str, Path],
    converted: Mapping[str, LiteModel],
    packed: Mapping[str, bytes],
    *,
    layers: bool = False,
) -> None:
    """Print the files, and the layers before them; CSV can hold one table: that of the layers, where it was asked for.

    Args:
        form: "table", "json" or "csv".
        targets: file by quant type.
        converted: conversion by quant type.
        packed: what was written, by quant type.
        layers: print those of the int8 files.
    """
    document: dict[str, Any] = {"files": [_entry(targets[name], converted[name], packed[name]) for name in targets]}
    rows = [[name, *one.row()] for name in targets for one in converted[name].layers] if layers else []
    headers = ("quant_type", *LAYER_COLUMNS)
    if form == "csv" and rows:
        write_results(form, document=document, headers=headers, rows=rows)
        return
    if form == "table":
        _print_extras(converted, headers, rows)
    rows = [_row(targets[name], file, packed[name]) for name, file in converted.items()]
    write_results(form, document=document, headers=_COLUMNS, rows=rows)


def _entry(path: Path, file: LiteModel, data: bytes) -> dict[str, Any]:
    """JSON of one file; only int8 files have layers to compare."""
    about: dict[str, Any] = {"file": str(path), "quant_type": file.quant_type, "bytes": len(data)}
    about |= {"sha256": hashlib.sha256(data).hexdigest(), "audit": file.audit.to_dict()}
    about["parity"] = None if file.parity is None else file.parity.to_dict()
    if file.layers:
        about["layers"] = [one.to_dict() for one in file.layers]
    if file.fallback is not None:
        about["fallback"] = file.fallback.to_dict()
    return about


def _row(path: Path, file: LiteModel, data: bytes) -> list[Any]:
    audit = file.audit
    types = [audit.inputs[0].dtype, audit.outputs[0].dtype]
    return [
        str(path),
        file.quant_type,
        len(data),
        *types,
        f"{audit.sparsity.fraction:.1%}",
        *_parity_cells(file),
    ]


def _parity_cells(file: LiteModel) -> list[str]:
    """Fewest answers of a finding, decibels, lowest rank correlation; then who can load the file."""
    runtimes = " ".join(file.audit.runtimes) or "none"
    if file.parity is None:
        return ["", "", "", runtimes]
    lowest = file.parity.lowest_spearman
    rank = "" if lowest is None else f"{lowest:.4f}"
    return [str(min(file.parity.codes)), f"{file.parity.snr_db:.1f}", rank, runtimes]


def _print_extras(converted: Mapping[str, LiteModel], headers: tuple[str, ...], rows: list[list[str]]) -> None:
    """What a reader wants to see above the files."""
    from tabulate import tabulate

    if rows:
        numbers = ["left", "left", "left", "right", "right", "right", "left"]
        sys.stdout.write(tabulate(rows, headers, disable_numparse=True, colalign=numbers) + "\n\n")
    for file in converted.values():
        if file.fallback is not None:
            sys.stdout.write(f"{file.quant_type}: {file.fallback.to_text()}\n\n")
    lines = [f"{name}: {file.parity.to_text()}\n" for name, file in converted.items() if file.parity is not None]
    sys.stdout.write("".join([*lines, "\n"]) if lines else "")


NAME = "cxr_convert"
_SOURCES = ("keras_model_file", "saved_model_dir")
_CLASSIFIER_RANK = 2
_COMMON = {
    "from what, to where": ("keras_model_file", "saved_model_dir", "output_file", "quant_type"),
    "images": ("calibration_data", "dataset", "data_dir"),
    "the model's meaning": ("labels", "preset"),
    "the file": ("input", "edgetpu", "target_runtime", "head", "overwrite"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv, common=lambda: _COMMON)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags; those of tflite_convert keep their names."""
    _define_source_flags(values)
    flags.DEFINE_string("output_file", None, "The .tflite file to write.", flag_values=values)
    meanings = "; ".join(f"{name}: {quant_type.purpose}" for name, quant_type in TYPES.items())
    text = f"Number types of the files to write, one or more of: {meanings}."
    flags.DEFINE_list("quant_type", ["none"], text, flag_values=values)
    define_calibration_flags(values)
    define_convert_flags(values)
    define_fit_flag(values)
    define_sign_flag(values)
    define_meaning_flags(values)
    define_overwrite_flag(values)
    text = "Height and width in pixels, where the model leaves them open."
    flags.DEFINE_integer("input_size", None, text, lower_bound=1, flag_values=values)
    text = "What the device feeds: float32, normalized, or uint8 pixels, which the file then normalizes itself."
    flags.DEFINE_enum("input", "float32", INPUTS, text, flag_values=values)


def _define_source_flags(values: flags.FlagValues) -> None:
    """Define where the model comes from."""
    flags.DEFINE_string("keras_model_file", None, "Model to export: a .keras or .h5 file.", flag_values=values)
    flags.DEFINE_string("saved_model_dir", None, "Model to export: a SavedModel folder.", flag_values=values)
    flags.DEFINE_list("saved_model_tag_set", ["serve"], "Tags of the SavedModel.", flag_values=values)
    flags.DEFINE_string("saved_model_signature_key", "serving_default", "Its signature.", flag_values=values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Load, convert, write, print."""
    _check_usage(values, arguments)
    source = Path(values.keras_model_file or values.saved_model_dir)
    targets = _targets(Path(values.output_file), values.quant_type)
    with quiet_native_stderr(NAME, enabled=not values.debug) as say:
        loaded = load_source(values, say)
        _require_classifier(loaded.frozen.output_shape)
        dataset = named_dataset(values)
        dev = dev_images(values, dataset, loaded, say)
        if dev is not None and dev.match.by_position and not loaded.original.names.findings:
            loaded = _named_by_position(loaded, dev.match.findings)
        spec, forced = _spec(values, source, loaded, dev, say)
        spec = replace(spec, input=values.input)
        info = _info(values, source, loaded, spec)
        if forced:
            say(f"warning: {forced}; going on (--force)")
            info = replace(info, recipe={**info.recipe, "forced": forced})
        if loaded.original.change.note:
            info = replace(info, recipe={**info.recipe, "head": loaded.original.change.note})
        if dev is not None:
            info = _looked_at(values, dev, loaded, info, say)
        calibration = calibration_images(values, dataset, spec, loaded.original.about, say)
        if calibration is not None and calibration.varied:
            info = replace(info, recipe={**info.recipe, "vary_images": True})
        converted = _convert(values, loaded.frozen, calibration, spec, say)
        infos = {
            name: dev.fit(info, file, say, force=values.force) if dev else info for name, file in converted.items()
        }
    packed = {name: pack_file(converted[name].content, _named(infos[name], name)) for name in converted}
    for name, path in targets.items():
        write_bytes(path, packed[name])
    sign_written(values, targets.values())
    print_report(values.format, targets, converted, packed, layers=values.layer_report)
    return EXIT_OK


def _named_by_position(source: Source, findings: tuple[str, ...]) -> Source:
    names = replace(source.original.names, findings=findings, source="by position")
    return replace(source, original=replace(source.original, names=names))


def _convert(
    values: flags.FlagValues,
    frozen: FrozenFunction,
    calibration: CalibrationImages | None,
    spec: PreprocessSpec,
    say: Say,
) -> dict[str, LiteModel]:
    """All files, not packed yet."""
    options = convert_options(values).to_dict()
    if calibration is not None:  # copies come on top of what the user asked for
        options["calibration_steps"] = max(calibration.count, values.calibration_steps)
    return convert(
        frozen,
        list(values.quant_type),
        calibration=None if calibration is None else calibration.batches,
        pixels=spec if spec.input == "uint8" else None,
        progress=say,
        **options,
    )


def _check_usage(values: flags.FlagValues, arguments: list[str]) -> None:
    """Find what is wrong before the slow part starts."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    _check_options(values)
    if (values.keras_model_file is None) == (values.saved_model_dir is None):
        raise UsageError("expected one of --keras_model_file and --saved_model_dir")
    if not values.output_file:
        raise UsageError("expected --output_file=FILE, the .tflite to write")
    targets = _targets(Path(values.output_file), values.quant_type).values()
    outputs = [Output("output_file", path, ".tflite", _made_before) for path in targets]
    outputs += signature_outputs(values, targets)
    inputs = [values[name].value for name in (*_SOURCES, "calibration_data", "data_dir", "sign_key")]
    inputs += reader_options(values.options).values()
    check_outputs(NAME, outputs, inputs=inputs, overwrite=values.overwrite)
    if values.keras_model_file and not Path(values.keras_model_file).is_dir():
        check_keras_file(values.keras_model_file)


def _check_options(values: flags.FlagValues) -> None:
    check_calibration_flags(values)
    options = convert_options(values)
    options.check_types(values.quant_type, calibrated=has_calibration(values), pixels=values.input == "uint8")
    if options.head == LOGITS_AND_CAM and values.keras_model_file is None:
        raise UsageError("--head=logits+cam reads the last feature map of a Keras file: give --keras_model_file")
    check_fit_flag(values)
    check_sign_flag(values)


def _made_before(path: Path) -> str:
    """How an earlier call wrote a file; "" of one that this command did not write."""
    try:
        info = read_model(path).info
    except CompressionError:
        return ""
    return f"which {NAME} wrote before as {info.model_name}" if info.recipe.get("command") == NAME else ""


def _targets(path: Path, quant_types: Sequence[str]) -> dict[str, Path]:
    """The file of each quant type."""
    if len(quant_types) == 1:
        return {quant_types[0]: path}
    return {name: path.with_name(f"{path.stem}_{name}{path.suffix}") for name in quant_types}


def _require_classifier(output_shape: tuple[int, ...]) -> None:
    if len(output_shape) != _CLASSIFIER_RANK:
        raise CompressionError(f"expected outputs of shape (1, findings), got {output_shape}: flatten the output")


def _spec(
    values: flags.FlagValues, source: Path, loaded: Source, dev: DevImages | None, say: Say
) -> tuple[PreprocessSpec, str]:
    """The preprocessing that the files will carry: the model's own, the user's, or what dev shows; said in a line.

    Returns:
        It, and what speaks against it, or against the labels, where --force overrules that.

    Raises:
        CompressionError: nobody knows it, or something speaks against it.
    """
    from cxr_compress.models.meaning import ask_for_preset

    spec, against = loaded.original.pixels.spec, loaded.original.pixels.doubt
    if dev is not None:
        spec, against = dev.choose_spec(loaded, values, say)
    if against and not values.force:
        raise CompressionError(against)
    if spec is None:
        raise CompressionError(f"{ask_for_preset(source.name)}; or give --dataset with labels, which shows it")
    where = loaded.original.pixels.source if loaded.original.pixels.spec is not None else "the clear best on dev"
    say(f"note: {_assumed(loaded, spec, where)}")
    if dev is None:
        say("note: nothing of that was checked on images with labels: give --dataset, or score the file (cxr_evaluate)")
    return spec, "; ".join(filter(None, (loaded.original.names.doubt, against)))


def _assumed(loaded: Source, spec: PreprocessSpec, where: str) -> str:
    """What is taken for granted about the model, in one line."""
    kind = "classes that exclude one another" if loaded.original.activation == "softmax" else "findings"
    named = loaded.original.names.source if loaded.original.names.findings else "numbered, as nobody names them"
    return f"{kind} {', '.join(loaded.labels)} ({named}); preprocessing {preset_name(spec)} ({where})"


def _looked_at(values: flags.FlagValues, dev: DevImages, loaded: Source, info: ModelInfo, say: Say) -> ModelInfo:
    """Score the original before anything is built on it; what --force overrules is kept in the file.

    Raises:
        CompressionError: it is no better than chance.
    """
    spec = replace(info.preprocess, input="float32")
    look = dev.look(loaded, spec, f"findings {', '.join(dev.match.findings)}, preprocessing {preset_name(spec)}")
    say(look.line())
    if not look.problem:
        return info
    if not values.force:
        raise CompressionError(f"{look.problem}: correct that, or go on with --force")
    say(f"warning: {look.problem}; going on (--force)")
    overruled = "; ".join(filter(None, (info.recipe.get("forced"), look.problem)))
    return replace(info, recipe={**info.recipe, "forced": overruled})


def _info(values: flags.FlagValues, source: Path, loaded: Source, spec: PreprocessSpec) -> ModelInfo:
    """What the files say about themselves; nothing is claimed that this command does not know."""
    about, labels = loaded.original.about, loaded.labels
    count = len(labels)
    said = about.weights_of(loaded.original.names.positive) if about is not None else None
    weights = said or (1.0,) * count
    return ModelInfo(
        model_name=source.resolve().stem,
        labels=labels,
        preprocess=spec,
        logit_slope=(1.0,) * count,
        logit_offset=tuple(-math.log(weight) for weight in weights),
        thresholds=(0.5,) * count,
        threshold_source="0.5 by default, not chosen on data",
        calibration_source=_calibration_source(weights),
        quant_type="",
        parents={"source": fingerprint(source)},
        training_data=(about.dataset if about is not None else "") or "not stated",
        attribution=about.attribution if about is not None else "",
        activation=loaded.original.activation,
        outputs=loaded.original.change.gives,
        recipe={
            "command": NAME,
            "calibration_set": calibration_set(values),
            **changed_options(convert_options(values)),
        },
    )


def _calibration_source(weights: Sequence[float]) -> str:
    """What slope and offset are where nothing was fitted."""
    undone = "class weights of the training loss undone, " if set(weights) != {1.0} else ""
    return f"{undone}not fitted on data"


def _named(info: ModelInfo, quant_type: str) -> ModelInfo:
    """The same for the file of one quant type."""
    return replace(info, model_name=f"{info.model_name}_{quant_type}", quant_type=quant_type)

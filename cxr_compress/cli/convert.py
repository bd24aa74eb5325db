"""Export a Keras classifier to .tflite files that carry their labels and preprocessing.

    cxr_convert --keras_model_file=model.keras --output_file=model.tflite
    cxr_convert --saved_model_dir=saved/ --output_file=model.tflite --quant_type=none,int8 --calibration_data=films/

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

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.calibration_data import (
    Batches,
    calibration_batches,
    calibration_set,
    check_calibration_flags,
    define_calibration_flags,
    expected_input,
    has_calibration,
    named_dataset,
    warnings_said,
)
from cxr_compress.cli.common import EXIT_OK, UsageError, run_command
from cxr_compress.cli.convert_report import print_report
from cxr_compress.cli.edgetpu_flag import check_edgetpu_flag, define_edgetpu_flag
from cxr_compress.cli.export_flags import (
    changed_export_options,
    check_export_flags,
    define_export_flags,
    export_options,
)
from cxr_compress.cli.fit_flag import check_fit_flag, define_fit_flag, dev_films
from cxr_compress.cli.head_flag import check_head_flag, define_head_flag, with_head
from cxr_compress.cli.int8_flags import changed_options, check_int8_flags, define_int8_flags, int8_options
from cxr_compress.cli.quiet import Say, quiet_native_stderr
from cxr_compress.cli.sign_flags import check_sign_flag, define_sign_flag, sign_written
from cxr_compress.device.atomic import write_bytes
from cxr_compress.device.first_bytes import check_keras_file
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.spec import INPUTS, PRESETS, PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.lite import QUANT_TYPES, EqualizeReport, FrozenFunction, LiteModel, convert, equalize, freeze
from cxr_compress.lite.convert import check_quant_types
from cxr_compress.lite.describe.pack_file import pack_file
from cxr_compress.lite.load import fingerprint, load_saved_model

if TYPE_CHECKING:
    from cxr_compress.models import ModelAbout

NAME = "cxr_convert"
_RGB = 3
_CLASSIFIER_RANK = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags; those of tflite_convert keep their names."""
    _define_source_flags(values)
    flags.DEFINE_string("output_file", None, "The .tflite file to write.", flag_values=values)
    flags.DEFINE_list("quant_type", ["none"], f"One or more of {', '.join(QUANT_TYPES)}.", flag_values=values)
    define_calibration_flags(values)
    define_int8_flags(values)
    define_export_flags(values)
    define_edgetpu_flag(values)
    define_head_flag(values)
    define_fit_flag(values)
    define_sign_flag(values)
    flags.DEFINE_list("labels", [], "The findings, in the order of the logits.", flag_values=values)
    text = "Height and width in pixels, where the model leaves them open."
    flags.DEFINE_integer("input_size", None, text, lower_bound=1, flag_values=values)
    text = "What images the model is for; left out: what the model file says, or gray."
    flags.DEFINE_enum("color", None, ("gray", "rgb"), text, flag_values=values)
    text = "How pixels become the input, as the model was trained; left out: what the file says, or imagenet_torch."
    flags.DEFINE_enum("preset", None, list(PRESETS), text, flag_values=values)
    text = "What the device feeds: float32, normalised, or uint8 pixels, which the file then normalises itself."
    flags.DEFINE_enum("input", "float32", INPUTS, text, flag_values=values)


def _define_source_flags(values: flags.FlagValues) -> None:
    """Define where the model comes from."""
    flags.DEFINE_string("keras_model_file", None, "A .keras or .h5 file.", flag_values=values)
    flags.DEFINE_string("saved_model_dir", None, "A SavedModel folder.", flag_values=values)
    flags.DEFINE_list("saved_model_tag_set", ["serve"], "Tags of the SavedModel.", flag_values=values)
    flags.DEFINE_string("saved_model_signature_key", "serving_default", "Its signature.", flag_values=values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Load, convert, write, print."""
    _check_usage(values, arguments)
    source = Path(values.keras_model_file or values.saved_model_dir)
    targets = _targets(Path(values.output_file), values.quant_type)
    with quiet_native_stderr(NAME, enabled=not values.debug) as say:
        loaded = _load(values, say)
        about = _read_about(source)
        labels = _labels(values.labels or (list(about.findings) if about else []), loaded.frozen.output_shape)
        spec = _spec(values, loaded.frozen.input_shape, about)
        info = _info(values, source, labels, spec, about)
        if loaded.head:
            info = replace(info, recipe={**info.recipe, "head": loaded.head})
        dataset = named_dataset(values)
        dev = dev_films(values, dataset, info, say)
        calibration = calibration_batches(values, dataset, spec, say)
        made = _convert(values, loaded.frozen, calibration, spec, about, say)
        infos = {name: dev.fit(info, one, say) if dev else info for name, one in made.items()}
    packed = {name: pack_file(made[name].content, _named(infos[name], name)) for name in made}
    for name, path in targets.items():
        write_bytes(path, packed[name])
    sign_written(values, targets.values())
    print_report(values.format, targets, made, packed, equalized=loaded.equalized, layers=values.layer_report)
    return EXIT_OK


def _convert(  # noqa: PLR0917 - what is converted, and what is known of it
    values: flags.FlagValues,
    frozen: FrozenFunction,
    calibration: Batches | None,
    spec: PreprocessSpec,
    about: ModelAbout | None,
    say: Say,
) -> dict[str, LiteModel]:
    """All files, not packed yet."""
    with warnings_said(say):
        return convert(
            frozen,
            list(values.quant_type),
            calibration=calibration,
            calibration_steps=values.calibration_steps,
            pixels=spec if spec.input == "uint8" else None,
            progress=say,
            head=values.head,
            edgetpu=values.edgetpu,
            expected_input=expected_input(spec, about),
            **int8_options(values),
            **export_options(values),
        )


def _check_usage(values: flags.FlagValues, arguments: list[str]) -> None:
    """Find what is wrong before the slow part starts."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    _check_calibration(values)
    if (values.keras_model_file is None) == (values.saved_model_dir is None):
        raise UsageError("expected one of --keras_model_file and --saved_model_dir")
    if values.keras_model_file and not Path(values.keras_model_file).is_dir():
        check_keras_file(values.keras_model_file)
    if not values.output_file:
        raise UsageError("expected --output_file=FILE, the .tflite to write")
    folder = Path(values.output_file).parent
    if not folder.is_dir():
        raise CompressionError(f"the folder of --output_file, {folder}, does not exist: create it first")
    if Path(values.output_file).is_dir():
        raise CompressionError(f"--output_file {values.output_file} is a folder: give the name of a file")


def _check_calibration(values: flags.FlagValues) -> None:
    check_calibration_flags(values)
    check_quant_types(values.quant_type, calibrated=has_calibration(values))
    check_int8_flags(values)
    check_export_flags(values)
    check_edgetpu_flag(values)
    check_head_flag(values)
    check_fit_flag(values)
    check_sign_flag(values)


def _targets(path: Path, quant_types: Sequence[str]) -> dict[str, Path]:
    """The file of each quant type."""
    if len(quant_types) == 1:
        return {quant_types[0]: path}
    return {name: path.with_name(f"{path.stem}_{name}{path.suffix}") for name in quant_types}


@dataclass(frozen=True)
class _Loaded:
    """What there is to convert, what equalising did, and what became of an activation at the end."""

    frozen: FrozenFunction
    equalized: EqualizeReport | None = None
    head: str = ""


def _load(values: flags.FlagValues, say: Say) -> _Loaded:
    """Load the model, bring it to logits, equalise it if that is wanted, and freeze it."""
    start = time.perf_counter()
    if values.saved_model_dir is not None:
        tags = tuple(values.saved_model_tag_set)
        key, size = values.saved_model_signature_key, values.input_size
        frozen = load_saved_model(values.saved_model_dir, signature_key=key, tags=tags, input_size=size)
        return _Loaded(_timed("load and freeze", start, say, frozen))
    # Here and not above: importing Keras loads TensorFlow, slow and noisy; a wrong flag should not wait for it.
    from cxr_compress.models.keras_file import load_model

    model = _timed("load", start, say, load_model(values.keras_model_file))
    equalized = None
    if values.equalize:
        start = time.perf_counter()
        model, equalized = _timed("equalise", start, say, equalize(model))
    start = time.perf_counter()
    model, head = with_head(values, model)
    if head:
        say(head)
    return _Loaded(_timed("freeze", start, say, freeze(model, input_size=values.input_size)), equalized, head)


def _timed(stage: str, start: float, say: Say, result: Any) -> Any:
    say(f"{stage} {time.perf_counter() - start:.1f} s")
    return result


def _labels(given: list[str], output_shape: tuple[int, ...]) -> tuple[str, ...]:
    """One label a logit; numbered ones where none are given."""
    if len(output_shape) != _CLASSIFIER_RANK:
        raise CompressionError(f"expected logits of shape (1, findings), got {output_shape}: flatten the output")
    count = output_shape[1]
    if given and len(given) != count:
        raise CompressionError(f"expected {count} labels, one a logit, got {len(given)}: correct --labels")
    return tuple(given) or tuple(f"finding_{number}" for number in range(1, count + 1))


def _read_about(source: Path) -> ModelAbout | None:
    """What a model file says of itself; a SavedModel says nothing."""
    from cxr_compress.models import read_about

    return read_about(source) if source.is_file() else None


def _spec(values: flags.FlagValues, input_shape: tuple[int, ...], about: ModelAbout | None) -> PreprocessSpec:
    """The preprocessing that the file will carry: the model's own, or as the flags say."""
    _, height, width, channels = input_shape
    if about is not None and values.preset is None:
        own_spec = replace(about.preprocess, height=height, width=width, input=values.input)
        return replace(own_spec, color=values.color) if values.color else own_spec
    name = values.preset or "imagenet_torch"
    preset = PRESETS[name]
    own = preset.get("channels", _RGB)
    fields: dict[str, Any] = {"color": values.color or "gray", "input": values.input}
    # A preset that treats its channels alike serves any number of them.
    alike = len(set(preset["mean"])) == len(set(preset["std"])) == 1
    if channels != own and not alike:
        raise CompressionError(
            f"--preset={name} is for {own} channels, the model takes {channels}: choose another preset"
        )
    if channels != own:
        fields |= {"channels": channels, **{name: preset[name][:1] * channels for name in ("mean", "std")}}
    return PreprocessSpec.preset(name, height, width, **fields)


def _info(
    values: flags.FlagValues, source: Path, labels: tuple[str, ...], spec: PreprocessSpec, about: ModelAbout | None
) -> ModelInfo:
    """What the files say about themselves; nothing is claimed that this command does not know."""
    count = len(labels)
    weights = about.pos_weight if about is not None and about.pos_weight else (1.0,) * count
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
        recipe={
            "command": NAME,
            "calibration_set": calibration_set(values),
            **changed_options(values),
            **changed_export_options(values),
        },
    )


def _calibration_source(weights: Sequence[float]) -> str:
    """What slope and offset are where nothing was fitted."""
    undone = "class weights of the training loss undone, " if set(weights) != {1.0} else ""
    return f"{undone}not fitted on data"


def _named(info: ModelInfo, quant_type: str) -> ModelInfo:
    """The same for the file of one quant type."""
    return replace(info, model_name=f"{info.model_name}_{quant_type}", quant_type=quant_type)

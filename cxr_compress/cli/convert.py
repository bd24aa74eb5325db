"""Export a Keras classifier to .tflite files that carry their labels and preprocessing.

    cxr_convert --keras_model_file=model.keras --output_file=model.tflite
    cxr_convert --saved_model_dir=saved/ --output_file=model.tflite --quant_type=none,int8 --calibration_data=films/

The model has to give logits, without a last sigmoid or softmax. The int8 types need calibration images: training images
of the same kind as the device will see, from a folder or from a data set (its training part). With several quant types
each file gets its type's name: model_none.tflite, model_int8.tflite.

Thresholds start at 0.5 and the probabilities are not calibrated: choose both on data before anyone relies on them.
Research use only; not a medical device and not a diagnosis.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from cxr_compress.cli.common import EXIT_OK, UsageError, reader_options, run_command
from cxr_compress.cli.convert_report import print_report
from cxr_compress.cli.int8_flags import changed_options, check_int8_flags, define_int8_flags, int8_options
from cxr_compress.cli.quiet import Say, quiet_native_stderr
from cxr_compress.data import DATASETS, decode_split, load_dataset
from cxr_compress.device.atomic import write_bytes
from cxr_compress.device.decode import IMAGE_SUFFIXES, images_in
from cxr_compress.device.modelfile import pack_model
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.spec import INPUTS, PRESETS, PreprocessSpec
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.lite import QUANT_TYPES, EqualizeReport, FrozenFunction, convert, equalize, freeze
from cxr_compress.lite.calibration import DEFAULT_STEPS, MIN_IMAGES, image_batches, pick_evenly
from cxr_compress.lite.convert import check_quant_types
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
    flags.DEFINE_string("calibration_data", None, "Folder of images for the int8 types.", flag_values=values)
    flags.DEFINE_enum("dataset", None, DATASETS, "Calibrate on the training part of this set.", flag_values=values)
    flags.DEFINE_list("options", [], "Of that set's reader, as name=value.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Where that set lies.", flag_values=values)
    define_int8_flags(values)
    text = "Calibration images at most, spread evenly over the set."
    flags.DEFINE_integer("calibration_steps", DEFAULT_STEPS, text, lower_bound=MIN_IMAGES, flag_values=values)
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
        frozen, equalized = _load(values, say)
        about = _read_about(source)
        labels = _labels(values.labels or (list(about.findings) if about else []), frozen.output_shape)
        spec = _spec(values, frozen.input_shape, about)
        made = convert(
            frozen,
            list(values.quant_type),
            calibration=_calibration(values, spec),
            calibration_steps=values.calibration_steps,
            pixels=spec if spec.input == "uint8" else None,
            progress=say,
            **int8_options(values),
        )
    info = _info(values, source, labels, spec, about)
    packed = {name: pack_model(made[name].content, _named(info, name)) for name in made}
    for name, path in targets.items():
        write_bytes(path, packed[name])
    print_report(values.format, targets, made, packed, equalized=equalized, layers=values.layer_report)
    return EXIT_OK


def _check_usage(values: flags.FlagValues, arguments: list[str]) -> None:
    """Find what is wrong before the slow part starts."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    _check_calibration(values)
    if (values.keras_model_file is None) == (values.saved_model_dir is None):
        raise UsageError("expected one of --keras_model_file and --saved_model_dir")
    if not values.output_file:
        raise UsageError("expected --output_file=FILE, the .tflite to write")
    folder = Path(values.output_file).parent
    if not folder.is_dir():
        raise CompressionError(f"the folder of --output_file, {folder}, does not exist: create it first")
    if Path(values.output_file).is_dir():
        raise CompressionError(f"--output_file {values.output_file} is a folder: give the name of a file")


def _check_calibration(values: flags.FlagValues) -> None:
    if values.calibration_data and values.dataset:
        raise UsageError("expected one of --calibration_data and --dataset, got both")
    if bool(values.dataset) != bool(values.data_dir):
        raise UsageError("--dataset and --data_dir belong together: give both or neither")
    check_quant_types(values.quant_type, calibrated=bool(values.dataset or values.calibration_data))
    check_int8_flags(values)


def _targets(path: Path, quant_types: Sequence[str]) -> dict[str, Path]:
    """The file of each quant type."""
    if len(quant_types) == 1:
        return {quant_types[0]: path}
    return {name: path.with_name(f"{path.stem}_{name}{path.suffix}") for name in quant_types}


def _load(values: flags.FlagValues, say: Say) -> tuple[FrozenFunction, EqualizeReport | None]:
    """Load the model, equalise it if that is wanted, and freeze it."""
    start = time.perf_counter()
    if values.saved_model_dir is not None:
        tags = tuple(values.saved_model_tag_set)
        key, size = values.saved_model_signature_key, values.input_size
        frozen = load_saved_model(values.saved_model_dir, signature_key=key, tags=tags, input_size=size)
        return _timed("load and freeze", start, say, frozen), None
    # Here and not above: importing Keras loads TensorFlow, slow and noisy; a wrong flag should not wait for it.
    from cxr_compress.models.keras_file import load_model

    model = _timed("load", start, say, load_model(values.keras_model_file))
    equalized = None
    if values.equalize:
        start = time.perf_counter()
        model, equalized = _timed("equalise", start, say, equalize(model))
    start = time.perf_counter()
    return _timed("freeze", start, say, freeze(model, input_size=values.input_size)), equalized


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


def _calibration(values: flags.FlagValues, spec: PreprocessSpec) -> Iterator[np.ndarray] | None:
    """Calibration images as batches, read when asked for; None where the user names none."""
    if values.dataset:
        options = reader_options(values.options)
        films = load_dataset(values.dataset, values.data_dir, options=options).train
        chosen = films.take(pick_evenly(range(len(films)), values.calibration_steps))
        return iter(normalize(decode_split(chosen, spec), spec)[:, np.newaxis])
    if values.calibration_data:
        return image_batches(pick_evenly(_images_in(Path(values.calibration_data)), values.calibration_steps), spec)
    return None


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder and its sub-folders, sorted by path."""
    if not folder.is_dir():
        raise DataError(f"--calibration_data {folder} is no folder: give a folder of images")
    images = images_in(folder)
    if not images:
        raise DataError(f"--calibration_data {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): check the folder")
    return images


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
        quant_type="",
        parents={"source": fingerprint(source)},
        training_data=(about.dataset if about is not None else "") or "not stated",
        attribution=about.attribution if about is not None else "",
        recipe={
            "command": NAME,
            "calibration_set": values.dataset or ("folder" if values.calibration_data else ""),
            **changed_options(values),
        },
    )


def _named(info: ModelInfo, quant_type: str) -> ModelInfo:
    """The same for the file of one quant type."""
    return replace(info, model_name=f"{info.model_name}_{quant_type}", quant_type=quant_type)

"""The original model of a run, trained here or read from a file, and what its layers cost in bytes and time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.layer_times import measure_layers
from cxr_compress.device.probe_pack import ProbePack
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import write_bytes, write_text
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.lite.calibration import DEFAULT_STEPS
from cxr_compress.lite.graph.canonical import measure_file_bytes
from cxr_compress.lite.probes import build_probe_pack
from cxr_compress.models import build, load_model, read_about
from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.pipeline.ownership import refuse_own_source
from cxr_compress.pipeline.stages.original import look_at_original
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.structured import KernelSurvey, analyze_channels, survey_kernels
from cxr_compress.structured.sensitivity import model_hash

Progress = Callable[[str], None]

# The types whose files are int8 inside, at the ends of which nothing of size differs.
_INT8 = ("int8", "int8_float_io")


def make_probe_pack(
    model: Any,
    path: str | Path,
    quant_type: str = "int8",
    *,
    calibration: Iterable[np.ndarray] | None = None,
    calibration_steps: int = DEFAULT_STEPS,
    progress: Progress | None = None,
) -> ProbePack:
    """Write what a device needs to time the layers of a model: `cxr_benchmark --layers=PATH` there makes the table.

    Args:
        model: the original model, with logits.
        path: of the ZIP to write.
        quant_type: as the model will be delivered.
        calibration: preprocessed float32 NHWC batches; for the int8 types.
        calibration_steps: images taken of them.
        progress: is told each stage.

    Raises:
        CompressionError: as `lite.convert`.
        UnsupportedLayerError: as `analyze_channels` and `lite.convert`.
    """
    survey = survey_kernels(analyze_channels(model))
    content = convert(
        model,
        quant_type,
        calibration=calibration,
        calibration_steps=calibration_steps,
        compare=False,
        progress=progress,
    ).content
    pack = _pack(survey, content, quant_type, progress)
    write_bytes(path, pack.to_bytes())
    return pack


def measure_costs(
    model: Any,
    calibration: Iterable[np.ndarray] | None = None,
    quant_type: str = "int8",
    *,
    want_bytes: bool = True,
    want_latency: bool = False,
    latency_table: CostTable | None = None,
    int8_file: bytes | None = None,
    metadata_bytes: int = 0,
    calibration_steps: int = DEFAULT_STEPS,
    num_threads: int = 1,
    runtime: str = "auto",
    progress: Progress | None = None,
) -> CostTable:
    """Measure what a model's bytes and milliseconds are spent on, for `select_channels(cost_table=...)`.

    One conversion gives the bytes; layer times come from `latency_table` or are measured on this machine, which takes
    another conversion where the delivered type is not int8, and about 0.1 s for each of some dozens of probes.

    Args:
        model: the original model, with logits.
        calibration: preprocessed float32 NHWC batches; needed for bytes and for int8 types. Ranges hardly change a
            file's size, so a few images do.
        quant_type: as the model will be delivered.
        want_bytes: measure file bytes, always of the int8 file.
        want_latency: measure layer times here, unless `latency_table` has them.
        latency_table: layer times that a device measured.
        int8_file: an int8 file of this model, if there is one already, metadata included; saves a conversion.
        metadata_bytes: what will be appended to the file.
        calibration_steps: images taken of the calibration.
        num_threads: threads of the timed kernels.
        runtime: as `load_interpreter`.
        progress: is told each stage.

    Raises:
        CompressionError: as `lite.convert`, or a latency table without layer times or of another quant type.
        UnsupportedLayerError: as `analyze_channels` and `lite.convert`.
    """
    survey = survey_kernels(analyze_channels(model))
    images = None if calibration is None else list(calibration)
    table = _given_times(latency_table, quant_type)
    here = want_latency and table.layer_times is None
    convert_int8 = want_bytes and int8_file is None
    wanted = [name for name, used in ((_int8_of(quant_type), convert_int8), (quant_type, here)) if used]
    made = {}
    if wanted:
        kinds = list(dict.fromkeys(wanted))
        # Sizes and times are the same for a model that was never trained, whose answers hardly differ.
        made = convert(
            model, kinds, calibration=images, calibration_steps=calibration_steps, compare=False, progress=progress
        )
    if want_bytes:
        content = made[_int8_of(quant_type)].content if int8_file is None else int8_file
        counts = asdict(survey.file_counts)
        table = replace(table, file_bytes=measure_file_bytes(content, **counts, metadata_bytes=metadata_bytes))
    if here:
        pack = _pack(survey, made[quant_type].content, quant_type, progress)
        times = measure_layers(pack, num_threads=num_threads, runtime=runtime, progress=progress).layer_times
        table = replace(table, layer_times=times)
    return table


def read_latency_table(path: str | Path) -> CostTable:
    """Read the table that `cxr_benchmark --layers` wrote on a device.

    Raises:
        ModelFileError: missing or unreadable.
        CompressionError: as `CostTable.from_json`, or without layer times.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: expected a latency table (JSON), could not read it: {error}") from error
    try:
        table = CostTable.from_json(text)
    except CompressionError as error:
        raise CompressionError(f"{path}: {error}") from error
    if table.layer_times is None:
        raise CompressionError(f"{path}: expected layer times, the table has none: make it with cxr_benchmark --layers")
    return table


def _given_times(latency_table: CostTable | None, quant_type: str) -> CostTable:
    times = latency_table.layer_times if latency_table is not None else None
    if latency_table is not None and times is None:
        raise CompressionError(
            "expected layer times in the latency table, it has none: make it with cxr_benchmark --layers"
        )
    if times is not None and _inside(times.quant_type) != _inside(quant_type):
        raise CompressionError(
            f"the latency table was measured for quant type {times.quant_type!r}, the model is to be {quant_type!r}: "
            "make a probe pack of that type and measure it"
        )
    return CostTable(layer_times=times)


def _inside(quant_type: str) -> str:
    """What layers compute in; the two int8 types differ at the ends alone."""
    return "int8" if quant_type in _INT8 else quant_type


def _int8_of(quant_type: str) -> str:
    return quant_type if quant_type in _INT8 else "int8"


def _pack(survey: KernelSurvey, content: bytes, quant_type: str, progress: Progress | None) -> ProbePack:
    return build_probe_pack(
        content, survey.probes, survey.uses, moved=survey.moved, quant_type=quant_type, progress=progress
    )


BASE_FILES = ("base.keras",)
_IMAGE_RANK = 4  # images, height, width, channels
# Ranges hardly change the size of a file or the time of a kernel: a few images do.
_PRICING_IMAGES = 16


def make_base(run: RunContext, keras_model_file: Path | None) -> Artifacts:
    """The original model: trained here, or taken from a file, brought to logits and checked against the data.

    Raises:
        CompressionError: the file's model does not fit the images or the findings, or the folder holds another run.
    """
    if keras_model_file is None:
        inputs = base_inputs(run)
        run.claim({"source": "a training", "training": inputs["recipe"]})
        made = run.store.run("base", inputs, BASE_FILES, lambda work: _train(run, work))
        look_at_original(run, made)
        return made
    original = run.original
    if original is None:
        raise CompressionError(f"the run was opened without {keras_model_file.name}: open it with that model")
    model = original.model
    meaning = {
        "findings": list(run.data.dataset.findings),
        "preprocess": run.data.spec.to_dict(),
        "activation": run.activation,
    }
    inputs = {"weights": model_hash(model), **meaning}
    if not run.store.stands("base", inputs, BASE_FILES):
        refuse_own_source(run.store.folder, keras_model_file)
    run.claim({"source": "a model file", **inputs})

    def make(_: Path) -> Mapping[str, Any]:
        if not original.change.activation and original.about is None and run.activation == "softmax":
            run.log("base: its outputs are taken for logits of the set's classes, which exclude one another (softmax)")
        return {**run.save(model, "base.keras"), "head": asdict(original.change)}

    made = run.store.run("base", inputs, BASE_FILES, make)
    look_at_original(run, made)
    return made


def base_inputs(run: RunContext) -> dict[str, Any]:
    """What decides an original model that is trained here."""
    return run.inputs(("model", "input_size", "epochs", "learning_rate", *OF_TRAINING))


def price_layers(
    run: RunContext, base: Artifacts, int8_file: Callable[[], Path], latency_table: CostTable | None
) -> CostTable | None:
    """What bytes and milliseconds are spent on, where the recipe bounds them; times are measured only once."""
    want = {name: name in run.recipe.budget for name in ("tflite_bytes", "latency_ms")}
    if not any(want.values()):
        return None
    given = latency_table.to_json() if latency_table is not None and want["latency_ms"] else None
    inputs = {**run.inputs(("quant_type", "seed"), base), "want": want, "table": given}
    content = int8_file().read_bytes() if want["tflite_bytes"] else None

    def make(_: Path) -> None:
        table = measure_costs(
            load_model(base.keras_file),
            run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.seed)),
            run.recipe.quant_type,
            want_bytes=want["tflite_bytes"],
            want_latency=want["latency_ms"],
            latency_table=latency_table if want["latency_ms"] else None,
            int8_file=content,
            progress=run.log,
        )
        write_text(run.store.folder / "costs.json", table.to_json())

    made = run.store.run("price", inputs, ["costs.json"], make)
    return CostTable.from_json(made.paths["costs.json"].read_text(encoding="utf-8"))


def write_probes(run: RunContext, base: Artifacts, path: Path) -> None:
    """What a device needs to time the layers of the original model, as one file."""
    images = run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.seed))
    make_probe_pack(load_model(base.keras_file), path, run.recipe.quant_type, calibration=images, progress=run.log)


def build_untrained(run: RunContext) -> keras.Model:
    """The architecture of the recipe, with random weights."""
    size = run.recipe.input_size
    return build(run.recipe.model, len(run.data.dataset.findings), (size, size, run.data.spec.channels))


def image_size(keras_model_file: Path) -> int | None:
    """Height and width in pixels of the images that a model takes; None where `read_original` refuses it.

    Raises:
        CompressionError: the images are not square, or the model leaves their size open and says nothing of it.
        ModelFileError: the file cannot be read.
    """
    about = read_about(keras_model_file) if keras_model_file.is_file() else None
    if about is not None:
        sides: tuple[int | None, ...] = about.preprocess.height, about.preprocess.width
    else:
        model = load_model(keras_model_file)
        if len(model.inputs) != 1 or len(model.input_shape) != _IMAGE_RANK:
            return None
        sides = tuple(model.input_shape[1:3])
    if None in sides:
        raise CompressionError(
            f"{keras_model_file.name} leaves the size of its images open: save it with a fixed input size"
        )
    if sides[0] != sides[1]:
        raise CompressionError(
            f"{keras_model_file.name} takes images of {sides[0]} x {sides[1]}, a run makes square ones"
        )
    return sides[0]


def _train(run: RunContext, work: Path) -> Mapping[str, Any]:
    keras.utils.set_random_seed(run.recipe.seed)
    model = build_untrained(run)
    facts = run.train(model, run.config(run.recipe.epochs, run.recipe.learning_rate), work)
    return {**facts, **run.save(model, "base.keras")}

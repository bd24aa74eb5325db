"""What the layers of the original model cost in bytes and milliseconds, measured here or on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.layer_times import measure_layers
from cxr_compress.device.probe_pack import ProbePack
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import write_bytes, write_text
from cxr_compress.lite import convert
from cxr_compress.lite.calibration import DEFAULT_STEPS
from cxr_compress.lite.graph.constants import measure_file_bytes
from cxr_compress.lite.probes import build_probe_pack
from cxr_compress.models import load_model
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.stage import Pace, Stage, State
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.quant_types import TYPES
from cxr_compress.recipe import Recipe
from cxr_compress.structured import KernelSurvey, analyze_channels, survey_kernels

Progress = Callable[[str], None]

# Ranges hardly change the size of a file or the time of a kernel: a few images do.
_PRICING_IMAGES = 16
_SECONDS_PER_PRICED_LAYER = 0.1


class PriceLayers(Stage):
    """What bytes and milliseconds are spent on, where the recipe bounds them; times are measured only once."""

    name, section, results = "price", "removal", ("costs.json",)
    of_original = True

    def when(self, recipe: Recipe) -> bool:
        """Where bytes or milliseconds are bounded."""
        return any(_wanted(recipe).values())

    def plans(self, recipe: Recipe) -> bool:
        """A plan that keeps such a bound needs it."""
        return True

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """The original model, what is bounded, and the times that were given."""
        want, given = _wanted(run.recipe), _device_times(run)
        table = given.to_json() if given is not None else None
        return {**run.inputs(("quant_type", "seed"), state.original), "want": want, "table": table}

    def make(self, run: RunContext, state: State, work: Path) -> None:
        """Measure."""
        want = _wanted(run.recipe)
        table = measure_costs(
            load_model(state.original.keras_file),
            run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.run.seed)),
            run.recipe.export.quant_type,
            want_bytes=want["tflite_bytes"],
            want_latency=want["latency_ms"],
            latency_table=_device_times(run),
            int8_file=state.references["int8"].read_bytes() if want["tflite_bytes"] else None,
            progress=run.log,
        )
        write_text(run.store.folder / self.results[0], table.to_json())

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """Selecting filters reads it."""
        return replace(state, costs=CostTable.from_json(made.paths[self.results[0]].read_text(encoding="utf-8")))

    def seconds(self, pace: Pace) -> float:
        """Timing the layers, where no device did."""
        return _SECONDS_PER_PRICED_LAYER * pace.layers


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


def write_probes(run: RunContext, original: Artifacts, path: Path) -> None:
    """What a device needs to time the layers of the original model, as one file."""
    images = run.data.batches(run.data.sample(_PRICING_IMAGES, run.recipe.run.seed))
    quant_type = run.recipe.export.quant_type
    make_probe_pack(load_model(original.keras_file), path, quant_type, calibration=images, progress=run.log)


def _wanted(recipe: Recipe) -> dict[str, bool]:
    """Which costs have to be known by layer."""
    bounded = {name: name in recipe.removal.budget.bounds for name in ("tflite_bytes", "latency_ms")}
    # Without a budget there is no plan that would take first what saves most time.
    by_latency = recipe.removal.removes_filters and recipe.removal.scope == "latency"
    return bounded | {"latency_ms": bounded["latency_ms"] or by_latency}


def _device_times(run: RunContext) -> CostTable | None:
    """The layer times of a device, where they are of use."""
    return run.latency_table if _wanted(run.recipe)["latency_ms"] else None


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
    return "int8" if TYPES[quant_type].activations == "int8" else quant_type


def _int8_of(quant_type: str) -> str:
    return quant_type if TYPES[quant_type].activations == "int8" else "int8"


def _pack(survey: KernelSurvey, content: bytes, quant_type: str, progress: Progress | None) -> ProbePack:
    return build_probe_pack(
        content, survey.probes, survey.uses, moved=survey.moved, quant_type=quant_type, progress=progress
    )

"""The stages in their order."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_compress.data import Dataset
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.files import make_folder
from cxr_compress.keras2 import keras
from cxr_compress.models.original import Original
from cxr_compress.pipeline.context import Preflight, RunContext, activation_of, check_classes
from cxr_compress.pipeline.data import Decoding, RunData, load_run_data
from cxr_compress.pipeline.ownership import refuse_foreign
from cxr_compress.pipeline.preflight import check_network, tell
from cxr_compress.pipeline.stages.base import make_base, price_layers, write_probes
from cxr_compress.pipeline.stages.deliver import deliver, export_original, original_names
from cxr_compress.pipeline.stages.original import any_preset, match_data, open_original, settle_data
from cxr_compress.pipeline.stages.quantize import quantize
from cxr_compress.pipeline.stages.remove_filters import choose, remove, repair
from cxr_compress.pipeline.stages.score import score
from cxr_compress.pipeline.stages.train import finetune, recover, sparsify, sparsity_target
from cxr_compress.pipeline.store import Artifacts, Log, StageStore
from cxr_compress.pipeline.threads import tell_threads, use_threads
from cxr_compress.recipe import Recipe
from cxr_compress.structured import ChannelPlan

Check = Callable[[Dataset, PreprocessSpec], None]


def run_recipe(
    recipe: Recipe,
    *,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None = None,
    latency_table: CostTable | None = None,
    log: Log = lambda line: None,
    decoding: Decoding = lambda split, done, total: None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compress a model as a recipe says and report what it did to every finding.

    The same recipe, data and seed give the same plan and the same .tflite bytes on one kind of processor, however many
    cores it has: the number of threads is part of the recipe. A bound on latency does so for the same layer times,
    which are measured once and kept in costs.json. A second call with the same `output_dir` keeps what stands and
    redoes exactly what depends on a change. Whether the network can become what the recipe asks for is tried first,
    before images are read (`preflight`).

    Args:
        recipe: the choices.
        data_dir: where the recipe's data set lies; only read.
        output_dir: gets recipe.json, every stage's artifact and manifest, the .tflite files and report.json.
        keras_model_file: an original model to start from; None trains `recipe.model`.
        latency_table: layer times that a device measured, for a bound on latency; None measures them here.
        log: is told of stages and epochs, one line each.
        decoding: is told (split, images done, images in all) while images are read.
        overwrite: begin anew where `output_dir` holds a run that started from another model or other data, or files
            of another origin with the names of results.

    Returns:
        The report, as in report.json.

    Raises:
        CompressionError: and its subclasses; whatever was finished stays in `output_dir`.
    """
    run = open_run(recipe, data_dir, output_dir, keras_model_file, log, decoding, overwrite=overwrite)
    base = make_base(run, keras_model_file)
    return finish(run, base, compress(run, base, latency_table))


def write_probe_pack(
    recipe: Recipe,
    path: Path,
    *,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None = None,
    log: Log = lambda line: None,
    decoding: Decoding = lambda split, done, total: None,
    overwrite: bool = False,
) -> None:
    """Go as far as the original model and write what a device needs to time its layers; `run_recipe` goes on after it.

    Args:
        recipe: as `run_recipe`, like all that is not named here.
        path: of the ZIP; `cxr_benchmark --layers=PATH` on the device turns it into a latency table.
        data_dir: see there.
        output_dir: see there.
        keras_model_file: see there.
        log: see there.
        decoding: see there.
        overwrite: see there.

    Raises:
        CompressionError: and its subclasses.
    """
    run = open_run(recipe, data_dir, output_dir, keras_model_file, log, decoding, overwrite=overwrite)
    write_probes(run, make_base(run, keras_model_file), path)


@dataclass(frozen=True)
class Compressed:
    """A compressed Keras model on its way.

    Attributes:
        final: it.
        line: the Keras files that it came from, the original model first and itself last -> sha256.
        plan: which filters stayed; None where all did.
        original: makes the original model's own files, or gives them where they stand.
    """

    final: Artifacts
    line: dict[str, str]
    plan: ChannelPlan | None
    original: Callable[[], Artifacts]


def open_run(  # noqa: PLR0917 - what a run is made of
    recipe: Recipe,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None,
    log: Log,
    decoding: Decoding,
    *,
    overwrite: bool = False,
) -> RunContext:
    """A run with its images read; its folder is not written to before its original model is known (`make_base`).

    Raises:
        CompressionError: a recipe that contradicts itself, data that cannot be read, or a folder of something else.
    """
    import tensorflow as tf

    threads = use_threads(recipe.threads, log)
    if recipe.zeroes_weights:
        sparsity_target(recipe)  # what contradicts itself is refused before anything slow begins
    tf.config.experimental.enable_op_determinism()
    refuse_foreign(output_dir, recipe, overwrite=overwrite)
    original = open_original(recipe, keras_model_file, log) if keras_model_file is not None else None
    found, record = Preflight(), ""

    def check(dataset: Dataset, spec: PreprocessSpec) -> None:
        nonlocal found, record
        found, record = _preflight(recipe, output_dir, dataset, spec, keras_model_file, original, log)
        tell(found, log)

    data, original = _read_data(recipe, data_dir, decoding, original, log, check)
    keras.utils.set_random_seed(recipe.seed)
    for note in data.dataset.notes:
        log(f"note: {note}")
    tell_threads(output_dir / "recipe.json", recipe, log)
    digest = data.train.digest() + data.dev.digest()
    store = StageStore(output_dir, log, threads)
    return RunContext(recipe, data, digest, store, log, original, overwrite, found, record)


def _preflight(  # noqa: PLR0917 - what `open_run` was given, and has read
    recipe: Recipe,
    output_dir: Path,
    dataset: Dataset,
    spec: PreprocessSpec,
    keras_model_file: Path | None,
    original: Original | None,
    log: Log,
) -> tuple[Preflight, str]:
    """What the network was found not to do, and its manifest: nothing is written to the folder before it is taken."""
    manifest = Path("manifests") / "preflight.json"
    with tempfile.TemporaryDirectory(prefix="cxr_preflight_") as scratch:
        if (output_dir / manifest).is_file():
            make_folder((Path(scratch) / manifest).parent)
            shutil.copyfile(output_dir / manifest, Path(scratch) / manifest)
        store = StageStore(Path(scratch), log)
        positive = original.names.positive if original is not None else None
        count = len(dataset.findings)
        found = check_network(recipe, spec.input_shape, count, keras_model_file, store, positive=positive)
        return found, (Path(scratch) / manifest).read_text(encoding="utf-8")


def _read_data(  # noqa: PLR0917 - what `open_run` was given
    recipe: Recipe, data_dir: Path, decoding: Decoding, original: Original | None, log: Log, check: Check
) -> tuple[RunData, Original | None]:
    """The data as a given model wants it: its findings in its order, images prepared as it was trained."""

    def select(dataset: Dataset) -> Dataset:
        """The findings that are wanted, checked before any image is read."""
        wanted = dataset if original is None else match_data(recipe, dataset, original, log)
        check_classes(wanted, activation_of(wanted, original))
        return wanted

    if original is None:
        return load_run_data(recipe, data_dir, decoding, select=select, before_decoding=check), None
    spec = original.pixels.spec or any_preset(original, recipe)
    data = load_run_data(recipe, data_dir, decoding, spec, select, before_decoding=check)
    return settle_data(recipe, data, original, log)


def compress(
    run: RunContext, base: Artifacts, latency_table: CostTable | None = None, shared: StageStore | None = None
) -> Compressed:
    """The compressed Keras model, through every stage that the recipe asks for.

    Args:
        run: the run.
        base: the original model.
        latency_table: see `run_recipe`.
        shared: where what depends on the original model alone is kept, for several runs from one; None: in the run's.
    """
    recipe, final, plan, line = run.recipe, base, None, dict(base.keras_hash)
    of_original = run if shared is None else dataclasses.replace(run, store=shared)
    # When asked for: a budget that cannot be reached should not wait for it.
    original = functools.cache(lambda: export_original(of_original, base))
    if recipe.removes_filters:
        chosen, plan = choose(run, base, price(of_original, base, original, latency_table))
        final = repair(run, base, chosen, plan, remove(run, base, chosen, plan))
        line |= final.keras_hash
        if recipe.recovery_epochs:
            final = recover(run, final, base, plan)
            line |= final.keras_hash
    if recipe.zeroes_weights:
        final = sparsify(run, final, base)
        line |= final.keras_hash
        if recipe.finetune_epochs:
            final = finetune(run, final, base, plan)
            line |= final.keras_hash
    return Compressed(final, line, plan, original)


def price(
    run: RunContext, base: Artifacts, original: Callable[[], Artifacts], latency_table: CostTable | None
) -> CostTable | None:
    """What bytes and milliseconds cost in layers of the original model, where the recipe bounds them.

    Args:
        run: the run.
        base: the original model.
        original: makes its files; called where bytes are bounded.
        latency_table: see `run_recipe`.
    """
    int8_name = f"{original_names(run.recipe)['int8']}.tflite"
    return price_layers(run, base, lambda: original().paths[int8_name], latency_table)


def finish(run: RunContext, base: Artifacts, made: Compressed) -> dict[str, Any]:
    """Quantize, deliver, and score once on test: the report."""
    quantized = quantize(run, made.final, base)
    delivered = deliver(run, made.final, quantized, made.line)
    original, names = made.original(), original_names(run.recipe, with_int8=not run.preflight.int8)
    shown = {"none": "fp32", "int8": "int8"}
    files = {shown[kind]: (original.paths[f"{name}.tflite"], base.keras_file) for kind, name in names.items()}
    files["compressed"] = (delivered.paths[f"{run.recipe.name}.tflite"], made.final.keras_file)
    return score(run, files, quantized.facts)

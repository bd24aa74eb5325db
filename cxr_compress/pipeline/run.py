"""A run: opened, then taken through the stages of the table, each kept with what decided it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.data import Dataset
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.files import make_folder
from cxr_compress.keras2 import keras
from cxr_compress.models.original import Original
from cxr_compress.pipeline.announce import tell_time, tell_way
from cxr_compress.pipeline.context import PREFLIGHT, Preflight, RunContext, activation_of, check_classes
from cxr_compress.pipeline.data import Decoding, RunData, load_run_data
from cxr_compress.pipeline.preflight import check_network, tell
from cxr_compress.pipeline.stage import Stage, State
from cxr_compress.pipeline.stages import STAGES, stages_before
from cxr_compress.pipeline.stages.deliver import DeliverOriginal
from cxr_compress.pipeline.stages.original import MakeOriginal, any_preset, match_data, open_original, settle_data
from cxr_compress.pipeline.stages.price import write_probes
from cxr_compress.pipeline.stages.prune_weights import sparsity_target
from cxr_compress.pipeline.store import Log, StageStore, refuse_foreign, refuse_own_source
from cxr_compress.recipe import Recipe, is_labeled, without_labels


def use_threads(count: int, log: Log) -> int:
    """Let TensorFlow compute with so many threads, within an operation and among them, and give how many it has.

    It takes the number only before it computes for the first time in a process. Where that is past, as in a notebook,
    and it has another one, `progress` is told that the bytes may be others. NumPy's products, which refit layers, get
    one.
    """
    import tensorflow as tf

    # Its threads wait for one another in a loop: beside other work, small systems of equations take ten times as long.
    _limit_blas(1)
    threading = tf.config.threading
    try:
        threading.set_intra_op_parallelism_threads(count)
        threading.set_inter_op_parallelism_threads(count)
    except RuntimeError:
        had = threading.get_intra_op_parallelism_threads() or _cores()
        if had != count:
            log(
                f"threads: TensorFlow runs already in this process, with {had} threads; the recipe's {count} does not "
                "hold, so that another process gives other bytes"
            )
        return int(had)
    return count


def tell_threads(kept: Path, recipe: Recipe, log: Log) -> None:
    """Say that stages are done again, where the folder's run had another number of threads.

    Args:
        kept: the recipe of the run that the folder holds, if there is one.
        recipe: the one that goes on.
        log: is told.
    """
    try:
        had = Recipe.from_json(kept.read_text(encoding="utf-8")).run.num_threads
    except (OSError, CompressionError):  # a new folder, or half a file that is written again now
        return
    if had != recipe.run.num_threads:
        log(
            f"threads: this folder's run had {had}, this one has {recipe.run.num_threads}, which gives other bytes: "
            f"stages are done again (--num_threads={had} keeps them)"
        )


def _limit_blas(count: int) -> None:
    """Set the threads of the OpenBLAS that NumPy's wheels bring; another BLAS is left as it is."""
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for file in folder.glob("*openblas*"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(str(file))  # the one that is loaded already
            for name in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_"):
                if hasattr(library, name):
                    getattr(library, name)(ctypes.c_int(count))
                    break


def _cores() -> int:
    """Those that this process may use: what TensorFlow takes where no number is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    take_folder(run)
    log(tell_time(run))
    return run_stages(dataclasses.replace(run, latency_table=latency_table), STAGES).report


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
        recipe: the choices.
        path: of the ZIP; `cxr_benchmark --layers=PATH` on the device turns it into a latency table.
        data_dir: where the data set lies; only read.
        output_dir: the folder of the run.
        keras_model_file: an original model to start from; None trains `recipe.model`.
        log: is told of stages and epochs, one line each.
        decoding: is told (split, images done, images in all) while images are read.
        overwrite: replace a run that started from another model or other data.

    Raises:
        CompressionError: and its subclasses.
    """
    run = open_run(recipe, data_dir, output_dir, keras_model_file, log, decoding, overwrite=overwrite)
    take_folder(run)
    write_probes(run, run_stages(run, stages_before(DeliverOriginal)).original, path)


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
    """A run with its images read; its folder is not written to before it is known to be the run's (`take_folder`).

    Raises:
        CompressionError: a recipe that contradicts itself, data that cannot be read, or a folder of something else.
    """
    import tensorflow as tf

    threads = use_threads(recipe.run.num_threads, log)
    if recipe.sparsity.zeroes_weights:
        sparsity_target(recipe)  # what contradicts itself is refused before anything slow begins
    tf.config.experimental.enable_op_determinism()
    refuse_foreign(output_dir, recipe, results(), overwrite=overwrite)
    _check_labels(recipe, keras_model_file)
    original = open_original(recipe, keras_model_file, log) if keras_model_file is not None else None
    found, record = Preflight(), ""

    def check(dataset: Dataset, spec: PreprocessSpec) -> None:
        nonlocal found, record
        log(tell_way(recipe, trains_original=keras_model_file is None))
        found, record = _preflight(recipe, output_dir, dataset, spec, keras_model_file, original, log)
        tell(found, log)

    data, original = _read_data(recipe, data_dir, decoding, original, log, check)
    keras.utils.set_random_seed(recipe.run.seed)
    for note in data.dataset.notes:
        log(f"note: {note}")
    tell_threads(output_dir / "recipe.json", recipe, log)
    digest = data.train.digest() + data.dev.digest()
    store = StageStore(output_dir, log, threads)
    return RunContext(
        recipe,
        data,
        digest,
        store,
        log,
        original,
        overwrite=overwrite,
        preflight=found,
        preflight_record=record,
    )


def _check_labels(recipe: Recipe, keras_model_file: Path | None) -> None:
    """Refuse what needs labels where the images have none.

    Raises:
        CompressionError: there is no model that has learnt, or a part of a loss is left to labels.
    """
    if is_labeled(recipe):
        return
    if keras_model_file is None:
        raise CompressionError(
            f"the images of {recipe.data.dataset} have no labels, so no model can be trained on them: give one that "
            "has learnt (keras_model_file)"
        )
    without_labels(recipe, ("distill_weight",), settled=True)


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
    manifest = Path("manifests") / f"{PREFLIGHT}.json"
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


def take_folder(run: RunContext) -> None:
    """Begin the run in its folder, or go on with it there.

    Raises:
        CompressionError: the folder holds another run, or the model to start from is one of its results.
    """
    stage, inputs = next((stage, stage.inputs(run, State())) for stage in STAGES if isinstance(stage, MakeOriginal))
    if run.original is None:
        run.claim({"source": "a training", "training": inputs["recipe"]}, stage.name)
        return
    if not run.store.stands(stage.name, inputs, stage.results):
        refuse_own_source(run.store.folder, run.original.path, results())
    run.claim({"source": "a model file", **inputs}, stage.name)


def run_stages(
    run: RunContext, stages: Iterable[Stage], state: State | None = None, *, shared: StageStore | None = None
) -> State:
    """Run those of some stages that the recipe asks for and that stand in no state yet, each from what is before it.

    Args:
        run: the run.
        stages: in their order.
        state: what stands; None for nothing.
        shared: where what depends on the original model alone is kept, for several runs from one; None: in the run's.

    Raises:
        CompressionError: and its subclasses; whatever was finished stays in the folder.
    """
    state = State() if state is None else state
    for stage in stages:
        if stage.name in state.made or not stage.when(run.recipe) or not stage.needed(run, state):
            continue
        here = run if shared is None or not stage.of_original else dataclasses.replace(run, store=shared)
        make = functools.partial(stage.make, here, state)
        made = here.store.run(stage.name, stage.inputs(here, state), stage.files(here, state), make)
        state = dataclasses.replace(
            stage.after(here, state, made),
            made={**state.made, stage.name: made},
            seconds={**state.seconds, stage.name: here.store.manifest(stage.name)["seconds"]},
        )
    return state


def results() -> tuple[str, ...]:
    """The names of all that a run may leave in its folder, as globs in which {model} is the model's name."""
    return tuple(name for stage in STAGES for name in stage.results)

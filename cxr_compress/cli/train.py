"""Train or fine-tune a classifier of chest images; resumes when the output folder holds its run.

    cxr_train --model=chexnet --dataset=kermany --data_dir=chest_xray --output_dir=run --input_size=64,112 --epochs=8,4
    cxr_train --keras_model_file=base.keras --dataset=csv --data_dir=labels.csv --output_dir=run --input_size=224

Images may start small and grow (--input_size): a step at 64 px costs an eighth of one at 224. --epochs, --batch_size
and --learning_rate take one value, or one per size. The best epoch is chosen by the mean AUROC on dev, patients set
aside from train, or with --distill_weight by the loss there; test is never looked at (cxr_evaluate does that). The
folder receives model.keras, training.json, and per size run.json, log.jsonl, TensorBoard events and the last epoch's
whole state, from which the same command goes on; other flags are refused with what differs. Exit codes: 0 done, 2 wrong
flag, data or model or a lost worker, 130 Ctrl-C.

Several GPUs of one machine: --distribution=mirrored. Several machines: put the data set, and any model files, on each,
set TF_CONFIG, and start the same command with --distribution=multi_worker on all of them:

    export TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:12345", "10.0.0.2:12345"]},
                       "task": {"type": "worker", "index": 0}}'   # "index": 1 on the second

The first worker is the chief: it alone reads and writes --output_dir, so no shared disk is needed. --batch_size counts
the images of a step over all workers and must divide evenly among the GPUs, with as many on each machine.
If a worker dies, the others stop with one line, usually within a quarter of a minute; the same command on all machines
goes on from the last finished epoch, with as many machines as there are then. Use a private network: TensorFlow's
connections are neither encrypted nor authenticated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError, reader_options, run_command
from cxr_compress.cli.output import write_results
from cxr_compress.cli.progress import show_progress
from cxr_compress.cli.recipe_flags import define_meaning_flags, define_recipe_flags
from cxr_compress.data import DATASETS, Dataset, decode_split
from cxr_compress.data.dataset import match_findings
from cxr_compress.device.spec import PreprocessSpec, preset_name
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.files import check_keras_file, check_writable
from cxr_compress.models.architectures import MODELS, describe_architectures
from cxr_compress.recipe import AugmentRanges
from cxr_compress.recipe.fields import entries_of

if TYPE_CHECKING:
    from cxr_compress.models.original import Original
    from cxr_compress.train.config import TrainingPlan

NAME = "cxr_train"
_GO_ON = "finished epochs are kept; the same command goes on from there"
_COLUMNS = ("stage", "size", "epochs", "best_epoch", "dev_auroc", "seconds")
_NUMBERS = {
    "focal_gamma": (2.0, "Exponent of --loss=focal."),
    "mixup": (
        0.0,
        "Parameter of the Beta distribution of shares in which images and labels blend, say 0.2; 0: none.",
    ),
    "warmup_fraction": (0.05, "Share of the steps of an image size in which the learning rate climbs."),
    "ema_decay": (0.0, "Decay of the running average of weights that is scored and kept, say 0.999; 0: the weights."),
    "distill_weight": (0.0, "Share of the loss that follows --teacher instead of the labels."),
}
_OF_RECIPE = ("dev_fraction", "label_smoothing", "weight_decay", "seed")
_COMMON = {
    "from what, to where": ("model", "keras_model_file", "dataset", "data_dir", "output_dir"),
    "training": ("input_size", "epochs", "batch_size", "learning_rate", "augment", "teacher"),
    "the model's meaning": ("labels", "preset"),
    "machines": ("precision", "distribution", "cache_dir"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv, common=lambda: _COMMON)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    text, switch, choice = flags.DEFINE_string, flags.DEFINE_boolean, flags.DEFINE_enum
    text("model", None, f"Network to build. {describe_architectures()}.", flag_values=values)
    text("keras_model_file", None, "Model file to start from; a head of another size is replaced.", flag_values=values)
    define_recipe_flags(values, ("dataset",))
    text("data_dir", None, "Folder of the data set; it is only read.", flag_values=values)
    text(
        "output_dir",
        None,
        "Folder of the training: model, log, and what it needs to go on.",
        flag_values=values,
    )
    flags.DEFINE_list("input_size", ["224"], "Heights and widths of the images, pixels, in turn.", flag_values=values)
    flags.DEFINE_list("epochs", ["10"], "Training epochs, one value or one per image size.", flag_values=values)
    flags.DEFINE_list("batch_size", ["32"], "Images per step, over all workers.", flag_values=values)
    flags.DEFINE_list(
        "learning_rate", ["1e-3"], "Learning rate at the end of the warm-up; it falls to 0.", flag_values=values
    )
    define_meaning_flags(values, force=False)
    define_recipe_flags(values, ("options", "allow_missing", *_OF_RECIPE), with_defaults=True)
    choice("activation", "auto", ["auto", "sigmoid", "softmax"],
           "What the labels are: findings of their own (sigmoid), or classes that exclude one another (softmax); auto: "
           "as the data set or the model to start from says, else sigmoid.", flag_values=values)  # fmt: skip
    choice("loss", "bce", ["bce", "focal"],
           "Cross-entropy (categorical with softmax) or focal loss, per finding.", flag_values=values)  # fmt: skip
    choice("pos_weight", "balanced", ["balanced", "sqrt", "none"],
           "Weight of positives in the loss, or of each class with softmax.", flag_values=values)  # fmt: skip
    switch("augment", True, "Change each image a little, by at most the ranges of --augment_shift and its like.",
           flag_values=values)  # fmt: skip
    define_recipe_flags(values, [entry.flag for entry in entries_of(AugmentRanges)], with_defaults=True)
    for name, (default, explanation) in _NUMBERS.items():
        flags.DEFINE_float(name, default, explanation, flag_values=values)
    explanation = "Epochs of an image size without a better one on dev that end it; 0: never."
    flags.DEFINE_integer("patience", 0, explanation, lower_bound=0, flag_values=values)
    choice("precision", "auto", ["auto", "float32", "mixed_bfloat16", "mixed_float16"],
           "Number type of the arithmetic; auto is float32 without a GPU.", flag_values=values)  # fmt: skip
    text(
        "teacher",
        None,
        "Keras model that the loss also follows, see --distill_weight.",
        flag_values=values,
    )
    choice("distribution", "none", ["none", "mirrored", "multi_worker"],
           "Train on all GPUs of this machine (mirrored), or on those of TF_CONFIG (multi_worker).",
           flag_values=values)  # fmt: skip
    text("cache_dir", None, "Folder for decoded images, for sets larger than the memory.", flag_values=values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Check the flags before anything slow is imported, then train."""
    _check(values, arguments)
    with show_progress(NAME, hold_native=not values.debug) as progress:
        # Here and not above: TensorFlow takes seconds to load, and a wrong flag or --help should not wait for it.
        from cxr_compress.train.distribute import start_distribution
        from cxr_compress.train.training import Listeners, TrainingFiles, run_training

        plan = _plan(values)
        distribution = start_distribution(values.distribution, progress.log)
        files = TrainingFiles(
            Path(values.data_dir),
            Path(values.output_dir),
            *(Path(values[name].value) if values[name].value else None for name in _OPTIONAL_FILES),
        )
        listeners = Listeners(progress.log, progress.decoding, progress.on_step)
        dataset, start = None, None
        if values.keras_model_file:
            plan, dataset, start = _settled(values, plan, progress.log)
        try:
            report = run_training(plan, files, listeners, distribution, dataset=dataset, start=start)
        except KeyboardInterrupt as error:  # or one of its kind, which stays what it is
            error.args = (_GO_ON,)
            raise
        if report is None:
            progress.log("this worker is done; the chief has written the model")
            return EXIT_OK
    rows = [
        [
            index,
            stage["size"],
            len(stage["history"]),
            stage["best_epoch"],
            stage["dev_auroc"],
            stage["training_seconds"],
        ]
        for index, stage in enumerate(report["stages"], start=1)
    ]
    write_results(values.format, document=report, headers=_COLUMNS, rows=rows)
    return EXIT_OK


# Of a training, and of a run of cxr_compress, which must not be mixed with one.
_RESULTS = ("model.keras", "training.json", "recipe.json", "manifests")
_OPTIONAL_FILES = ("keras_model_file", "teacher", "cache_dir")


def _check(values: flags.FlagValues, arguments: list[str]) -> None:
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    if (values.model is None) == (values.keras_model_file is None):
        raise UsageError("expected --model=NAME to build a network, or --keras_model_file=FILE to start from; not both")
    if values.model is not None and values.model not in MODELS:
        raise UsageError(f"expected a --model of {', '.join(MODELS)}; got {values.model!r}")
    for name in ("dataset", "data_dir", "output_dir"):
        if not values[name].value:
            raise UsageError(f"expected --{name}, got none")
    if values.dataset not in DATASETS:
        raise UsageError(f"expected a --dataset of {', '.join(DATASETS)}; got {values.dataset!r}")
    if not Path(values.data_dir).exists():
        raise UsageError(f"expected --data_dir to exist, got {values.data_dir!r}")
    _check_models(values)
    _check_folder(values)
    if bool(values.teacher) != (values.distill_weight > 0):
        raise UsageError("--teacher and --distill_weight above 0 belong together: give both or neither")


def _check_folder(values: flags.FlagValues) -> None:
    """A folder with a training goes on or is refused by what it was begun with; in any other nothing is replaced."""
    folder = Path(values.output_dir)
    if values.distribution != "multi_worker":  # of whose machines only the chief writes
        check_writable(folder, to_be_made=True)
    if (folder / "run.json").exists():
        return
    for name in _RESULTS:
        if (folder / name).exists():
            raise CompressionError(
                f"--output_dir {folder} holds {name} and is no folder of a training: give another --output_dir"
            )


def _check_models(values: flags.FlagValues) -> None:
    for name in ("keras_model_file", "teacher"):
        if values[name].value and not Path(values[name].value).exists():
            raise UsageError(f"expected --{name} to be a file, got {values[name].value!r}")
        if values[name].value:
            check_keras_file(values[name].value)


def _plan(values: flags.FlagValues) -> TrainingPlan:
    """The training that the flags ask for."""
    from cxr_compress.train.config import TrainingPlan

    direct = (
        *("dataset", "match", "allow_missing", "activation", "loss", "pos_weight", "augment"),
        *("precision", "patience", *_OF_RECIPE),
    )
    return TrainingPlan(
        model=values.model or Path(values.keras_model_file).stem,
        sizes=_numbers("input_size", values.input_size, int),
        epochs=_numbers("epochs", values.epochs, int),
        batch_sizes=_numbers("batch_size", values.batch_size, int),
        learning_rates=_numbers("learning_rate", values.learning_rate, float),
        options=reader_options(values.options),
        labels=tuple(values.labels),
        positive=values.positive or "",
        preset=values.preset or "",
        color=values.color or "",
        ranges=AugmentRanges(**{entry.key: values[entry.flag].value for entry in entries_of(AugmentRanges)}),
        **{name: values[name].value for name in (*direct, *_NUMBERS)},
    )


def _settled(
    values: flags.FlagValues, plan: TrainingPlan, log: Callable[[str], None]
) -> tuple[TrainingPlan, Dataset, Original]:
    """Plan, data set and model to start from; dev shows the preset where neither file nor flags give one.

    Raises:
        DataError: dev contradicts the flags or the file, or neither they nor dev show how images are prepared.
    """
    from cxr_compress.cli.open_model import Dev, settle_pixels
    from cxr_compress.models.meaning import Pixels
    from cxr_compress.train.training import read_start, read_training_set

    path, size = Path(values.keras_model_file), plan.sizes[0]
    original, dataset = read_start(path, plan), read_training_set(plan, Path(values.data_dir))
    if original.about is not None:
        return plan, dataset, original
    count, by_position = original.change.outputs, plan.match == "position"
    try:
        match = match_findings(original.names.findings, dataset.findings, logits=count, by_position=by_position)
    except DataError as error:
        log(f"note: how images are prepared for {path.name} was not checked on dev: {error}")
        return plan, dataset, original

    def dev(spec: PreprocessSpec) -> Dev:
        images = decode_split(dataset.dev, spec, cache_dir=values.cache_dir)
        return images, dataset.dev.labels, dataset.dev.patients, lambda _: match

    height, width, channels = original.image_shape
    shape = (height or size, width or size, channels)
    spec, source = settle_pixels(original, shape, dev, log, color=values.color, force=None)
    log(f"note: {original.assumed(original.names.findings or match.findings, spec, source)}")
    if original.pixels.spec is None:
        plan = dataclasses.replace(plan, preset=preset_name(spec))
        original = dataclasses.replace(original, pixels=Pixels(spec, source))
    return plan, dataset, original


def _numbers(name: str, texts: Sequence[str], kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(map(kind, texts))
    except ValueError:
        raise UsageError(f"expected --{name} as numbers separated by commas, got {','.join(texts)!r}") from None

"""Train or fine-tune a classifier of chest images; resumes when the output folder holds its run.

    cxr_train --model=chexnet --dataset=kermany --data_dir=chest_xray --output_dir=run --input_size=64,112 --epochs=8,4
    cxr_train --keras_model_file=base.keras --dataset=csv --data_dir=labels.csv --output_dir=run --input_size=224

Images may start small and grow (--input_size): a step at 64 px costs an eighth of one at 224. --epochs, --batch_size
and --learning_rate take one value, or one per size. The best epoch is chosen by the mean AUROC on dev, patients set
aside from train, or with --distill_weight by the loss there; test is never looked at (cxr_evaluate does that). The
folder receives model.keras, training.json, and per size run.json, log.jsonl, TensorBoard events and the last epoch's
whole state, from which the same command goes on; other flags are refused with what differs. With
--distribution=multi_worker start the same command on every machine, each with its own TF_CONFIG: the first one, the
chief, writes. Exit codes: 0 done, 2 wrong flag, data or model or a lost worker, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError, quiet_native_stderr, reader_options, run_command
from cxr_compress.cli.flags import define_meaning_flags
from cxr_compress.cli.output import write_results
from cxr_compress.cli.recipe_flags import define_recipe_flags
from cxr_compress.data import DATASETS, decode_split, load_dataset
from cxr_compress.data.dataset import match_findings
from cxr_compress.device.spec import PreprocessSpec, preset_name
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.files import check_keras_file, check_writable
from cxr_compress.models.architectures import MODELS, describe_architectures
from cxr_compress.recipe import AugmentRanges
from cxr_compress.recipe.fields import entries_of

if TYPE_CHECKING:
    from cxr_compress.train.transfer import TrainingPlan

NAME = "cxr_train"
_SECONDS_BETWEEN_LINES = 10
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
    with _terminal() as terminal, quiet_native_stderr(NAME, enabled=not values.debug) as say:
        # Here and not above: TensorFlow takes seconds to load, and a wrong flag or --help should not wait for it.
        from cxr_compress.train.distribute import start_distribution
        from cxr_compress.train.training import Listeners, TrainingFiles, run_training

        progress = _Progress(say, terminal)
        plan = _plan(values)
        distribution = start_distribution(values.distribution, progress.tell)
        files = TrainingFiles(
            Path(values.data_dir),
            Path(values.output_dir),
            *(Path(values[name].value) if values[name].value else None for name in _OPTIONAL_FILES),
        )
        listeners = Listeners(progress.tell, progress.decoding, progress.step if terminal else None)
        if values.keras_model_file:
            plan = _held_against_dev(values, plan, progress.tell)
        try:
            report = run_training(plan, files, listeners, distribution)
        except KeyboardInterrupt as error:  # or one of its kind, which stays what it is
            error.args = (_GO_ON,)
            raise
        if report is None:
            progress.tell("this worker is done; the chief has written the model")
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
    from cxr_compress.train.transfer import TrainingPlan

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


def _held_against_dev(values: flags.FlagValues, plan: TrainingPlan, say: Callable[[str], None]) -> TrainingPlan:
    """The plan, with the preset that dev shows where nobody says how images are prepared for the model to start from.

    Raises:
        DataError: dev shows that what is said is wrong, or nothing is said and dev cannot tell.
    """
    from cxr_compress.cli.open_model import Dev, settle_pixels
    from cxr_compress.models.original import read_original

    size = plan.sizes[0]
    path = Path(values.keras_model_file)
    preset, color = plan.preset or None, plan.color or None
    original = read_original(
        path, labels=plan.labels, positive=plan.positive, preset=preset, color=color, input_size=size
    )
    if original.about is not None:
        return plan
    dataset = load_dataset(
        plan.dataset,
        Path(values.data_dir),
        dev_fraction=plan.dev_fraction,
        seed=plan.seed,
        allow_missing=plan.allow_missing,
        options=plan.options,
    )
    count, by_position = original.change.outputs, plan.match == "position"
    try:
        match = match_findings(original.names.findings, dataset.findings, logits=count, by_position=by_position)
    except DataError as error:
        say(f"note: how images are prepared for {path.name} was not checked on dev: {error}")
        return plan

    def dev(spec: PreprocessSpec) -> Dev:
        images = decode_split(dataset.dev, spec, cache_dir=values.cache_dir)
        return images, dataset.dev.labels, dataset.dev.patients, lambda _: match

    known, (height, width, channels) = original.pixels.spec, original.image_shape
    shape = (height or size, width or size, channels)
    spec, where = settle_pixels(original, shape, dev, say, color=values.color, force=None)
    say(f"note: {original.assumed(original.names.findings or match.findings, spec, where)}")
    return plan if known is not None else dataclasses.replace(plan, preset=preset_name(spec))


def _numbers(name: str, texts: Sequence[str], kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(map(kind, texts))
    except ValueError:
        raise UsageError(f"expected --{name} as numbers separated by commas, got {','.join(texts)!r}") from None


@contextlib.contextmanager
def _terminal() -> Iterator[TextIO | None]:
    """Stderr itself, if a person watches it: what TensorFlow says is held back from it later."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield None
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream


class _Progress:
    """A bar per epoch on a terminal; elsewhere lines with the seconds since the start."""

    def __init__(self, say: Callable[[str], None], terminal: TextIO | None) -> None:
        self._say = say
        self._terminal = terminal
        self._bar: Any = None
        self._started = self._told = time.monotonic()

    def tell(self, line: str) -> None:
        """Write one line now."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._told = time.monotonic()
        self._say(f"[{self._told - self._started:5.0f} s] {line}")

    def decoding(self, split: str, done: int, total: int) -> None:
        """Write a line when a split is read, and every few seconds before."""
        if done == total or time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self.tell(f"read {done} of {total} {split} images")

    def step(self, epoch: int, batch: int, batches: int, loss: float) -> None:
        """Move the bar of an epoch."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=batches, desc=f"epoch {epoch}", unit="batch", file=self._terminal, leave=False)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update(batch - self._bar.n)

"""The images that cxr_convert uses: a folder, table, set or cache for the ranges, a set's dev for thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from cxr_compress.cli.app import Say, UsageError, reader_options
from cxr_compress.cli.convert_source import Source
from cxr_compress.data import DATASETS, Dataset, decode_split, load_dataset
from cxr_compress.data.cache import open_cache_file
from cxr_compress.data.image_rows import OTHER_NAMES, RESERVED, in_folder
from cxr_compress.data.readers.base import read_dataset
from cxr_compress.data.splits import Split
from cxr_compress.data.table_file import read_table
from cxr_compress.device.decode import IMAGE_SUFFIXES
from cxr_compress.device.preprocess import load_uint8, normalize
from cxr_compress.device.sources import look_into
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.evaluate import Match, file_logits, fit_info, fittable, match_findings
from cxr_compress.evaluate.first_look import FirstLook, settle_on_dev, take_first_look
from cxr_compress.lite.calibration import (
    MIN_IMAGES,
    ExpectedInput,
    calibration_warnings,
    collect_images,
    pick_evenly,
)
from cxr_compress.quant_types import TYPES

if TYPE_CHECKING:
    from cxr_compress.device.modelinfo import ModelInfo
    from cxr_compress.lite import LiteModel
    from cxr_compress.models import ModelAbout


_CACHE = ".npy"
_TABLES = (".csv", ".csv.gz")
_PATH = "path"
Pixels = np.ndarray


def define_calibration_flags(values: flags.FlagValues) -> None:
    """Define them."""
    text = (
        "Training images for the integer types: a folder, a table (.csv with a column path), a cache of cxr_data (.npy)"
        " or, with --dataset, the folder of that set. Of a folder with parts train and test, train alone is taken."
    )
    flags.DEFINE_string("calibration_data", None, text, flag_values=values)
    flags.DEFINE_enum("dataset", None, DATASETS, "Takes its training part.", flag_values=values)
    flags.DEFINE_list("options", [], "Options of the data set's reader, as name=value,...", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Folder of the data set; it is only read.", flag_values=values)
    text = (
        "Where the calibration images have no labels: take the ranges of the integer types from varied copies of them "
        "too. Ranges of images of healthy people alone cut off what the model answers to the ill."
    )
    flags.DEFINE_boolean("vary_images", True, text, flag_values=values)


def check_calibration_flags(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        UsageError: a set without its folder, or two of them.
    """
    if values.calibration_data and values.data_dir:
        raise UsageError("expected one of --calibration_data and --data_dir, got both")
    where = values.data_dir or values.calibration_data
    if (values.dataset and not where) or (values.data_dir and not values.dataset):
        raise UsageError("--dataset and --data_dir belong together: give both or neither")


def has_calibration(values: flags.FlagValues) -> bool:
    """Whether the user names calibration images."""
    return bool(values.dataset or values.calibration_data)


def calibration_set(values: flags.FlagValues) -> str:
    """What they are, in a word, for the recipe that a file carries; no path, which may name a patient."""
    if values.dataset or not values.calibration_data:
        return values.dataset or ""
    kind = _kind(Path(values.calibration_data))
    return {_CACHE: "cache", ".csv": "table"}.get(kind, "folder")


def named_dataset(values: flags.FlagValues) -> Dataset | None:
    """The data set of --dataset; None where none is named.

    Raises:
        DataError: it cannot be read.
    """
    if not values.dataset:
        return None
    where = Path(values.data_dir or values.calibration_data)
    return load_dataset(values.dataset, where, options=reader_options(values.options))


@dataclass(frozen=True)
class CalibrationImages:
    """Images that ranges come from and answers are compared on.

    Attributes:
        batches: of one image, preprocessed.
        count: how many.
        varied: whether copies are among them.
    """

    batches: Iterator[np.ndarray]
    count: int
    varied: bool


def calibration_images(
    values: flags.FlagValues, dataset: Dataset | None, spec: PreprocessSpec, about: ModelAbout | None, say: Say
) -> CalibrationImages | None:
    """The calibration images, and varied copies where nobody knows what they show; None where the user names none.

    Args:
        values: the flags.
        dataset: what `named_dataset` gave.
        spec: how images become the input.
        about: what the model's file says of the images it was trained on; others are warned of.
        say: is told what is taken of a folder, and what is odd about the images.

    Raises:
        DataError: there is nothing of the kind, it cannot be used, or there are too few.
    """
    if not has_calibration(values):
        return None
    images, labeled = _read_images(values, dataset, spec, say)
    calibrated = any(TYPES[name].calibrated for name in values.quant_type)
    # The user's own images are judged, before copies hide that they are all alike or too few.
    checked = collect_images(
        iter(normalize(images, spec)[:, np.newaxis]),
        spec.input_shape,
        values.calibration_steps,
        dtype=np.uint8 if spec.input == "uint8" else np.float32,
        least=MIN_IMAGES if calibrated else 1,
    )
    for line in calibration_warnings(checked, _expected_input(spec, about)):
        say(f"warning: {line}")
    varied = calibrated and not labeled and values.vary_images
    if varied:
        from cxr_compress.structured import vary_images

        images = vary_images(images)
        say(f"calibrating on {len(checked)} images and varied copies of them, {len(images)} in all (--vary_images)")
        checked = normalize(images, spec)
    return CalibrationImages(iter(checked[:, np.newaxis]), len(checked), varied)


def _read_images(
    values: flags.FlagValues, dataset: Dataset | None, spec: PreprocessSpec, say: Say
) -> tuple[Pixels, bool]:
    """At most --calibration_steps of them as uint8, and whether they have labels."""
    steps = values.calibration_steps
    if dataset is not None:
        for note in dataset.notes:
            say(f"note: {note}")
        return _of_split(dataset.train, spec, steps), dataset.labeled
    where = Path(values.calibration_data)
    kind = _kind(where)
    if kind == _CACHE:
        rows = open_cache_file(where, spec)
        return np.stack([rows[row] for row in pick_evenly(range(len(rows)), steps)]), False
    if kind:
        return _of_table(where, reader_options(values.options), spec, steps, say)
    return _of_files(_images_in(where, say), spec, steps), False


def _expected_input(spec: PreprocessSpec, about: ModelAbout | None) -> ExpectedInput:
    """What the images should look like: as the model was trained, where its file says that, else as the flags say."""
    if about is None:
        return ExpectedInput.of(spec)
    trained = replace(about.preprocess, height=spec.height, width=spec.width, input=spec.input)
    # Flags that change what is fed cannot be held against the file's own; they are compared where they can be.
    return ExpectedInput.of(trained if trained.input_shape == spec.input_shape else spec, about.images)


def _kind(path: Path) -> str:
    """What a path is by its name: .npy, .csv, or nothing for anything else."""
    name = path.name.lower()
    if path.is_dir():
        return ""
    return _CACHE if name.endswith(_CACHE) else ".csv" if name.endswith(_TABLES) else ""


def _of_split(images: Split, spec: PreprocessSpec, steps: int) -> Pixels:
    return decode_split(images.take(pick_evenly(range(len(images)), steps)), spec)


def _of_files(paths: Sequence[Path], spec: PreprocessSpec, steps: int) -> Pixels:
    return np.stack([load_uint8(path, spec) for path in pick_evenly(paths, steps)])


def _of_table(path: Path, options: dict[str, str], spec: PreprocessSpec, steps: int, say: Say) -> tuple[Pixels, bool]:
    """The training part of a table with labels, as the reader of data sets parts it; all of one with paths alone."""
    column = options.get("path_column", _PATH)
    table = read_table(path, who="csv", needed=(column,), optional=RESERVED, other_names=OTHER_NAMES, exact=True)
    if set(table.columns) - {column, *RESERVED} or "split" in table.columns:
        dataset = read_dataset("csv", path, options=options)
        for note in dataset.notes:
            say(f"note: {note}")
        return _of_split(dataset.train, spec, steps), True
    for note in table.notes:
        say(f"note: {note}")
    locate = in_folder(path.parent)
    return _of_files([locate(row[column]) for row in table.rows], spec, steps), False


def _images_in(folder: Path, say: Say) -> Sequence[Path]:
    """The images of a folder and its sub-folders, sorted by path; what else is there is said."""
    if not folder.exists():
        raise DataError(f"--calibration_data {folder} is no folder: give a folder of images, a .csv or a .npy cache")
    if not folder.is_dir():
        raise DataError(f"expected --calibration_data to be a folder, a .csv or a .npy cache, got {folder.name}")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        say("calibrating on the part train of the folder: what a model is scored on must not shape it")
        folder /= "train"
    content = look_into(folder)
    if not content.images:
        raise DataError(f"--calibration_data {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): check the folder")
    if note := content.note():
        say(f"note: files of --calibration_data: {note}")
    return content.images


# Dev is parted by patient and seed, but of which images a model from elsewhere was trained, nobody here knows.
_HELD_OUT = "which the model must not have been trained on"
_REPORT_EVERY = 128


def define_fit_flag(values: flags.FlagValues) -> None:
    """Define it."""
    text = (
        "With --dataset: fit the probabilities and choose the thresholds of each file on the dev part of that set. "
        "Images that the model was trained on flatter both."
    )
    flags.DEFINE_boolean("fit_thresholds", True, text, flag_values=values)


def check_fit_flag(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        UsageError: it is asked for without a data set.
    """
    if values["fit_thresholds"].present and values.fit_thresholds and not values.dataset:
        raise UsageError("--fit_thresholds needs images with labels: give --dataset and --data_dir")


@dataclass(frozen=True)
class DevImages:
    """The dev images of a set, and which findings of the model they can tell about.

    Attributes:
        dataset: the set.
        images: uint8, its dev images decoded.
        match: the findings that both have.
        fitted: those of them that can be fitted, and are to be.
    """

    dataset: Dataset
    images: np.ndarray
    match: Match
    fitted: Match

    def choose_spec(self, source: Source, values: flags.FlagValues, say: Say) -> tuple[PreprocessSpec, str]:
        """The preprocessing of a model whose file does not say it: what dev shows, or the user's if dev allows it.

        Returns:
            It, and what speaks against it where --force overrules that.

        Raises:
            CompressionError: dev cannot tell, or shows that another preset is better than the user's.
        """
        from cxr_compress.models.meaning import ask_for_preset, possible_presets

        pixels = source.original.pixels
        if pixels.spec is not None and not pixels.preset:
            return pixels.spec, ""
        specs = possible_presets(source.image_shape, color=values.color)
        return settle_on_dev(
            source.answer,
            self.images,
            self.labels,
            self.patients,
            specs,
            preset=pixels.preset,
            own=pixels.spec,
            ask=ask_for_preset(Path(values.keras_model_file or values.saved_model_dir).name),
            tell=say,
            doubt=pixels.doubt,
            force=values.force,
            columns=list(self.match.logits),
        )

    def look(self, source: Source, spec: PreprocessSpec, assumed: str) -> FirstLook:
        """The original model on dev."""
        return take_first_look(
            source.answer,
            self.images,
            self.labels,
            self.patients,
            self.match.findings,
            spec=spec,
            assumed=assumed,
            columns=list(self.match.logits),
            unsaid=source.original.unsaid,
        )

    @property
    def labels(self) -> np.ndarray:
        """(n, k) of the findings that both have."""
        return self.dataset.dev.labels[:, list(self.match.labels)]

    @property
    def patients(self) -> tuple[str, ...]:
        """(n,) whose images they are."""
        return self.dataset.dev.patients

    def fit(self, info: ModelInfo, lite: LiteModel, say: Say, *, force: bool = False) -> ModelInfo:
        """What one file is to say of itself, with its own calibration and thresholds.

        Raises:
            DataError: the calibration of a finding falls, and `force` is not given.
        """
        if not self.fitted.findings:
            return info
        logits = file_logits(lite.content, info, self.images, progress=partial(_progress, say, lite.quant_type))
        columns = list(self.fitted.logits)
        return fit_info(
            info,
            self.dataset.dev.labels[:, list(self.fitted.labels)],
            logits[:, columns],
            # What the offsets undo: the class weights of the loss.
            np.exp(-np.asarray(info.logit_offset)[columns]),
            images=f"{len(self.dataset.dev)} dev images of {self.dataset.name}",
            held_out=_HELD_OUT,
            columns=columns,
            force=force,
        )


def dev_images(values: flags.FlagValues, dataset: Dataset | None, source: Source, say: Say) -> DevImages | None:
    """The images to look at and to fit on; None where no set is given, and with a line where it tells nothing.

    Raises:
        DataError: an image cannot be read, or the set has not as many findings as --match=position needs.
    """
    if dataset is None:
        return None
    from cxr_compress.models.meaning import possible_presets

    by_position, count = values.match == "position", source.original.change.outputs
    try:
        match = match_findings(source.original.names.findings, dataset.findings, logits=count, by_position=by_position)
    except DataError as error:
        if by_position:
            raise
        say(f"warning: NOT CHECKED on dev, and thresholds stay at 0.5: {error}")
        return None
    for whose, names in (("the model", match.only_model), ("the data set", match.only_dataset)):
        if names:
            say(f"note: not looked at on dev, only {whose} has {', '.join(names)}")
    if match.by_position:
        say(f"note: outputs are matched by position, not by name: {', '.join(match.findings)}")
    known = set(fittable(dataset.dev.labels)) if values.fit_thresholds else set()
    pairs = [pair for pair in zip(match.findings, match.logits, match.labels, strict=True) if pair[2] in known]
    if not pairs and values.fit_thresholds:
        say("thresholds stay at 0.5: no finding of the model is both present and absent among the dev images")
    findings, logits, labels = zip(*pairs, strict=True) if pairs else ((), (), ())
    # Images are decoded alike for every preprocessing of one size.
    spec = source.original.pixels.spec or next(iter(possible_presets(source.image_shape, color=values.color).values()))
    return DevImages(dataset, decode_split(dataset.dev, spec), match, Match(findings, logits, labels))


def _progress(say: Say, name: str, done: int, total: int) -> None:
    if done == total or done % _REPORT_EVERY == 0:
        say(f"{name}: thresholds, {done} of {total} dev images")

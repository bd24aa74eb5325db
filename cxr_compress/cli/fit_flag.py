"""Thresholds and probabilities of the files of cxr_convert, chosen on the dev part of the data set that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from cxr_compress.cli.app import Say, UsageError
from cxr_compress.cli.convert_source import Source
from cxr_compress.data import Dataset, decode_split
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.evaluate import Match, file_logits, fit_info, fittable, match_findings
from cxr_compress.evaluate.first_look import FirstLook, settle_on_dev, take_first_look

if TYPE_CHECKING:
    from cxr_compress.device.modelinfo import ModelInfo
    from cxr_compress.lite import LiteModel

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

"""The model that cxr_convert exports, loaded and understood: its outputs, its preprocessing, and what was assumed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.app import Say, UsageError
from cxr_compress.device.modelinfo import logits_of
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.lite import FrozenFunction, freeze
from cxr_compress.lite.freeze import load_saved_model
from cxr_compress.lite.head import HEADS, LOGITS, LOGITS_AND_CAM, frozen_pair, headed, read_frozen_head

if TYPE_CHECKING:
    from cxr_compress.models import ModelAbout
    from cxr_compress.models.logits_head import HeadChange
    from cxr_compress.models.meaning import Inside as InsideLayers
    from cxr_compress.models.meaning import Names, Pixels

_PAIR = 2


def define_head_flag(values: flags.FlagValues) -> None:
    """Define which outputs the files have."""
    text = (
        "What the files give: logits, or logits+cam with the class activation map as a second output, which shows "
        "where in an image each logit comes from (cxr_predict --heatmap_dir); needs a Keras file."
    )
    flags.DEFINE_enum("head", LOGITS, HEADS, text, flag_values=values)


def check_head_flag(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        UsageError: the map of a SavedModel.
    """
    if values.head == LOGITS_AND_CAM and values.keras_model_file is None:
        raise UsageError("--head=logits+cam reads the last feature map of a Keras file: give --keras_model_file")


@dataclass(frozen=True)
class Source:
    """A model ready to convert, and what is known of it.

    Attributes:
        frozen: it, ending in logits, or in probabilities where no logits can be had.
        change: what its end was, and what was done to it.
        names: which output is what.
        pixels: how an image becomes its input, as far as that is known.
        inside: layers in front of it that normalize; None where there are none.
        about: what its file says.
    """

    frozen: FrozenFunction
    change: HeadChange
    names: Names
    pixels: Pixels
    inside: InsideLayers | None = None
    about: ModelAbout | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for every output, numbers where nobody named them."""
        count = self.change.outputs
        return self.names.findings or tuple(f"finding_{number}" for number in range(1, count + 1))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of its input."""
        _, height, width, channels = self.frozen.input_shape
        return height, width, channels

    @property
    def unsaid(self) -> bool:
        """Whether neither its end nor its file says what its logits are of."""
        return self.change.unsaid and self.about is None

    @property
    def activation(self) -> str:
        """What turns its logits into probabilities."""
        exclusive = self.about is not None and self.about.activation == "softmax"
        return "softmax" if exclusive else self.change.probabilities_by


def load_source(values: flags.FlagValues, say: Say) -> Source:
    """Load what the flags name, find out what it means, and freeze it.

    Raises:
        CompressionError: something that has to be known is not said; the message names the flag.
    """
    start = time.perf_counter()
    if values.saved_model_dir is not None:
        tags = tuple(values.saved_model_tag_set)
        key, size = values.saved_model_signature_key, values.input_size
        frozen = load_saved_model(values.saved_model_dir, signature_key=key, tags=tags, input_size=size)
        _timed("load and freeze", start, say)
        return _of_graph(values, frozen, say)
    # Here and not above: importing Keras loads TensorFlow, slow and noisy; a wrong flag should not wait for it.
    from cxr_compress.models.files import load_model, read_about
    from cxr_compress.models.logits_head import read_head, softmax_classes
    from cxr_compress.models.meaning import normalizes_inside

    path = Path(values.keras_model_file)
    about, model = read_about(path), load_model(path, lambda note: say(f"note: {note}"))
    _timed("load", start, say)
    inside = normalizes_inside(model)
    names, change, reason = None, None, ""
    try:
        if softmax_classes(model) == _PAIR:
            names = _names(values, _PAIR, pair=True, about=about)
        plain, change = read_head(model, positive=names.positive if names else None)
        reason = change.note
    except UnsupportedLayerError as error:
        plain, reason = model, str(error)
    if change is None or change.gives != "logits":
        # What layers do not show, operators may: the graph is read again, and its refusal is the last word.
        frozen = freeze(headed(model, values.head), input_size=values.input_size)
        return _of_graph(values, frozen, say, about=about, inside=inside, reason=reason)
    start = time.perf_counter()
    frozen = freeze(headed(plain, values.head), input_size=values.input_size)
    _timed("freeze", start, say)
    names = names or _names(values, change.outputs, pair=False, about=about)
    return _known(values, replace(frozen, gives="logits"), change, names, say, about, inside)


def _of_graph(
    values: flags.FlagValues,
    frozen: FrozenFunction,
    say: Say,
    *,
    about: ModelAbout | None = None,
    inside: InsideLayers | None = None,
    reason: str = "",
) -> Source:
    """A graph of operators, which has no layers to read."""
    pair = frozen_pair(frozen)
    names = _names(values, frozen.output_shape[-1], pair=pair, about=about)
    try:
        made, change = read_frozen_head(frozen, positive=names.positive)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(reason or str(error)) from error
    if reason and change.gives != "logits":
        change = replace(change, note=f"{change.note}: {_first_clause(reason)}")
    return _known(values, made, change, names, say, about, inside)


def _known(  # noqa: PLR0917 - what is known of a model
    values: flags.FlagValues,
    frozen: FrozenFunction,
    change: HeadChange,
    names: Names,
    say: Say,
    about: ModelAbout | None,
    inside: InsideLayers | None,
) -> Source:
    from cxr_compress.models.meaning import Inside, read_pixels
    from cxr_compress.models.original import logits_taken

    _, height, width, channels = frozen.input_shape
    if frozen.pixel_input:
        inside = Inside(("input",), "it takes uint8 pixels of 0 to 255", "raw")
    for note in frozen.notes:
        say(f"note: {note}")
    pixels = read_pixels(
        (height, width, channels),
        about=about,
        inside=inside,
        preset=values.preset,
        color=values.color,
    )
    if change.note:
        say(f"note: {change.note}")
    if change.unsaid and about is None:
        say(f"note: {logits_taken(change.outputs)}")
    if inside is not None:
        say(f"note: the model normalizes inside ({inside.name}: {inside.text})")
    return Source(frozen, change, names, pixels, inside, about)


def _names(values: flags.FlagValues, classes: int, *, pair: bool, about: ModelAbout | None) -> Names:
    from cxr_compress.models.meaning import name_outputs

    told = {"labels": values.labels, "positive": values.positive or "", "about": about}
    return name_outputs(classes, pair=pair, force=values.force, **told)


def _timed(stage: str, start: float, say: Say) -> None:
    say(f"{stage} {time.perf_counter() - start:.1f} s")


def _first_clause(text: str) -> str:
    """The finding of a message without its advice."""
    return text.rsplit("probabilities that they are", 1)[-1].rsplit("): ", 1)[-1].partition(": give")[0]


def answers(frozen: FrozenFunction, activation: str) -> Any:
    """A function from preprocessed images (n, h, w, c) to scores (n, k) that rise with each finding."""
    import numpy as np
    import tensorflow as tf

    from cxr_compress.models.original import rising_scores

    def answer(batch: Any) -> Any:
        rows = [tf.nest.flatten(frozen.function(tf.constant(image[np.newaxis])))[0].numpy()[0] for image in batch]
        return rising_scores(logits_of(np.asarray(rows), frozen.gives, activation), activation)

    return answer

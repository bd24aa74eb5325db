"""The model that cxr_convert exports, loaded and understood: its outputs, its preprocessing, and what was assumed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.app import Say
from cxr_compress.device.modelinfo import logits_of
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.lite import FrozenFunction, freeze
from cxr_compress.lite.freeze import load_saved_model
from cxr_compress.lite.head import frozen_pair, headed, read_frozen_head

if TYPE_CHECKING:
    from cxr_compress.models import ModelAbout
    from cxr_compress.models.logits_head import HeadChange
    from cxr_compress.models.meaning import Inside as InsideLayers
    from cxr_compress.models.meaning import Names
    from cxr_compress.models.original import Original

_PAIR = 2


@dataclass(frozen=True)
class Source:
    """A model ready to convert, and what it means.

    Attributes:
        frozen: it, ending in logits, or in probabilities where no logits can be had.
        original: what is known of it; its `model` is the frozen function where layers do not show the end.
    """

    frozen: FrozenFunction
    original: Original

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for every output, numbers where nobody named them."""
        count = self.original.change.outputs
        return self.original.names.findings or tuple(f"finding_{number}" for number in range(1, count + 1))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of its input."""
        _, height, width, channels = self.frozen.input_shape
        return height, width, channels

    def answer(self, batch: Any) -> Any:
        """From preprocessed images (n, height, width, channels) to scores (n, k) that rise with each finding."""
        import numpy as np
        import tensorflow as tf

        from cxr_compress.models.original import rising_scores

        function, activation = self.frozen.function, self.original.activation
        rows = [tf.nest.flatten(function(tf.constant(image[np.newaxis])))[0].numpy()[0] for image in batch]
        return rising_scores(logits_of(np.asarray(rows), self.frozen.gives, activation), activation)


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
        return _of_graph(values, Path(values.saved_model_dir), frozen, say)
    # Here and not above: importing Keras loads TensorFlow, slow and noisy; a wrong flag should not wait for it.
    from cxr_compress.models.files import load_model, read_about
    from cxr_compress.models.logits_head import read_head, softmax_classes
    from cxr_compress.models.meaning import normalizes_inside

    path = Path(values.keras_model_file)
    loading: list[str] = []
    about, model = read_about(path), load_model(path, loading.append)
    _timed("load", start, say)
    known = _Known(about, normalizes_inside(model), tuple(loading))
    names, change, refusal = None, None, None
    try:
        if softmax_classes(model) == _PAIR:
            names = _names(values, _PAIR, pair=True, about=about)
        plain, change = read_head(model, positive=names.positive if names else None)
    except UnsupportedLayerError as error:
        plain, refusal = model, error
    if change is None or change.gives != "logits":
        # What layers do not show, operators may: the graph is read again, and its refusal is the last word.
        frozen = freeze(headed(model, values.head), input_size=values.input_size)
        reason = refusal.reason if refusal else change.reason if change else ""
        return _of_graph(values, path, frozen, say, known, refusal=refusal, reason=reason)
    start = time.perf_counter()
    frozen = freeze(headed(plain, values.head), input_size=values.input_size)
    _timed("freeze", start, say)
    names = names or _names(values, change.outputs, pair=False, about=about)
    frozen = replace(frozen, gives="logits")
    return _understood(values, path, frozen, plain, change, names, known, say)


@dataclass(frozen=True)
class _Known:
    """What a Keras file and its layers say of the model, whatever its end is.

    Attributes:
        about: what the file says; None where it says nothing.
        inside: layers in front that normalize; None where there are none.
        loading: what was taken otherwise than the file has it, a line each.
    """

    about: ModelAbout | None = None
    inside: InsideLayers | None = None
    loading: tuple[str, ...] = ()


def _of_graph(
    values: flags.FlagValues,
    path: Path,
    frozen: FrozenFunction,
    say: Say,
    known: _Known | None = None,
    *,
    refusal: UnsupportedLayerError | None = None,
    reason: str = "",
) -> Source:
    """A graph of operators, which has no layers to read; `refusal` and `reason` say why layers did not do."""
    known = known or _Known()
    names = _names(values, frozen.output_shape[-1], pair=frozen_pair(frozen), about=known.about)
    try:
        frozen, change = read_frozen_head(frozen, positive=names.positive)
    except UnsupportedLayerError as error:
        raise refusal or error from error
    if reason and change.gives != "logits":
        change = replace(change, note=f"{change.note}: {reason}")
    return _understood(values, path, frozen, frozen, change, names, known, say)


def _understood(  # noqa: PLR0917 - what is known of a model
    values: flags.FlagValues,
    path: Path,
    frozen: FrozenFunction,
    model: Any,
    change: HeadChange,
    names: Names,
    known: _Known,
    say: Say,
) -> Source:
    from cxr_compress.models.meaning import Inside, read_pixels
    from cxr_compress.models.original import Original

    _, height, width, channels = frozen.input_shape
    inside = Inside(("input",), "it takes uint8 pixels of 0 to 255", "raw") if frozen.pixel_input else known.inside
    pixels = read_pixels(
        (height, width, channels), about=known.about, inside=inside, preset=values.preset, color=values.color
    )
    loading = (*known.loading, *frozen.notes)
    original = Original(path, model, change, names, pixels, inside, known.about, loading)
    for note in original.notes():
        say(f"note: {note}")
    return Source(frozen, original)


def _names(values: flags.FlagValues, classes: int, *, pair: bool, about: ModelAbout | None) -> Names:
    from cxr_compress.models.meaning import name_outputs

    told = {"labels": values.labels, "positive": values.positive or "", "about": about}
    return name_outputs(classes, pair=pair, force=values.force, **told)


def _timed(stage: str, start: float, say: Say) -> None:
    say(f"{stage} {time.perf_counter() - start:.1f} s")

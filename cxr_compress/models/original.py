"""The model that everything else is measured against, loaded and understood: its outputs and its preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.modelinfo import logits_of
from cxr_compress.device.spec import PreprocessSpec, preset_name
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.models.about import ModelAbout
from cxr_compress.models.files import load_model, read_about
from cxr_compress.models.logits_head import HeadChange, read_head, softmax_classes
from cxr_compress.models.meaning import Inside, Names, Pixels, name_outputs, normalizes_inside, read_pixels

_PAIR, _FLAT_RANK = 2, 2
_IMAGE_RANK = 4
_CHANNELS = (1, 3)
_OTHER_RANKS = {
    2: "the model takes a vector: put keras.layers.Flatten() behind an input of (height, width, channels) in front",
    3: "the model takes images without a channel axis: put keras.layers.Reshape((height, width)) behind an input of "
    "(height, width, 1) in front of it",
    5: "the model takes several images or a volume at once, and one image is what a device has: only models of one "
    "image are taken",
}
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Original:
    """A Keras model from a file, and what it means.

    Attributes:
        path: the file.
        model: it, without the activation at its end; as it came where it gives probabilities that cannot be undone.
        change: what its end was, and what was done to it.
        names: which output is what.
        pixels: how an image becomes its input, as far as that is known.
        inside: layers in front of it that normalize; None where there are none.
        about: what its file says; None where it says nothing.
        loading: what was taken otherwise than the file has it, a line each.
    """

    path: Path
    model: Any
    change: HeadChange
    names: Names
    pixels: Pixels
    inside: Inside | None
    about: ModelAbout | None
    loading: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels) of its input; None where it takes any."""
        _, height, width, channels = self.model.input_shape
        return height, width, channels

    @property
    def activation(self) -> str:
        """What turns its logits into probabilities: "sigmoid" or "softmax"."""
        exclusive = self.about is not None and self.about.activation == "softmax"
        return "softmax" if exclusive else self.change.probabilities_by

    @property
    def unsaid(self) -> bool:
        """Whether neither its end nor its file says what its logits are of."""
        return self.change.unsaid and self.about is None

    def notes(self) -> list[str]:
        """What a user should know about how it was read, a sentence each."""
        found = [*self.loading, *([self.change.note] if self.change.note else [])]
        if self.unsaid:
            found.append(logits_taken(self.change.outputs))
        if self.inside is not None:
            found.append(f"the model normalizes inside ({self.inside.name}: {self.inside.text})")
        return found

    def assumed(
        self, findings: Sequence[str], spec: PreprocessSpec, where: str, *, activation: str | None = None
    ) -> str:
        """What is taken for granted about it, in one line; `activation` where more is known than its own."""
        kind = "classes that exclude one another" if (activation or self.activation) == "softmax" else "findings"
        named = self.names.source if self.names.findings else "in the order of the data set"
        return (
            f"{kind} {', '.join(findings)} ({named}); preprocessing {preset_name(spec)} at {spec.height} x "
            f"{spec.width} px ({where})"
        )

    def logits_of(self, outputs: npt.ArrayLike) -> Floats:
        """What the model gave (n, outputs) as logits (n, k): those of the finding alone where it gave a pair."""
        found = np.asarray(outputs)
        if self.change.gives != "logits" and self.names.positive is not None:
            found = found[:, self.names.positive : self.names.positive + 1]
        return logits_of(found, self.change.gives, self.activation)

    def answer(self) -> Callable[[Floats], npt.NDArray[np.float64]]:
        """From preprocessed float32 (n, height, width, channels) to `rising_scores` (n, k)."""
        return lambda images: rising_scores(self.logits_of(self.model(images, training=False)), self.activation)


def logits_taken(count: int) -> str:
    """How outputs are taken of which nothing says what they are."""
    each = "its output is taken as a logit" if count == 1 else f"its {count} outputs are taken as logits of findings"
    more = "" if count == 1 else "; classes that exclude one another need a softmax as the last layer"
    return f"no sigmoid or softmax ends the model: {each}, whose sigmoid is the probability{more}"


def rising_scores(logits: npt.ArrayLike, activation: str) -> npt.NDArray[np.float64]:
    """Numbers (n, k) that rise with each finding: logits, or of exclusive classes their log-probabilities."""
    found = np.asarray(logits, np.float64)
    if activation != "softmax":
        return found
    found = found - found.max(axis=1, keepdims=True)
    return np.asarray(found - np.log(np.exp(found).sum(axis=1, keepdims=True)))


def read_original(
    path: str | Path,
    *,
    labels: Sequence[str] = (),
    positive: str = "",
    preset: str | None = None,
    color: str | None = None,
    input_size: int | None = None,
    force: bool = False,
) -> Original:
    """Load a Keras model and find out what it means, from its file, the user and its own layers.

    Args:
        path: a file that `load_model` reads.
        labels: of the user, one per output in their order.
        positive: of two classes that exclude one another the finding, by label or index.
        preset: of the user, how pixels become the input; None where he does not say.
        color: "gray" or "rgb", likewise.
        input_size: pixels, where the model leaves its size open.
        force: take the user's labels where the file has others.

    Raises:
        ModelFileError: as `load_model`, or the model is no classifier of one image.
        CompressionError: something that has to be known is not said, or the end of the model cannot be read.
    """
    path = Path(path)
    loading: list[str] = []
    about, model = read_about(path), load_model(path, loading.append)
    require_float_images(model)
    shapes = [model.input_shape, model.output_shape]
    if [len(shape) if isinstance(shape, tuple) else 0 for shape in shapes] != [_IMAGE_RANK, _FLAT_RANK]:
        raise CompressionError(
            f"expected one input (images, height, width, channels) and one output (images, findings) in {path.name}, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    height, width, channels = (shapes[0][1] or input_size), (shapes[0][2] or input_size), shapes[0][3]
    if height is None or width is None:
        size = about.preprocess if about is not None else None
        height, width = (size.height, size.width) if size is not None else (None, None)
    if height is None or width is None:
        raise CompressionError(f"{path.name} takes images of any size and does not say which: give --input_size")
    outputs, pair = int(shapes[1][1]), softmax_classes(model) == _PAIR
    told: dict[str, Any] = {"labels": labels, "positive": positive, "about": about, "force": force}
    names = name_outputs(outputs, pair=True, **told) if pair else None
    plain, change = read_head(model, positive=names.positive if names is not None else None)
    if names is None:
        # Kept as two probabilities that sum to 1: a pair as well.
        kept_pair = change.gives != "logits" and change.exclusive and outputs == _PAIR
        names = name_outputs(outputs, pair=kept_pair, **told)
        if kept_pair:
            change = replace(change, outputs=1, exclusive=False)
    inside = normalizes_inside(model)
    pixels = read_pixels((height, width, channels), about=about, inside=inside, preset=preset, color=color)
    return Original(path, plain, change, names, pixels, inside, about, tuple(loading))


def require_image_input(
    shape: Sequence[int | None], *, any_channels: bool = False
) -> tuple[int | None, int | None, int]:
    """Give (height, width, channels) of a model's input; height and width may be None.

    Args:
        shape: of the input, the batch included.
        any_channels: take feature maps too, as of a single layer, but nothing that looks channels-first.

    Raises:
        UnsupportedLayerError: it is no batch of channels-last images of 1 or 3 channels; the line says what it is.
    """
    shape = tuple(shape)
    problem = _no_image(shape)
    maps = any_channels and len(shape) == _IMAGE_RANK and shape[3] is not None and shape[1] not in _CHANNELS
    if problem and not maps:
        raise UnsupportedLayerError(
            f"expected an image input (batch, height, width, channels), got ({', '.join(map(str, shape))}): {problem}"
        )
    return shape[1], shape[2], shape[3] or 0


def require_float_images(model: Any) -> None:
    """Require that a Keras model takes normalized images, and one at a time: what data sets are made into here.

    Raises:
        UnsupportedLayerError: it takes something else, several things, or pixels; the line says what to do.
    """
    if len(model.inputs) != 1:
        raise UnsupportedLayerError(
            f"expected a model of one image, got {len(model.inputs)} inputs: build a model of the part that takes it"
        )
    require_image_input(model.inputs[0].shape)
    dtype = model.inputs[0].dtype.name
    if dtype != "float32":
        raise UnsupportedLayerError(
            f"expected a model of float32 images, got one of {dtype}: rebuild it on keras.Input(shape) without a dtype "
            "(cxr_convert takes models of uint8 pixels as they are)"
        )


def _no_image(shape: tuple[int | None, ...]) -> str:
    """What an input is that is no image, and what to do; "" for an image."""
    if len(shape) != _IMAGE_RANK:
        return _OTHER_RANKS.get(len(shape), "only models of one image are taken")
    if shape[3] in _CHANNELS:
        return ""
    if shape[1] in _CHANNELS:
        return (
            "the model is channels-first: put keras.layers.Permute((3, 1, 2)) behind an input of (height, width, "
            "channels) in front of it, or export it with data_format channels_last (NHWC)"
        )
    if shape[3] is None:
        return "its channels are left open: rebuild its input with 1 or 3 channels"
    return (
        f"images have 1 channel (gray) or 3 (color), not {shape[3]}: put a layer in front that makes {shape[3]} of them"
    )

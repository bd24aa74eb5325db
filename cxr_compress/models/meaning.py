"""What a model from elsewhere means: which output is which finding, and how an image becomes its input.

Neither can be read off the weights. They come from the model file (`ModelAbout`), from the user's flags, or from layers
inside the model that leave no doubt; what is still missing is asked for, and a note names the source of each.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.data.dataset import finding_key
from cxr_compress.device.spec import PRESETS, PreprocessSpec, preset_name
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.about import ModelAbout
from cxr_compress.models.keras_graph import traits_of

_layers = keras.layers
_PAIR = 2
# Networks are trained on inputs that span about 1 (x / 255) to 4.6 (the deviations of ImageNet) from black to white.
_LEAST_SPAN, _LARGEST_SPAN = 0.5, 12.0
_DARK, _AT_BLACK = 0.25, 0.05  # shares of that span
_BLACK_LEVEL = 20.0  # an offset beyond it is one of pixels of 0 to 255
_PASSING = ("input", "resampling", "noise", "augmentation", "view")  # kinds of layers that leave black and white alone
_ARITHMETIC = {
    "math.truediv": lambda x, number: (x[0] / number, x[1] / number),
    "math.multiply": lambda x, number: (x[0] * number, x[1] * number),
    "math.subtract": lambda x, number: (x[0], x[1] - number),
    "__operators__.add": lambda x, number: (x[0], x[1] + number),
    "math.add": lambda x, number: (x[0], x[1] + number),
}
_UNCHANGED = ("cast", "identity")


@dataclass(frozen=True)
class Inside:
    """Layers in front of a model that normalize its input.

    Attributes:
        layers: their names.
        text: what they compute, in words.
        takes: the preset that feeds them what they expect: "raw" (0 to 255) or "unit" (0 to 1); "" where it is unclear.
    """

    layers: tuple[str, ...]
    text: str
    takes: str

    @property
    def name(self) -> str:
        """Their names, for a message."""
        return f"{'layer' if len(self.layers) == 1 else 'layers'} {', '.join(map(repr, self.layers))}"


def normalizes_inside(model: Any) -> Inside | None:
    """Find layers at the front of a model that normalize pixels themselves; None where its first layer does not.

    Rescaling, Normalization and the arithmetic of Keras' `preprocess_input` are read, also inside a nested model.
    """
    scale: npt.NDArray[np.float64] = np.ones(1)
    offset: npt.NDArray[np.float64] = np.zeros(1)
    names: list[str] = []
    standardized = False
    for node in _first_calls(model, model.inputs[0]):
        layer, kind = node.layer, type(node.layer).__name__
        if kind == "Rescaling":
            factor, shift = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
            scale, offset = scale * factor, offset * factor + shift
        elif kind == "Normalization" and getattr(layer, "mean", None) is not None:
            mean, deviation = np.asarray(layer.mean, np.float64), np.sqrt(np.asarray(layer.variance, np.float64))
            mean, deviation = mean.reshape(-1), np.maximum(deviation, 1e-7).reshape(-1)  # as Keras guards it
            standardized = not getattr(layer, "invert", False)
            if standardized:
                scale, offset = scale / deviation, (offset - mean) / deviation
            else:
                scale, offset = scale * deviation, offset * deviation + mean
        elif kind == "TFOpLambda" and (changed := _computed(node, (scale, offset))) is not None:
            if layer.get_config()["function"] in _UNCHANGED:
                continue
            scale, offset = changed
        elif traits_of(layer).kind in _PASSING or (
            kind == "SlicingOpLambda" and node.outputs.shape == node.keras_inputs[0].shape
        ):
            continue  # a slice of the whole shape reverses the channels, as Keras' caffe preprocessing does
        else:
            break
        names.append(layer.name)
    if not names or (np.all(scale == 1) and np.all(offset == 0)):
        return None
    return Inside(tuple(names), _formula(scale, offset), _taken(scale, offset, standardized))


@dataclass(frozen=True)
class Names:
    """Which output is what.

    Attributes:
        findings: one name per output of the logits model; None where nobody names them.
        positive: the index of the finding among two classes that exclude one another; None for other models.
        source: where that comes from, in words.
        doubt: why the user may be wrong, in words, where --force makes his labels count; "" elsewhere.
    """

    findings: tuple[str, ...] | None
    positive: int | None = None
    source: str = ""
    doubt: str = ""


def name_outputs(
    classes: int,
    *,
    pair: bool,
    labels: Sequence[str] = (),
    positive: str = "",
    about: ModelAbout | None = None,
    force: bool = False,
) -> Names:
    """Say which output is which finding, from the user's labels or the file's own.

    Args:
        classes: outputs of the model as it came.
        pair: they are two classes that exclude one another, of which one is the finding.
        labels: of the user, one per output in their order; of a pair also the finding alone.
        positive: of a pair, the finding: its label, or its index as a text.
        about: what the file says.
        force: the user's labels count even where the file has others.

    Raises:
        CompressionError: the labels are not as many as outputs or contradict the file, or of a pair the finding is not
            said.
    """
    in_file = about.findings if about is not None else ()
    names = tuple(labels) or in_file
    source = "from --labels" if labels else "from the model file" if names else "not named"
    keys = [finding_key(name) for name in names]
    twice = [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]
    if twice:
        raise CompressionError(
            f"expected different labels, got {' and '.join(map(repr, twice[:2]))}, which are compared without case: "
            "give each output a name of its own"
        )
    doubt = ""
    if in_file and not pair and len(names) == len(in_file) and keys != [finding_key(name) for name in in_file]:
        doubt = f"the model file names its outputs {', '.join(in_file)}, --labels says {', '.join(names)}"
        if not force:
            raise CompressionError(f"{doubt}: leave --labels out, or add --force where the file is wrong")
        source = "from --labels, against the model file"
    if pair:
        return _name_pair(names, positive, about.positive if about is not None else None, source)
    if positive:
        raise CompressionError(
            f"--positive says which of two classes that exclude one another is the finding; this model gives {classes} "
            "outputs of another kind: leave it out"
        )
    if names and len(names) != classes:
        raise CompressionError(
            f"expected {classes} labels, one for each output of the model in their order, got {len(names)} "
            f"({', '.join(names)}): correct --labels"
        )
    return Names(names or None, None, source, doubt)


def _name_pair(names: tuple[str, ...], positive: str, in_file: int | None, source: str) -> Names:
    if len(names) > _PAIR:
        raise CompressionError(
            f"expected two labels, NEGATIVE,POSITIVE as the model orders them, or the finding's alone, got {len(names)}"
            ": correct --labels"
        )
    index = _index_of(positive, names) if positive else in_file
    if index is None:
        example = f"--labels={','.join(names)} --positive={names[-1]}" if len(names) == _PAIR else ""
        raise CompressionError(
            "the model gives two classes that exclude one another, and which of them is the finding is not said "
            "(Keras numbers folders by name: NORMAL before PNEUMONIA, but COVID before NORMAL): give "
            f"{example or '--labels=FIRST,SECOND --positive=LABEL, or one label and --positive=0 or 1'}"
        )
    findings = (names[index],) if len(names) == _PAIR else names or None
    return Names(findings, index, source)


def _index_of(positive: str, names: Sequence[str]) -> int:
    folded = [name.casefold() for name in names]
    if positive.casefold() in folded and len(names) == _PAIR:
        return folded.index(positive.casefold())
    if positive in ("0", "1"):
        return int(positive)
    if len(names) == _PAIR:
        raise CompressionError(f"expected --positive as {names[0]} or {names[1]}, got {positive!r}")
    raise CompressionError(
        f"expected --positive as 0 or 1, the index of the finding among the two classes, got {positive!r}: or give "
        "both labels, in the model's order"
    )


@dataclass(frozen=True)
class Pixels:
    """How an image becomes the model's input, if that is known.

    Attributes:
        spec: the preprocessing; None where it has to be asked for, or tried on labeled images.
        source: where it comes from, in words.
        preset: its name where the user or layers inside say it, which labeled images may refute; "" where the model
            file says it, or nobody.
        doubt: why the user's choice is most likely wrong, where labeled images do not show that it is right.
    """

    spec: PreprocessSpec | None
    source: str
    preset: str = ""
    doubt: str = ""


def read_pixels(
    shape: tuple[int, int, int],
    *,
    about: ModelAbout | None = None,
    inside: Inside | None = None,
    preset: str | None = None,
    color: str | None = None,
) -> Pixels:
    """Say how images are prepared for a model: as the user says, as its file says, or as its own first layers show.

    Args:
        shape: (height, width, channels) of the input.
        about: what the file says.
        inside: what `normalizes_inside` found.
        preset: the user's choice, one of PRESETS.
        color: the user's choice, "gray" or "rgb".

    Raises:
        CompressionError: the preset is for other channels.
    """
    own = replace(about.preprocess, height=shape[0], width=shape[1]) if about is not None else None
    if preset is not None:
        asked = preset_spec(preset, shape, color=color)
        doubt = ""
        if own is not None and not _same_numbers(own, asked):
            doubt = (
                f"the model file says that its images are prepared by {preset_name(own)}, --preset={preset} says "
                "otherwise: leave it out, or add --force where the file is wrong"
            )
        elif own is None and inside is not None and inside.takes and preset != inside.takes:
            doubt = (
                f"the model normalizes its input itself ({inside.name}: {inside.text}) and takes "
                f"--preset={inside.takes}; --preset={preset} would normalize twice: leave it out, or add --force"
            )
        return Pixels(asked, "from --preset", preset if own is None or doubt else "", doubt)
    if own is not None:
        return Pixels(replace(own, color=color) if color else own, "from the model file")
    if inside is not None and inside.takes:
        source = f"from {inside.name} inside the model: {inside.text}"
        return Pixels(preset_spec(inside.takes, shape, color=color), source, inside.takes)
    return Pixels(None, "not said")


def _same_numbers(one: PreprocessSpec, other: PreprocessSpec) -> bool:
    """Whether both make the same numbers of the same pixels."""
    fields = ("channels", "mean", "std")
    return all(np.allclose(getattr(one, name), getattr(other, name)) for name in fields)


def preset_spec(
    preset: str, shape: tuple[int, int, int], *, color: str | None = None, input_type: str = "float32"
) -> PreprocessSpec:
    """The spec of a preset for a model's input.

    Args:
        preset: one of PRESETS.
        shape: (height, width, channels).
        color: "gray" or "rgb"; gray by default, which refuses color images instead of misreading them.
        input_type: what is fed: "float32" or "uint8".

    Raises:
        CompressionError: the preset is for other channels.
    """
    if preset not in PRESETS:
        raise CompressionError(f"expected a preset of {', '.join(PRESETS)}; got {preset!r}")
    height, width, channels = shape
    fields: dict[str, Any] = {"color": color or "gray", "input": input_type}
    if channels != PRESETS[preset].get("channels", 3):
        if not fits_channels(preset, channels):
            own = PRESETS[preset].get("channels", 3)
            raise CompressionError(
                f"--preset={preset} is for {own} channels, the model takes {channels}: choose another preset"
            )
        fields |= {"channels": channels, **{name: PRESETS[preset][name][:1] * channels for name in ("mean", "std")}}
    return PreprocessSpec.preset(preset, height, width, **fields)


def fits_channels(preset: str, channels: int) -> bool:
    """Whether a preset can feed a model of so many channels: one that treats its channels alike serves any number."""
    values = PRESETS[preset]
    alike = len(set(values["mean"])) == len(set(values["std"])) == 1
    return bool(alike or channels == values.get("channels", 3))


def possible_presets(shape: tuple[int, int, int], *, color: str | None = None) -> dict[str, PreprocessSpec]:
    """The presets that a model may have been trained with, by name: what to ask for, or to try on labeled images."""
    return {name: preset_spec(name, shape, color=color) for name in PRESETS if fits_channels(name, shape[2])}


def ask_for_preset(file: str) -> str:
    """The sentence that asks how images are prepared."""
    return (
        f"{file} does not say how images become its input, and none of its layers shows it: give --preset, as it was "
        "trained: imagenet_torch (CheXNet, Keras' DenseNet), unit (x / 255), tf (MobileNet, Inception), caffe "
        "(ResNet50, VGG), xrv (torchxrayvision) or raw (0 to 255, EfficientNet)"
    )


def _first_calls(model: Any, tensor: Any) -> Generator[Any, None, bool]:
    """The calls behind an input, in models too, as long as each alone reads the one before; whether to the end."""
    while tensor is not model.outputs[0]:
        nodes = [node for level in model._nodes_by_depth.values() for node in level if not node.is_input]
        readers = [node for node in nodes if any(read is tensor for read in node.keras_inputs)]
        if len(readers) != 1 or len(readers[0].keras_inputs) != 1:
            return False
        layer = readers[0].layer
        if isinstance(layer, keras.Model) and getattr(layer, "_is_graph_network", False):
            through = yield from _first_calls(layer, layer.inputs[0])
            if not through:
                return False
        else:
            yield readers[0]
        tensor = readers[0].outputs
    return True


def _computed(node: Any, before: tuple[Any, Any]) -> tuple[Any, Any] | None:
    """Scale and offset behind one of TensorFlow's operations with a constant; None for any other."""
    name = node.layer.get_config()["function"]
    if name in _UNCHANGED:
        return before
    constants = [*node.call_args[1:], *(node.call_kwargs[key] for key in ("y", "x") if key in node.call_kwargs)]
    constants = [number for number in constants if not hasattr(number, "_keras_history")]
    if name not in _ARITHMETIC or len(constants) != 1:
        return None
    try:
        number = np.asarray(constants[0], np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    scale, offset = _ARITHMETIC[name](before, number)
    return scale, offset


def _taken(scale: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], standardized: bool) -> str:
    """Which pixels make a usual network input of scale * x + offset; "" where neither of both kinds does."""
    factor, shift = float(scale.mean()), float(offset.mean())
    for white, preset in ((255.0, "raw"), (1.0, "unit")):
        span = abs(factor) * white
        if not _LEAST_SPAN <= span <= _LARGEST_SPAN:
            continue
        # Where 0 lies between black (0) and white (1): usual inputs begin there, or have it in the middle; of what was
        # standardized it is the mean of the training images, in these pixels.
        zero = -min(shift, factor * white + shift) / span
        if _DARK <= zero <= 1 - _DARK or (abs(zero) < _AT_BLACK and not standardized):
            return preset
    return "raw" if abs(shift) > _BLACK_LEVEL and _LEAST_SPAN <= abs(factor) <= _LARGEST_SPAN else ""


def _formula(scale: npt.NDArray[np.float64], offset: npt.NDArray[np.float64]) -> str:
    factor, shift = float(scale.mean()), float(offset.mean())
    product = f"x / {1 / factor:.4g}" if 0 < abs(factor) < 1 else f"{factor:.4g} x" if factor != 1 else "x"
    return product if shift == 0 else f"{product} {'+' if shift > 0 else '-'} {abs(shift):.4g}"

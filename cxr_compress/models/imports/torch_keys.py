"""Names of DenseNet weights in PyTorch files and in ours, and the size of the network that they make up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.models.architectures import HEAD_NAME, numbered_blocks
from cxr_compress.models.imports.base import LayerArrays, shown

TORCH_EPSILON = 1e-5  # of torch.nn.BatchNorm2d
# What training puts around a network, or around any part of it: DataParallel, torch.compile, FSDP, checkpointing.
_WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Names of the network in the modules that others put it in: arnoweng/CheXNet, Lightning, and training scripts.
_AROUND = re.compile(r"^(?:(?:model|_model|net|network|base_model|backbone|densenet\d*)\.)+")
_OLD_STYLE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # torchvision until 2018: norm.1 for norm1
_COUNTER = ".num_batches_tracked"
_LAYER = re.compile(r"features\.denseblock(\d{1,3})\.denselayer(\d{1,3})\.(norm|conv)([12])")
_TRANSITION = re.compile(r"features\.transition(\d{1,3})\.(norm|conv)")
_ENDS = {
    "features.conv0": "conv1/conv",
    "features.norm0": "conv1/bn",
    "features.norm5": "bn",
    "classifier": HEAD_NAME,
    "classifier.0": HEAD_NAME,  # of Sequential(Linear, Sigmoid); the sigmoid has no weights and is left out
}
_OURS = {"norm1": "0_bn", "conv1": "1_conv", "norm2": "1_bn", "conv2": "2_conv"}
_BLOCK = re.compile(r"conv(\d{1,3})_block(\d{1,3})_")

TorchLayers = dict[str, dict[str, tuple[str, np.ndarray]]]


class Architecture(NamedTuple):
    """What `chexnet` needs to know to build the network."""

    blocks: tuple[int, ...]
    width: float
    channels: int


def densenet_layers(tensors: Mapping[str, np.ndarray]) -> tuple[TorchLayers, tuple[str, ...]]:
    """Sort the tensors of a DenseNet by our layers.

    Args:
        tensors: name in a PyTorch file -> tensor, in any of the spellings that torchvision, arnoweng/CheXNet and
            torchxrayvision have used.

    Returns:
        Our layer -> part -> (name in the file, tensor), and the names that hold no weights.

    Raises:
        ModelFileError: names that no DenseNet has, or two for one weight.
    """
    return sort_layers(tensors, _ours, "DenseNet")


def sort_layers(
    tensors: Mapping[str, np.ndarray], find: Callable[[str], str | None], network: str
) -> tuple[TorchLayers, tuple[str, ...]]:
    """Sort tensors by our layers; what training wraps around a network or its parts leaves no trace in the names.

    Args:
        tensors: name in a PyTorch file -> tensor.
        find: gives our layer of a module of PyTorch, None where there is none.
        network: what it is, for errors.

    Returns:
        As `densenet_layers`.

    Raises:
        ModelFileError: names that the network does not have, or two for one weight.
    """
    layers: TorchLayers = {}
    ignored, unknown = [], []
    for name, tensor in tensors.items():
        if name.endswith(_COUNTER):
            ignored.append(name)
            continue
        module, _, part = _OLD_STYLE.sub(r"\1\2.", _AROUND.sub("", _WRAPPED.sub("", name))).rpartition(".")
        layer = find(module)
        if layer is None:
            unknown.append(name)
        elif part in layers.setdefault(layer, {}):
            raise ModelFileError(f"{shown([layers[layer][part][0], name])} are the same weight: leave one of them out")
        else:
            layers[layer][part] = (name, tensor)
    if unknown:
        raise ModelFileError(f"{len(unknown)} of its names are those of no {network}: {shown(unknown)}")
    return layers, tuple(ignored)


def _ours(module: str) -> str | None:
    """Give our layer of a module; None where there is none."""
    if module in _ENDS:
        return _ENDS[module]
    inner = _LAYER.fullmatch(module)
    if inner:
        block, layer, kind, number = inner.groups()
        return f"conv{int(block) + 1}_block{int(layer)}_{_OURS[kind + number]}"
    between = _TRANSITION.fullmatch(module)
    if between:
        return f"pool{int(between[1]) + 1}_{'bn' if between[2] == 'norm' else 'conv'}"
    return None


def architecture(arrays: LayerArrays) -> Architecture:
    """Tell from names and shapes which DenseNet it is.

    Raises:
        ModelFileError: the first layers are missing, or its widths are those of none that `chexnet` builds.
    """
    numbers = [(int(found[1]), int(found[2])) for found in map(_BLOCK.match, arrays) if found]
    stages = sorted({stage for stage, _ in numbers})
    if not stages or stages != list(range(2, 2 + len(stages))):
        raise ModelFileError("it has no dense blocks, or one of them is missing: it holds no DenseNet")
    blocks = tuple(max(layer for at, layer in numbers if at == stage) for stage in stages)
    if sum(blocks) > len(numbers):
        raise ModelFileError("layers in the middle of its dense blocks are missing: it is not complete")
    stem, narrow, new = (
        _kernel_shape(arrays, layer) for layer in ("conv1/conv", "conv2_block1_1_conv", "conv2_block1_2_conv")
    )
    width = stem[3] / 64
    if width <= 0 or (narrow[3], new[3]) != (128 * width, 32 * width):
        raise ModelFileError(
            f"its stem, bottlenecks and growth are {stem[3]}, {narrow[3]} and {new[3]} filters: expected 64, 128 and "
            "32 (DenseNet121, 169 or 201), or the same multiple of each"
        )
    return Architecture(blocks, width, stem[2])


def _kernel_shape(arrays: LayerArrays, layer: str) -> tuple[Any, ...]:
    kernel = arrays.get(layer, {}).get("kernel")
    if kernel is None or kernel.array.ndim != 4:  # noqa: PLR2004 - of a convolution
        raise ModelFileError(f"it lacks the convolution {layer}: it holds no complete DenseNet")
    return kernel.array.shape


_EFFICIENTNET_KEYS_BLOCK = re.compile(r"_blocks\.(\d{1,3})\.(\w+)")
_EFFICIENTNET_KEYS_ENDS = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "head_conv",
    "_bn1": "head_bn",
    "_fc": HEAD_NAME,
}
_EFFICIENTNET_KEYS_OURS = {
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
        found = _EFFICIENTNET_KEYS_BLOCK.fullmatch(module)
        if found and found[2] in _EFFICIENTNET_KEYS_OURS and int(found[1]) < blocks:
            return f"block{int(found[1]) + 1}_{_EFFICIENTNET_KEYS_OURS[found[2]]}"
        return _EFFICIENTNET_KEYS_ENDS.get(module)

    return sort_layers(tensors, ours, "EfficientNet-Lite0")

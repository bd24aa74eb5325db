"""DenseNets of PyTorch: torchvision, CheXNet (arnoweng, reproduce-chexnet) and torchxrayvision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr_compress.data import NIH_FINDINGS
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError
from cxr_compress.models.architectures import DENSENET169_BLOCKS, DENSENET_EPSILON, HEAD_NAME
from cxr_compress.models.imports.base import (
    ForeignWeights,
    LayerArrays,
    TorchLayers,
    from_torch,
    imagenet_pixels,
    naming,
    register_source,
    shown,
    sort_layers,
)
from cxr_compress.models.imports.tensor_file import TensorFile, read_tensors

_TORCH_EPSILON = 1e-5  # of torch.nn.BatchNorm2d
# Source: torchxrayvision, datasets.default_pathologies: the order of its networks' 18 outputs.
XRV_FINDINGS = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion",
    "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture",
    "Lung Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip
_XRV_THRESHOLDS = ("op_threshs", "op_thresh")
_XRV_NAMES = ("pathologies", "targets", "labels")
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


class _Architecture(NamedTuple):
    """What `chexnet` needs to know to build the network."""

    blocks: tuple[int, ...]
    width: float
    channels: int


@register_source(
    "chexnet_torch",
    help="the same with CheXNet's 14 findings: arnoweng/CheXNet, reproduce-chexnet",
    preprocess=imagenet_pixels,
    findings=NIH_FINDINGS,
    dataset="NIH ChestX-ray14",
)
@register_source(
    "torchvision_densenet",
    help="DenseNet121, 169 or 201: names as torchvision has them, old (norm.1) or new (norm1)",
    preprocess=imagenet_pixels,
)
def read_densenet(path: Path) -> ForeignWeights:
    """Read a DenseNet of PyTorch, in any of torch's formats, `.safetensors` or `.npz`.

    Raises:
        ModelFileError: the file is missing, damaged or refused, or holds another network.
    """
    return _densenet(path, read_tensors(path))


@register_source(
    "torchxrayvision",
    help="the same with one input channel and 18 findings; operating points are kept",
    preprocess=lambda size: PreprocessSpec.preset("xrv", size, size),
    findings=XRV_FINDINGS,
    attribution="torchxrayvision, Cohen et al., MIDL 2022, Apache-2.0",
)
def _read_xrv(path: Path) -> ForeignWeights:
    """Read a torchxrayvision file: a state dict or a whole module, with thresholds as buffer or attribute."""
    file = read_tensors(path)
    tensors = dict(file.tensors)
    buffers = [tensors.pop(name) for name in _XRV_THRESHOLDS if name in tensors]
    lists = [file.extras[name] for name in _XRV_THRESHOLDS if isinstance(file.extras.get(name), list | tuple)]
    read = _densenet(path, TensorFile(file.kind, tensors, file.extras))
    limits = next(iter([*buffers, *lists]), ())
    named = next((file.extras[name] for name in _XRV_NAMES if isinstance(file.extras.get(name), list | tuple)), ())
    findings = tuple(named) if _are_names(named) else ()
    try:
        thresholds = tuple(float(limit) for limit in limits)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path.name}: its {shown(_XRV_THRESHOLDS[:1])} are no numbers: it is damaged") from error
    return read._replace(findings=findings, thresholds=thresholds)


def _are_names(values: Any) -> bool:
    """Tell whether these are different texts; torchxrayvision leaves a name empty where a network has no output."""
    return all(isinstance(name, str) and name for name in values) and len(set(values)) == len(values) > 0


def _densenet(path: Path, file: TensorFile) -> ForeignWeights:
    with naming(path):
        layers, ignored = densenet_layers(file.tensors)
        return densenet_weights(from_torch(layers, _TORCH_EPSILON, DENSENET_EPSILON), file.kind, ignored)


def densenet_weights(arrays: LayerArrays, file_kind: str, ignored: tuple[str, ...] = ()) -> ForeignWeights:
    """Tell from names and shapes which DenseNet it is.

    Raises:
        ModelFileError: the first layers are missing, or its widths are those of none that `chexnet` builds.
    """
    network = _architecture(arrays)
    name = "densenet169" if network.blocks == DENSENET169_BLOCKS else "chexnet"

    def build(count: int, shape: tuple[int, int, int]) -> Any:
        from cxr_compress.models.networks import chexnet  # loads Keras

        return chexnet(count, shape, width=network.width, blocks=network.blocks, name=name)

    return ForeignWeights(build, network.channels, arrays, file_kind, ignored)


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


def _architecture(arrays: LayerArrays) -> _Architecture:
    numbers = [(int(match[1]), int(match[2])) for match in map(_BLOCK.match, arrays) if match]
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
    return _Architecture(blocks, width, stem[2])


def _kernel_shape(arrays: LayerArrays, layer: str) -> tuple[Any, ...]:
    kernel = arrays.get(layer, {}).get("kernel")
    if kernel is None or kernel.array.ndim != 4:  # noqa: PLR2004 - of a convolution
        raise ModelFileError(f"it lacks the convolution {layer}: it holds no complete DenseNet")
    return kernel.array.shape

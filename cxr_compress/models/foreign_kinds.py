"""The kinds of foreign weights: how each is read, and what is known about its input, outputs and origin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cxr_compress.data.nih import NIH_FINDINGS
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError
from cxr_compress.models.backbones import DENSENET169_BLOCKS
from cxr_compress.models.chexnet import BN_EPSILON, chexnet
from cxr_compress.models.densenet_keys import TORCH_EPSILON, architecture, densenet_layers
from cxr_compress.models.efficientnet_keys import efficientnet_layers
from cxr_compress.models.efficientnet_lite import BN_EPSILON as LITE_EPSILON
from cxr_compress.models.efficientnet_lite import efficientnet_lite0
from cxr_compress.models.keras_h5 import read_densenet_h5
from cxr_compress.models.layer_arrays import LayerArrays, from_torch, naming, shown
from cxr_compress.models.tensor_file import TensorFile, read_tensors

# Source: torchxrayvision, datasets.default_pathologies: the order of its networks' 18 outputs.
XRV_FINDINGS = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion",
    "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture",
    "Lung Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip
_XRV_THRESHOLDS = ("op_threshs", "op_thresh")
_XRV_NAMES = ("pathologies", "targets", "labels")


class ReadWeights(NamedTuple):
    """What a reader found in a file."""

    build: Callable[[int, tuple[int, int, int]], Any]
    channels: int
    arrays: LayerArrays
    file_kind: str
    ignored: tuple[str, ...]
    findings: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()


class Kind(NamedTuple):
    """A kind of foreign weights: its reader, its preprocessing, and what is known about its outputs and origin."""

    read: Callable[[Path], ReadWeights]
    preprocess: Callable[[int], PreprocessSpec]
    findings: tuple[str, ...] = ()
    dataset: str = ""
    attribution: str = ""


def _read_torch_densenet(path: Path) -> ReadWeights:
    return _densenet_of(path, read_tensors(path))


def _densenet_of(path: Path, file: TensorFile) -> ReadWeights:
    with naming(path):
        layers, ignored = densenet_layers(file.tensors)
        return _densenet(from_torch(layers, TORCH_EPSILON, BN_EPSILON), file.kind, ignored)


def _densenet(arrays: LayerArrays, file_kind: str, ignored: tuple[str, ...]) -> ReadWeights:
    found = architecture(arrays)
    name = "densenet169" if found.blocks == DENSENET169_BLOCKS else "chexnet"

    def build(count: int, shape: tuple[int, int, int]) -> Any:
        return chexnet(count, shape, width=found.width, blocks=found.blocks, name=name)

    return ReadWeights(build, found.channels, arrays, file_kind, ignored)


def _read_xrv(path: Path) -> ReadWeights:
    """Read a torchxrayvision file: a state dict or a whole module, with thresholds as buffer or attribute."""
    file = read_tensors(path)
    tensors = dict(file.tensors)
    buffers = [tensors.pop(name) for name in _XRV_THRESHOLDS if name in tensors]
    lists = [file.extras[name] for name in _XRV_THRESHOLDS if isinstance(file.extras.get(name), list | tuple)]
    read = _densenet_of(path, TensorFile(file.kind, tensors, file.extras))
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


def _read_lite0(path: Path) -> ReadWeights:
    file = read_tensors(path)
    with naming(path):
        layers, ignored = efficientnet_layers(file.tensors)
    arrays = from_torch(layers, LITE_EPSILON, LITE_EPSILON)
    return ReadWeights(efficientnet_lite0, 3, arrays, file.kind, ignored)


def _read_keras_h5(path: Path) -> ReadWeights:
    arrays = read_densenet_h5(path)
    with naming(path):
        return _densenet(arrays, "Keras HDF5", ())


def _imagenet(size: int) -> PreprocessSpec:
    return PreprocessSpec.preset("imagenet_torch", size, size)


def _xrv(size: int) -> PreprocessSpec:
    return PreprocessSpec.preset("xrv", size, size)


def _lite(size: int) -> PreprocessSpec:
    # Source: tensorflow/tpu, efficientnet/lite: MEAN_RGB = 127, STDDEV_RGB = 128, of pixels from 0 to 255.
    return PreprocessSpec(size, size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


_IMAGENET = "ImageNet ILSVRC 2012"
FOREIGN_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "npz": Kind(_read_torch_densenet, _imagenet, NIH_FINDINGS),
        "torchvision_densenet": Kind(_read_torch_densenet, _imagenet),
        "chexnet_torch": Kind(_read_torch_densenet, _imagenet, NIH_FINDINGS, "NIH ChestX-ray14"),
        "torchxrayvision": Kind(
            _read_xrv, _xrv, XRV_FINDINGS, "", "torchxrayvision, Cohen et al., MIDL 2022, Apache-2.0"
        ),
        "chexnet_keras_h5": Kind(_read_keras_h5, _imagenet, NIH_FINDINGS, "NIH ChestX-ray14"),
        "efficientnet_lite0": Kind(
            _read_lite0,
            _lite,
            (),
            _IMAGENET,
            "EfficientNet-Lite0 by Google, tensorflow/tpu, in the PyTorch port by ML Illustrated, Apache-2.0",
        ),
    }
)

"""Weights of a Keras .h5 file by their names, as CheXNet-Keras and Keras 2.0 to 2.15 wrote them; no model is rebuilt.

Source of the layout: keras/saving/hdf5_format: the attribute "layer_names" of the root (or of the group
"model_weights" of a whole model) lists groups; the attribute "weight_names" of each lists its data sets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.data import NIH_FINDINGS
from cxr_compress.errors import ModelFileError
from cxr_compress.models.architectures import HEAD_NAME
from cxr_compress.models.imports.base import (
    ForeignWeights,
    LayerArrays,
    NamedArray,
    imagenet_pixels,
    naming,
    register_source,
    shown,
)
from cxr_compress.models.imports.torch_densenet import densenet_weights

KERAS1_ADVICE = (
    "open it in Keras 2.0 to 2.2, which reads files of Keras 1, and save it there with model.save(); or, in Keras 1, "
    "write model.get_weights() with numpy.savez, build the network with tf_keras layers and set_weights there"
)

_WHOLE_MODEL = "model_weights"
_COUNTED = re.compile(r"_\d{1,4}(?=/|$)")  # Keras numbers a name that it has given before: conv1_1/conv, bn_2
_DENSENET = re.compile(r"conv1/conv|conv1/bn|conv\d{1,3}_block\d{1,3}_(?:[01]_bn|[12]_conv)|pool\d{1,3}_(?:bn|conv)|bn")
_MOST_WEIGHTS = 20_000
_LARGEST = 1 << 27  # numbers of one array: ten times the largest of any DenseNet


@register_source(
    "chexnet_keras_h5",
    help="CheXNet-Keras: weights or whole model in HDF5",
    preprocess=imagenet_pixels,
    findings=NIH_FINDINGS,
    dataset="NIH ChestX-ray14",
)
def read_densenet_h5(path: Path) -> ForeignWeights:
    """Read a DenseNet with a Dense head.

    The body may be flat, as CheXNet-Keras builds it, or a model inside of the model. Layers are known by Keras's names
    ("conv2_block1_0_bn"); the one Dense layer is the head, whatever it is called.

    Raises:
        ModelFileError: missing, damaged, no Keras file, or names that no DenseNet has.
    """
    import h5py

    with naming(path):
        try:
            with h5py.File(path, "r") as file:
                root = _inside(file, _WHOLE_MODEL) if _WHOLE_MODEL in file else file
                version = root.attrs.get("keras_version", file.attrs.get("keras_version", ""))
                version = version.decode("utf-8", "replace") if isinstance(version, bytes) else str(version)
                if version.startswith("1."):
                    # Its kernels may be in Theano's order, turned by 180 degrees: nothing in the file says so.
                    raise ModelFileError(f"it was saved by Keras {version}: {KERAS1_ADVICE}")
                arrays = _sorted(_weights(root))
        except ModelFileError:
            raise
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError) as error:
            raise ModelFileError(
                "it is no HDF5 file that Keras wrote, or it is damaged: copy or export it again"
            ) from error
        return densenet_weights(arrays, "Keras HDF5")


def _weights(root: Any) -> list[tuple[str, str, np.ndarray]]:
    """List layer, name and array of every weight."""
    weights = []
    for layer in _texts(root, "layer_names"):
        group = _inside(root, layer)
        for name in _texts(group, "weight_names"):
            weights.append((layer, name, _array(_inside(group, name))))
            if len(weights) > _MOST_WEIGHTS:
                raise ModelFileError("it lists more weights than any DenseNet has: it is refused")
    return weights


def _texts(group: Any, attribute: str) -> list[str]:
    """Give the texts of an attribute, which Keras cuts into pieces (layer_names0, layer_names1) beyond 64 kB."""
    if attribute in group.attrs:
        pieces = [group.attrs[attribute]]
    else:
        pieces = []
        while f"{attribute}{len(pieces)}" in group.attrs:
            pieces.append(group.attrs[f"{attribute}{len(pieces)}"])
        if not pieces:
            raise ModelFileError(f"it is an HDF5 file, but none of Keras weights: it has no {attribute}")
    return [text.decode("utf-8") if isinstance(text, bytes) else str(text) for piece in pieces for text in piece]


def _inside(group: Any, name: str) -> Any:
    """Give a member, step by step, that lies in this very file: HDF5 could lead to any other on the disk."""
    import h5py

    for step in name.split("/"):
        if not isinstance(group.get(step, getlink=True), h5py.HardLink):
            raise ModelFileError(f"its entry {shown([name])} is missing or leads out of the file: it is refused")
        group = group[step]
    return group


def _array(dataset: Any) -> np.ndarray:
    if dataset.is_virtual or dataset.external:
        raise ModelFileError("its numbers lie in another file: save the weights anew as one file")
    if dataset.size > _LARGEST:
        raise ModelFileError("an array of it is larger than any of a DenseNet: it is refused")
    return np.asarray(dataset[()])


def _sorted(weights: list[tuple[str, str, np.ndarray]]) -> LayerArrays:
    """Put arrays under our layers and parts."""
    arrays: LayerArrays = {}
    unknown, heads = [], set()
    for group, name, array in weights:
        owner, _, part = name.rpartition("/")
        layer = _ours(group, owner)
        if layer is None and array.ndim <= 2 and part.startswith(("kernel", "bias")):  # noqa: PLR2004 - of a Dense layer
            layer = HEAD_NAME
            heads.add((group, owner))
        if layer is None:
            unknown.append(name)
            continue
        parts = arrays.setdefault(layer, {})
        key = part.partition(":")[0]
        if key in parts:
            raise ModelFileError(f"{shown([parts[key].name, name])} are the same weight, or it has two heads")
        parts[key] = NamedArray(array, str(array.dtype), name)
    if unknown or len(heads) > 1:
        names = unknown or sorted(owner for _, owner in heads)
        raise ModelFileError(f"{len(names)} of its names are those of no DenseNet with one head: {shown(names)}")
    return arrays


def _ours(group: str, owner: str) -> str | None:
    """Give our layer of a weight: by the layer that the file lists, else by the name of the weight itself."""
    for name in (group, owner, _COUNTED.sub("", group), _COUNTED.sub("", owner)):
        # A body inside of the model may put its own name in front: densenet121/conv1/conv.
        for start in (0, name.find("/") + 1):
            if _DENSENET.fullmatch(name, start):
                return name[start:]
    return None

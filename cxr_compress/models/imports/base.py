"""Weights from elsewhere: the table of sources, their arrays under the names of our layers, and filling a model.

A source is one reader, registered by `register_source`; `foreign.import_weights` does the rest. Importing this loads no
Keras, so that `cxr_import_weights --help` can list the sources at once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError, ModelFileError

_SHOWN = 5
# What training puts around a network, or around any part of it: DataParallel, torch.compile, FSDP, checkpointing.
_WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Names of the network in the modules that others put it in: arnoweng/CheXNet, Lightning, and training scripts.
_AROUND = re.compile(r"^(?:(?:model|_model|net|network|base_model|backbone|densenet\d*)\.)+")
_OLD_STYLE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # torchvision until 2018: norm.1 for norm1
_COUNTER = ".num_batches_tracked"


class NamedArray(NamedTuple):
    """An array in Keras layout, the dtype it was stored in, and its name in the foreign file."""

    array: np.ndarray
    stored: str
    name: str


# Layer -> part ("kernel", "gamma", ...) -> array.
LayerArrays = dict[str, dict[str, NamedArray]]
# Layer -> part of PyTorch ("weight", "running_mean", ...) -> name in the file and tensor.
TorchLayers = dict[str, dict[str, tuple[str, np.ndarray]]]


class ForeignWeights(NamedTuple):
    """What the reader of a source gives.

    Attributes:
        build: the network that the weights are of, from (num_classes, (height, width, channels)).
        channels: of its images.
        arrays: the weights under the names of our layers.
        file_kind: as what the file was read, such as "torch legacy".
        ignored: names in the file that hold no weights.
        findings: names of the outputs, where the file says them.
        thresholds: probability from which the file's authors call each output positive, where the file says it.
    """

    build: Callable[[int, tuple[int, int, int]], Any]
    channels: int
    arrays: LayerArrays
    file_kind: str
    ignored: tuple[str, ...]
    findings: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()


ReadWeights = Callable[[Path], ForeignWeights]


@dataclass(frozen=True)
class WeightSource:
    """A kind of files with weights.

    Attributes:
        read: gives what a file holds.
        help: which files these are, in one line for `cxr_import_weights --help`.
        preprocess: how images of a size (height and width in pixels) become the input of such a network.
        findings: names of its outputs, where all files of the kind have the same.
        dataset: what it was trained on; "" where that differs.
        attribution: whom to name with every copy.
    """

    read: ReadWeights
    help: str
    preprocess: Callable[[int], PreprocessSpec]
    findings: tuple[str, ...] = ()
    dataset: str = ""
    attribution: str = ""


SOURCES: dict[str, WeightSource] = {}


def register_source(name: str, **facts: Any) -> Callable[[ReadWeights], ReadWeights]:
    """Make a reader one that `import_weights` and `cxr_import_weights --from` take.

    Args:
        name: of the kind of files.
        facts: the other fields of `WeightSource`.

    Raises:
        CompressionError: the name is taken.
    """
    if name in SOURCES:
        raise CompressionError(f"the source of weights {name!r} is registered twice: give one of the two another name")

    def register(read: ReadWeights) -> ReadWeights:
        SOURCES[name] = WeightSource(read, **facts)
        return read

    return register


def imagenet_pixels(size: int) -> PreprocessSpec:
    """The preprocessing of torchvision's networks."""
    return PreprocessSpec.preset("imagenet_torch", size, size)


def sort_layers(
    tensors: Mapping[str, np.ndarray], find: Callable[[str], str | None], network: str
) -> tuple[TorchLayers, tuple[str, ...]]:
    """Sort the tensors of a PyTorch file by our layers.

    What training wraps around a network or its parts (`module.`, `_orig_mod.`) leaves no trace in the names.

    Args:
        tensors: name in the file -> tensor.
        find: gives our layer of a module of PyTorch, None where there is none.
        network: what it is, for errors.

    Returns:
        Our layer -> part -> (name in the file, tensor), and the names that hold no weights.

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


def from_torch(layers: TorchLayers, epsilon: float, ours: float) -> LayerArrays:
    """Bring the tensors of PyTorch layers into Keras's layout.

    Kernels go from (out, in, height, width) to (height, width, in, out), depthwise ones to (height, width, in, 1), and
    Linear's weights are transposed. PyTorch's batch norm adds `epsilon` to the variance; ours may have to add another
    one (TensorFlow's fused kernel raises everything below 1.001e-5 to that), so that gamma takes up the difference:
    gamma' = gamma * sqrt((variance + ours) / (variance + epsilon)), computed in float64.

    Args:
        layers: what `sort_layers` gave. A layer whose name ends in "depthwise_conv" is one.
        epsilon: of the file's batch norms.
        ours: of the model's.
    """
    arrays: LayerArrays = {}
    for layer, parts in layers.items():
        if layer.endswith("bn"):
            arrays[layer] = _norm(parts, epsilon, ours)
        else:
            arrays[layer] = {}
            for part, (name, tensor) in parts.items():
                key, array = _kernel(layer, part, tensor)
                arrays[layer][key] = NamedArray(array, str(tensor.dtype), name)
    return arrays


def _kernel(layer: str, part: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    if part != "weight":
        return part, tensor
    if tensor.ndim == 4 and layer.endswith("depthwise_conv"):  # noqa: PLR2004 - of a convolution
        return "depthwise_kernel", tensor.transpose(2, 3, 0, 1)
    if tensor.ndim == 4:  # noqa: PLR2004 - of a convolution
        return "kernel", tensor.transpose(2, 3, 1, 0)
    return "kernel", tensor.T


def _norm(parts: Mapping[str, tuple[str, np.ndarray]], epsilon: float, ours: float) -> dict[str, NamedArray]:
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    arrays = {names.get(part, part): NamedArray(array, str(array.dtype), name) for part, (name, array) in parts.items()}
    gamma, spread = arrays.get("gamma"), arrays.get("moving_variance")
    if gamma is None or spread is None or gamma.array.shape != spread.array.shape:
        return arrays  # `fill` says what is missing
    variance = spread.array.astype(np.float64)
    if epsilon != ours and variance.min(initial=0) >= 0:
        arrays["gamma"] = gamma._replace(array=gamma.array * np.sqrt((variance + ours) / (variance + epsilon)))
    return arrays


def fill(model: Any, arrays: LayerArrays, *, fresh: frozenset[str] = frozenset()) -> dict[str, str]:
    """Set every variable of a model from arrays that match it one to one.

    Args:
        model: of standard layers.
        arrays: for every layer that has weights.
        fresh: layers that keep what they have, whatever `arrays` says.

    Returns:
        Name in the file -> name of the variable, for those that were set.

    Raises:
        ModelFileError: arrays are missing, left over, of another shape, or no finite numbers; the model is unchanged.
    """
    wanted = {
        (layer.name, variable.name.rpartition("/")[2].partition(":")[0]): variable
        for layer in model.layers
        if layer.name not in fresh
        for variable in layer.weights
    }
    in_file = {
        (layer, part): item for layer, parts in arrays.items() if layer not in fresh for part, item in parts.items()
    }
    without_place = [item.name for key, item in in_file.items() if key not in wanted]
    if without_place:
        raise ModelFileError(
            f"{len(without_place)} of its weights have no place in {model.name}: {shown(without_place)}"
        )
    missing = ["/".join(key) for key in wanted if key not in in_file]
    if missing:
        raise ModelFileError(f"it lacks {len(missing)} of the weights of {model.name}: {shown(missing)}")
    ready = {key: _checked(in_file[key], tuple(variable.shape)) for key, variable in wanted.items()}
    for key, variable in wanted.items():
        variable.assign(ready[key])
    return {in_file[key].name: variable.name for key, variable in wanted.items()}


def _checked(item: NamedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Give float32 numbers of the wanted shape."""
    if item.array.shape != shape:
        raise ModelFileError(
            f"{shown([item.name])} has the shape {item.array.shape} in our layout, the model needs {shape}: the "
            "weights are of another network"
        )
    if item.array.dtype.kind != "f":
        raise ModelFileError(f"{shown([item.name])} ({item.array.dtype}) holds no floating-point numbers")
    with np.errstate(over="ignore"):  # what overflows is found by the next line
        numbers = item.array.astype(np.float32)
    if not np.all(np.isfinite(numbers)):
        raise ModelFileError(f"{shown([item.name])} holds numbers that are not finite: the training had failed")
    return numbers


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of the file that the user passed in before a ModelFileError."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from error


def shown(names: Iterable[str]) -> str:
    """List the first names on one line, with odd characters spelled out: they come from a foreign file."""
    names = list(names)
    listed = ", ".join(name[:100].encode("unicode_escape").decode() for name in names[:_SHOWN])
    return listed + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


@dataclass(frozen=True)
class ImportReport:
    """What a foreign weights file and a model had in common; an import is all or nothing.

    Attributes:
        arrays: variables that were set: all of the model's.
        parameters: numbers in them, batch-norm statistics included.
        stored_dtype: as they lay in the file; the model holds float32.
        renamed: name in the file -> name in the model, where they differ.
        network: what was built, such as "chexnet" ("" where the caller built it).
        file_kind: as what the file was read, such as "torch legacy".
        outputs: logits in the file; 0 where the caller knew.
        ignored: names in the file that hold no weights: counters of batches.
        fresh: variables of the model that were drawn anew, since the file's head knows other classes.
        left_out: findings of the file whose logits the model does not have.
        thresholds: finding -> probability from which the file's authors call it positive, where the file says so.
    """

    arrays: int
    parameters: int
    stored_dtype: str
    renamed: dict[str, str]
    network: str = ""
    file_kind: str = ""
    outputs: int = 0
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)

"""Weights from outside become a model of ours, all of them or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr_compress.data import NIH_FINDINGS
from cxr_compress.errors import DataError, ModelFileError
from cxr_compress.models.about import ModelAbout
from cxr_compress.models.architectures import HEAD_NAME, build
from cxr_compress.models.imports import chexnet_keras, efficientnet_lite  # noqa: F401 - they register their sources
from cxr_compress.models.imports.base import (
    SOURCES,
    ForeignWeights,
    ImportReport,
    LayerArrays,
    WeightSource,
    fill,
    imagenet_pixels,
    naming,
    register_source,
)
from cxr_compress.models.imports.tensor_file import read_tensors
from cxr_compress.models.imports.torch_densenet import read_densenet
from cxr_compress.models.npz_weights import load_npz_weights, read_npz_about

register_source(
    "npz",
    help='one array per variable, named "index|variable name", of a network of ours that the archive names '
    "(experiments/results/*/weights_fp16.npz), else of DenseNet121 and its head",
    preprocess=imagenet_pixels,
    findings=NIH_FINDINGS,
)(read_densenet)

_DEFAULT_SIZE = 224
_IMAGENET_CLASSES = 1000  # an output of this size is ImageNet's


@dataclass(frozen=True)
class Imported:
    """A model with foreign weights.

    Attributes:
        model: the `keras.Model`; its output are logits.
        about: what to store with it.
        report: what matched.
    """

    model: Any
    about: ModelAbout
    report: ImportReport


def import_weights(
    kind: str,
    path: str | Path,
    *,
    num_classes: int | None = None,
    input_size: int | None = None,
    findings: Sequence[str] | None = None,
    attribution: str | None = None,
) -> Imported:
    """Build the network that a foreign file holds the weights of, and fill it; either all of it fits or none is made.

    The file's sigmoid, where it has one, is left out: our models give logits. A head of 1000 classes is ImageNet's; it
    is kept for 1000 classes and otherwise drawn anew (seeded) for training. Of other heads the first `num_classes`
    outputs are kept.

    Args:
        kind: one of `SOURCES`.
        path: of the file.
        num_classes: logits of the model; those of the file where None.
        input_size: height and width of the images in pixels; the weights fit any from 32 on. None takes the one that
            an archive of ours says, else 224.
        findings: names of the logits; the usual ones of this kind where None.
        attribution: whom to name with every copy; what is known of this kind where None.

    Returns:
        Model, about and report.

    Raises:
        ModelFileError: the file is missing, damaged, refused, of another network, or has fewer outputs than asked for.
        CompressionError: a size or a number of classes is out of range.
        DataError: `findings` are not one name per logit.
    """
    path = Path(path)
    if kind not in SOURCES:
        raise ModelFileError(f"unknown kind of weights {kind!r}: choose one of {', '.join(SOURCES)}")
    wish = _Wish(num_classes, input_size, tuple(findings or ()), attribution)
    if kind == "npz":
        return _import_npz(path, SOURCES[kind], wish)
    read = SOURCES[kind].read(path)
    with naming(path):
        return _import_read(read, SOURCES[kind], wish)


class _Wish(NamedTuple):
    """What the caller of `import_weights` asked for."""

    num_classes: int | None
    input_size: int | None
    findings: tuple[str, ...]
    attribution: str | None

    @property
    def size(self) -> int:
        """The size to build for where the file has none."""
        return self.input_size or _DEFAULT_SIZE


def _import_npz(path: Path, source: WeightSource, wish: _Wish) -> Imported:
    """Import an archive of our own order, which `load_npz_weights` checks place by place."""
    stored = read_npz_about(path)
    network, about = stored if stored is not None else ("chexnet", None)
    count = wish.num_classes or (_last_bias(path) if about is None else len(about.findings))
    size = wish.input_size or (_DEFAULT_SIZE if about is None else about.preprocess.height)
    channels = 3 if about is None else about.preprocess.channels
    model = build(network, count, (size, size, channels))
    report = load_npz_weights(model, path)
    report = dataclasses.replace(report, network=model.name, file_kind="npz", outputs=count)
    if about is None:
        about = _about(source, wish, wish.findings or _names(source.findings, count), count, {})
    return Imported(model, _adapted(about, wish, size), report)


def _last_bias(path: Path) -> int:
    """How many logits an archive has, by the bias of its head."""
    last = list(read_tensors(path).tensors.values())[-1:]
    if not last or last[0].ndim != 1 or not last[0].size:
        raise ModelFileError(f"{path.name}: its last array is no bias of a head: set num_classes")
    return int(last[0].shape[0])


def _adapted(about: ModelAbout, wish: _Wish, size: int) -> ModelAbout:
    """The facts in an archive, replaced by those of the caller where there are any."""
    return dataclasses.replace(
        about,
        findings=wish.findings or about.findings,
        attribution=about.attribution if wish.attribution is None else wish.attribution,
        preprocess=dataclasses.replace(about.preprocess, height=size, width=size),
    )


def _import_read(read: ForeignWeights, source: WeightSource, wish: _Wish) -> Imported:
    """Build the network that was read, fill it, and report what matched."""
    outputs = _outputs(read.arrays)
    count = outputs if wish.num_classes is None else wish.num_classes
    if count > outputs:
        raise ModelFileError(f"it has {outputs} outputs, {count} were asked for: set num_classes to {outputs} at most")
    fresh = frozenset((HEAD_NAME,) if outputs == _IMAGENET_CLASSES != count else ())
    model = read.build(count, (wish.size, wish.size, read.channels))
    renamed = fill(model, _cut(read.arrays, count), fresh=fresh)
    if fresh:
        _draw_head(model)
    known = () if fresh else _names(read.findings or source.findings, outputs)
    names = wish.findings or (known or _names((), count))[:count]
    thresholds = {name: limit for name, limit in zip(known, read.thresholds, strict=False) if np.isfinite(limit)}
    report = ImportReport(
        arrays=len(model.weights),
        parameters=model.count_params(),
        stored_dtype=_dtypes(read.arrays),
        renamed=renamed,
        network=model.name,
        file_kind=read.file_kind,
        outputs=outputs,
        ignored=read.ignored,
        fresh=tuple(variable.name for layer in fresh for variable in model.get_layer(layer).weights),
        left_out=known[count:],
        thresholds=thresholds,
    )
    return Imported(model, _about(source, wish, names, count, thresholds), report)


def _about(
    source: WeightSource, wish: _Wish, names: tuple[str, ...], count: int, thresholds: Mapping[str, float]
) -> ModelAbout:
    """Everything that is known about the model; `count` logits need as many names."""
    if len(names) != count:
        raise DataError(f"{len(names)} findings are named for {count} logits: give one name per logit, in their order")
    notes = ", ".join(f"{name} {limit:.9g}" for name, limit in thresholds.items() if name in names)
    return ModelAbout(
        findings=names,
        preprocess=source.preprocess(wish.size),
        dataset=source.dataset,
        attribution=source.attribution if wish.attribution is None else wish.attribution,
        notes=f"operating points of the source, as probabilities: {notes}" if notes else "",
    )


def _names(known: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Give the usual names where there are as many, else numbered ones."""
    if len(known) == count:
        return known
    return tuple(f"class_{index}" if count == _IMAGENET_CLASSES else f"finding_{index + 1}" for index in range(count))


def _outputs(arrays: LayerArrays) -> int:
    bias = arrays.get(HEAD_NAME, {}).get("bias")
    if bias is None or bias.array.ndim != 1 or not bias.array.size:
        raise ModelFileError("it lacks the bias of its last layer, which says how many outputs it has")
    return int(bias.array.shape[0])


def _cut(arrays: LayerArrays, count: int) -> LayerArrays:
    """Leave the first `count` outputs of the head."""
    head = {part: item._replace(array=item.array[..., :count]) for part, item in arrays[HEAD_NAME].items()}
    return {**arrays, HEAD_NAME: head}


def _draw_head(model: Any) -> None:
    """Give the head seeded weights, so that the same command writes the same file."""
    head = model.get_layer(HEAD_NAME)
    features, count = head.kernel.shape
    limit = np.sqrt(6 / (features + count))  # Glorot and Bengio 2010, equation 16, as Keras draws them
    kernel = np.random.default_rng(0).uniform(-limit, limit, (features, count)).astype(np.float32)
    head.set_weights([kernel, np.zeros(count, np.float32)])


def _dtypes(arrays: LayerArrays) -> str:
    return ", ".join(sorted({item.stored for parts in arrays.values() for item in parts.values()}))

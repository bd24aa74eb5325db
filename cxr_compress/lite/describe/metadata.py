"""The standard TFLite metadata of a file, for Netron, MediaPipe, the Task library and whoever else reads it.

Model.metadata["TFLITE_METADATA"] -> a buffer with a flatbuffer of its own (`metadata_schema`)
    ModelMetadata       name, description, licence
      input tensor      normalisation on the scale of pixels, size and colours of the image
      output tensor     labels.txt and score_calibration.txt, which lie in the archive behind the model
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.device.modelfile import CALIBRATION_NAME, CARD_NAME, LABELS_NAME
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError
from cxr_compress.lite.describe.metadata_schema import (
    DESCRIPTIONS,
    GRAYSCALE,
    RGB,
    TENSOR_AXIS_LABELS,
    TENSOR_AXIS_SCORE_CALIBRATION,
    UNKNOWN_COLOUR,
    MetadataWriter,
)
from cxr_compress.lite.graph.flatbuffer import Graph, Tensor, schema, to_bytes, to_object

FIELD_NAME = "TFLITE_METADATA"
_MAX_PIXEL = 255.0
_RGB_CHANNELS = 3
_LOGITS_RANK = 2


def with_metadata(model: Any, metadata: bytes) -> bytes:
    """The flatbuffer of a ``ModelT``, which is changed, with a metadata flatbuffer inside instead of one it had."""
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(metadata, np.uint8)
    entries = list(model.metadata or ())
    held = _entry(model)
    if held is not None:
        model.buffers[held.buffer] = buffer
    else:
        entry = schema().MetadataT()
        entry.name, entry.buffer = FIELD_NAME, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*entries, entry]
    return to_bytes(model)


def read_metadata(content: bytes) -> bytes | None:
    """The metadata flatbuffer of a .tflite, or None where it has none.

    Raises:
        ModelFileError: no .tflite flatbuffer, or a damaged one.
    """
    model = to_object(content)
    entry = _entry(model)
    return None if entry is None else bytes(bytearray(model.buffers[entry.buffer].data))


def _entry(model: Any) -> Any:
    """The entry of the standard metadata in a ``ModelT``, or None."""
    return next((entry for entry in model.metadata or () if entry.name in (FIELD_NAME, FIELD_NAME.encode())), None)


def metadata_flatbuffer(graph: Graph, info: ModelInfo) -> bytes:
    """The metadata alone.

    Args:
        graph: what `info` is about.
        info: what the file says about itself.

    Raises:
        ModelFileError: the graph does not give one logit for each finding.
    """
    writer = MetadataWriter()
    outputs = [graph.tensors[index] for index in graph.outputs]
    if not any(_is_logits(tensor, info) for tensor in outputs):
        shapes = [tensor.shape for tensor in outputs]
        raise ModelFileError(f"expected an output of shape (1, {len(info.labels)}), one logit a label; got {shapes}")
    inputs = [_input(writer, graph.tensors[index], info) for index in graph.inputs]
    given = [
        _logits(writer, tensor, info) if _is_logits(tensor, info) else _other(writer, tensor) for tensor in outputs
    ]
    return writer.finish(
        name=info.model_name,
        description=_description(info),
        version=info.canonical_hash,
        licence=" ".join(part for part in (info.intended_use, _training(info), info.attribution) if part),
        subgraph=writer.subgraph(inputs, given),
        # Not the JSON: by its name in the bytes a file of ours is told from the bare flatbuffer of one.
        files=[writer.associated_file(CARD_NAME, "What the model is, is for, and is not for.", DESCRIPTIONS)],
    )


def pixel_normalisation(spec: PreprocessSpec) -> tuple[list[float], list[float]]:
    """Mean and standard deviation on the scale of pixels (0 to 255), per channel or one for all where they are alike.

    A model that takes pixels normalises them itself: 0 and 1. One for all because MediaPipe runs no model whose
    channels differ; such a one, ImageNet's for instance, it runs from files that take pixels.
    """
    if spec.input == "uint8":
        return [0.0], [1.0]
    alike = len(set(spec.mean)) == len(set(spec.std)) == 1
    pairs = list(zip(spec.mean, spec.std, strict=True))[: 1 if alike else None]
    return [mean * _MAX_PIXEL for mean, _ in pairs], [std * _MAX_PIXEL for _, std in pairs]


def _input(writer: MetadataWriter, tensor: Tensor, info: ModelInfo) -> int:
    spec = info.preprocess
    mean, std = pixel_normalisation(spec)
    ends = [[(pixel - shift) / step for shift, step in zip(mean, std, strict=True)] for pixel in (0.0, _MAX_PIXEL)]
    films = (
        "gray films, the one channel repeated" if spec.color == "gray" else f"images, channels in {spec.order} order"
    )
    return writer.tensor(
        tensor.name,
        f"{films.capitalize()}; resized to {spec.height} x {spec.width} by area, aspect ratio not kept.",
        writer.image(_colour(spec), spec.width, spec.height),
        process_units=[writer.normalisation(mean, std)],
        stats=writer.stats(*ends),
    )


def _colour(spec: PreprocessSpec) -> int:
    """The standard knows no BGR: better unknown than wrong, as readers would feed RGB."""
    if spec.order != "rgb":
        return UNKNOWN_COLOUR
    return RGB if spec.input_shape[-1] == _RGB_CHANNELS else GRAYSCALE


def _logits(writer: MetadataWriter, tensor: Tensor, info: ModelInfo) -> int:
    if info.exclusive:
        # The standard knows sigmoids only: a calibration file would make its readers compute wrong probabilities.
        said = f"One logit a class; the classes exclude one another. Probabilities by one softmax of {_scores(info)}."
        return writer.tensor(tensor.name, said, writer.feature(), files=[_labels(writer)])
    thresholds = ", ".join(f"{label} {value:.4g}" for label, value in zip(info.labels, info.thresholds, strict=True))
    return writer.tensor(
        tensor.name,
        f"One logit a finding; several may be present. Probabilities by {CALIBRATION_NAME}; "
        f"positive from: {thresholds} ({info.threshold_source}).",
        writer.feature(),
        process_units=[writer.score_calibration()],
        files=[
            _labels(writer),
            writer.associated_file(
                CALIBRATION_NAME, f"Scale, slope and offset of each finding: {info.calibration_source}.",
                TENSOR_AXIS_SCORE_CALIBRATION,
            ),
        ],
    )  # fmt: skip


def _labels(writer: MetadataWriter) -> int:
    return writer.associated_file(LABELS_NAME, "The findings, in the order of the logits.", TENSOR_AXIS_LABELS)


def _scores(info: ModelInfo) -> str:
    """What one softmax is taken of, in words."""
    if set(info.logit_slope) == {1.0} and not any(info.logit_offset):
        return "the logits"
    rows = zip(info.labels, info.logit_slope, info.logit_offset, strict=True)
    return "slope * logit + offset: " + ", ".join(f"{label} {slope:.4g} {offset:.4g}" for label, slope, offset in rows)


def _other(writer: MetadataWriter, tensor: Tensor) -> int:
    return writer.tensor(
        tensor.name, "Where in the image each logit comes from: its class activation map.", writer.feature()
    )


def _is_logits(tensor: Tensor, info: ModelInfo) -> bool:
    return len(tensor.shape) == _LOGITS_RANK and tensor.shape[-1] == len(info.labels)


def _description(info: ModelInfo) -> str:
    """A few sentences: what it finds, how it is stored, what it is for."""
    synthetic = "Trained on drawn images: its findings say nothing about patients." if info.synthetic else ""
    says = f"Classifier of {', '.join(info.labels)}; quantisation {info.quant_type}."
    return " ".join(part for part in (says, synthetic, info.intended_use) if part)


def _training(info: ModelInfo) -> str:
    return f"Training data: {info.training_data}." if info.training_data else ""
